"""The two libraries behind one small interface: TensorRT and TensorRT for RTX have nearly the same bindings.

What differs is held here: how they are imported, which GPUs they build for, and what they offer.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from livemoments.engine_files import TITLES
from livemoments.errors import EngineError, MissingExtraError
from livemoments.manifest import EngineLibrary

MODULES: dict[EngineLibrary, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""What each is imported as; the extra of pyproject.toml has the library's own name."""
_INSTALL: dict[EngineLibrary, str] = {
    "tensorrt": "install it from NVIDIA's index beside a GPU's driver: "
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/installing-tensorrt/installing.html",
    "rtx": "install it again: pip install --force-reinstall tensorrt-rtx",
}


@dataclass(frozen=True, slots=True)
class Library:
    """An imported library.

    Attributes:
        name: ``tensorrt`` or ``rtx``.
        module: the bindings.
        version: theirs.
    """

    name: EngineLibrary
    module: Any
    version: str

    @property
    def title(self) -> str:
        """For messages: ``TensorRT for RTX 1.7.1.116``."""
        return f"{TITLES[self.name]} {self.version}"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """What it can build for without a GPU, e.g. ``("8.6", "8.9", "12.0")``; empty: only for the GPU it finds."""
        kinds = getattr(self.module, "ComputeCapability", None)
        numbers = [] if kinds is None else [name[2:] for name in kinds.__members__ if name.startswith("SM")]
        return tuple(f"{number[:-1]}.{number[-1]}" for number in numbers)

    def compute_capability(self, sm: str) -> Any:
        """The member of the library's enumeration for ``"8.9"``."""
        return self.module.ComputeCapability.__members__[f"SM{sm.replace('.', '')}"]

    def builder_flag(self, name: str) -> Any:
        """A builder flag by its name, e.g. ``REFIT``; ``None`` where this version has none."""
        return self.module.BuilderFlag.__members__.get(name)


def load_library(name: EngineLibrary) -> Library:
    """Import a library.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is, and cannot be used: libraries of its own are missing, or it is a stub without them.
    """
    try:
        module = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != MODULES[name]:
            raise EngineError(f"{TITLES[name]} cannot be imported ({error})", fix=_INSTALL[name]) from None
        raise MissingExtraError(f"building or running {TITLES[name]} engines", name, missing=MODULES[name]) from None
    except (ImportError, OSError, RuntimeError) as error:  # a shared library that is not there
        raise EngineError(f"{TITLES[name]} cannot be imported ({error})", fix=_INSTALL[name]) from None
    if not hasattr(module, "Builder"):
        raise EngineError(f"the installed '{MODULES[name]}' is a stub without the library", fix=_INSTALL[name])
    return Library(name, module, str(module.__version__))
