"""Opening an ``.mlpackage``: its manifest, its program (Core ML's protobufs) and its weight file.

Needs coremltools for the protobufs' schema only; what is read is the file as it is, not what a converter makes of it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from livemoments.coreml.program import BITS, Constant, Function, Operation, ValueType, Variable
from livemoments.coreml.weight_file import WeightFile, decode
from livemoments.errors import EngineError, FileError

MODEL_PATH = "@model_path/"
"""What the program's references to files begin with: the folder of the model itself."""
OPSET = "CoreML8"
"""Operators as iOS 18 and macOS 15 define them."""
_AGAIN = "export the bundle again"


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package.

    Attributes:
        path: its folder.
        functions: its functions by name.
        default: the function that runs where none is named.
    """

    path: Path
    functions: Mapping[str, Function]
    default: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Package:
        """Read a package; large constants stay in their file until they are used.

        Raises:
            FileError: it is no package, a file of it is missing or damaged, or it holds no ML Program.
            EngineError: the program has something that only newer or older systems have.
        """
        folder = Path(path)
        file = _model_file(folder)
        try:
            spec = model_proto().FromString(file.read_bytes())
        except OSError as error:
            raise FileError(file, f"cannot be read ({error.strerror})", fix=_AGAIN) from None
        except Exception:  # protobuf's DecodeError, whose module depends on its version
            raise FileError(file, "is damaged: no Core ML model can be read from it", fix=_AGAIN) from None
        if spec.WhichOneof("Type") != "mlProgram":
            raise FileError(file, "holds no ML Program", fix=_AGAIN)
        reader = _Reader(file)
        functions = {name: reader.function(name, entry) for name, entry in spec.mlProgram.functions.items()}
        default = spec.description.defaultFunctionName or "main"
        if default not in functions:
            raise FileError(file, f"has no function '{default}'; it has {', '.join(functions)}", fix=_AGAIN)
        return cls(folder, functions, default)

    def function_for(self, name: str) -> Function:
        """The function of a name where there are several, else the only one, whatever its name.

        Raises:
            EngineError: there are several, and none of that name.
        """
        if len(self.functions) == 1:
            return self.functions[self.default]
        if name not in self.functions:
            raise EngineError(f"{self.path}: there is no function '{name}'; it has {', '.join(self.functions)}")
        return self.functions[name]


def model_proto() -> Any:
    """Core ML's ``Model`` message.

    Raises:
        ModuleNotFoundError: coremltools is not installed.
    """
    # It says at import which of its parts this system does not have; none of them is used here.
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        from coremltools.proto import Model_pb2
    finally:
        logger.setLevel(level)
    return Model_pb2.Model


def _model_file(folder: Path) -> Path:
    manifest = folder / "Manifest.json"
    try:
        found = json.loads(manifest.read_bytes())
        place = found["itemInfoEntries"][found["rootModelIdentifier"]]["path"]
    except OSError as error:
        raise FileError(manifest, f"cannot be read ({error.strerror})", fix=_AGAIN) from None
    except (ValueError, KeyError, TypeError):
        raise FileError(manifest, "is no manifest of an .mlpackage", fix=_AGAIN) from None
    parts = PurePosixPath(str(place))
    if parts.is_absolute() or ".." in parts.parts:
        raise FileError(manifest, f"names '{place}', which leaves the package", fix=_AGAIN)
    return folder / "Data" / parts


class _Reader:
    """Turns the protobufs of one model into :mod:`livemoments.coreml.program`'s types."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._weights = functools.cache(WeightFile)

    def function(self, name: str, entry: Any) -> Function:
        if entry.opset != OPSET or set(entry.block_specializations) != {OPSET}:
            raise EngineError(
                f"{self._file}: function '{name}' is written for {entry.opset}, only {OPSET} (iOS 18) is known",
                fix="convert with minimum_deployment_target iOS18",
            )
        block = entry.block_specializations[OPSET]
        inputs: list[Variable] = []
        states: list[Variable] = []
        for item in entry.inputs:
            is_state = item.type.WhichOneof("type") == "stateType"
            (states if is_state else inputs).append(
                Variable(item.name, self._type(item.type.stateType.wrappedType if is_state else item.type, item.name))
            )
        operations = tuple(self._operation(operation) for operation in block.operations)
        return Function(name, entry.opset, tuple(inputs), tuple(states), operations, tuple(block.outputs))

    def _operation(self, entry: Any) -> Operation:
        outputs = tuple(Variable(item.name, self._type(item.type, item.name)) for item in entry.outputs)
        what = f"'{entry.type}' (makes '{outputs[0].name if outputs else ''}')"
        if entry.blocks:
            raise EngineError(f"{self._file}: operator {what} branches or loops, which is not interpreted")
        bound: dict[str, tuple[str | Constant, ...]] = {
            key: tuple(self._binding(item, what) for item in argument.arguments)
            for key, argument in entry.inputs.items()
        }
        for key, value in entry.attributes.items():
            if key != "name":
                bound[key] = (self._constant(value, what),)
        return Operation(entry.type, bound, outputs)

    def _binding(self, item: Any, what: str) -> str | Constant:
        return str(item.name) if item.WhichOneof("binding") == "name" else self._constant(item.value, what)

    def _type(self, entry: Any, what: str) -> ValueType:
        if entry.WhichOneof("type") != "tensorType":
            raise EngineError(f"{self._file}: {what} is a {entry.WhichOneof('type')}, only tensors are interpreted")
        tensor = entry.tensorType
        dtype = _dtype_names().get(tensor.dataType)
        if dtype is None:
            raise EngineError(f"{self._file}: {what} has elements of type {tensor.dataType}, which is not interpreted")
        axes = [int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions]
        return ValueType(dtype, tuple(axes))

    def _constant(self, value: Any, what: str) -> Constant:
        found = self._type(value.type, what)
        if value.WhichOneof("value") == "blobFileValue":
            name, offset = value.blobFileValue.fileName, value.blobFileValue.offset
            place = PurePosixPath(name.removeprefix(MODEL_PATH))
            if not name.startswith(MODEL_PATH) or ".." in place.parts:
                raise FileError(self._file, f"refers to '{name}', which leaves the package", fix=_AGAIN)
            weights = self._weights(self._file.parent / place)  # now, so that a missing file is known at once
            return Constant(found, lambda: weights.read(offset, found))
        stored = _immediate(value.immediateValue, found, f"{self._file}: operator {what}")
        return Constant(found, lambda: stored)


def _immediate(value: Any, found: ValueType, where: str) -> np.ndarray | str:
    if value.WhichOneof("value") != "tensor":
        raise EngineError(f"{where}: a constant of kind {value.WhichOneof('value')} is not interpreted")
    tensor = value.tensor
    held = tensor.WhichOneof("value")
    if found.dtype == "string":
        return str(tensor.strings.values[0])
    shape = [axis or 0 for axis in found.shape]
    try:
        if held == "bytes":
            return decode(np.frombuffer(bytearray(tensor.bytes.values), np.uint8), found)
        numbers = [] if held is None else getattr(tensor, held).values
        return np.array(numbers, dtype=found.dtype).reshape(shape)
    except ValueError:
        raise EngineError(f"{where}: a constant is not as long as its type {found} says") from None


@functools.cache
def _dtype_names() -> dict[int, str]:
    from coremltools.proto import MIL_pb2

    return {number: name.lower() for name, number in MIL_pb2.DataType.items() if name.lower() in (*BITS, "string")}
