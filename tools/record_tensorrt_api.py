"""Record what the bindings of TensorRT or TensorRT for RTX say of the classes that the engines' builder uses.

    python tools/record_tensorrt_api.py tensorrt_rtx > tests/golden/tensorrt/rtx-1.7.1.json

The tests compare every call of ``export/tensorrt/`` with these records, for libraries that they cannot install: the
full TensorRT's wheels lie on NVIDIA's index. Its bindings alone (``tensorrt_cu13_bindings``) can be imported, and
recorded, beside empty stand-ins for the shared libraries that they name; nothing of them runs then.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

CLASSES = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "OnnxParser", "ParserError", "ITimingCache"),
    *("IProgressMonitor", "ILogger", "IHostMemory"),
)
ENUMERATIONS = ("BuilderFlag", "NetworkDefinitionCreationFlag", "HardwareCompatibilityLevel", "ComputeCapability")
_TYPES = re.compile(r"tensorrt(?:_rtx)?_bindings\.tensorrt(?:_rtx)?\.")


def record(module: Any) -> dict[str, Any]:
    """Version, members of the enumerations, and each class' attributes: a signature, or ``property``."""
    classes = {name: _members(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    enumerations = {name: sorted(getattr(module, name).__members__) for name in ENUMERATIONS if hasattr(module, name)}
    return {"version": module.__version__, "classes": classes, "enumerations": enumerations}


def _members(kind: type) -> dict[str, str]:
    found = {}
    for name in sorted(dir(kind)):
        if name.startswith("_") and name != "__init__":
            continue
        member = getattr(kind, name)
        if isinstance(member, property):
            found[name] = "property" if member.fset else "read-only property"
        elif callable(member):
            lines = (member.__doc__ or "").strip().splitlines()
            overloads = [line for line in lines if re.match(rf"(?:\d+\. )?{name}\(self", line)]
            found[name] = _TYPES.sub("", (overloads or lines or [""])[0]).strip()
        else:
            found[name] = "value"
    return found


if __name__ == "__main__":
    print(json.dumps(record(importlib.import_module(sys.argv[1])), indent=1))
