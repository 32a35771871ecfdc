"""The scripts of ``tools/`` as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from places import ROOT

TOOLS = ROOT / "tools"


def load_tool(name: str) -> ModuleType:
    """``tools/NAME.py``, imported; what it does when it is run is not done. It finds its siblings, as a script does."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
