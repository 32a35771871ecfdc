"""What coremltools wrote is held against what it read: the wanted weights compressed, and nothing else changed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator

import numpy as np

from livemoments.coreml.kernels.compressed import CONSTEXPR
from livemoments.coreml.program import FLOATS, Constant, Function
from livemoments.errors import EngineError
from livemoments.quantize.packages.linears import products

_OF_COMPRESSION = frozenset({"const", "quantize", "dequantize"})
"""Operators that compression adds and takes away, besides those that make weights."""


def check_compressed(source: Function, written: Function, wanted: Collection[str], what: str) -> None:
    """Refuse a package that is something else than the source with the wanted weights compressed.

    Args:
        source: what was read.
        written: what was made of it.
        wanted: the names of the weights to compress, in the source.
        what: the package, for the error.

    Raises:
        EngineError: naming what differs.
    """
    for part in ("inputs", "states", "outputs"):
        if getattr(source, part) != getattr(written, part):
            raise _changed(what, f"its {part} are others than the source's")
    kinds = [_kinds(function) for function in (source, written)]
    if kinds[0] != kinds[1]:
        difference = (kinds[0] - kinds[1]) + (kinds[1] - kinds[0])
        raise _changed(what, f"it has other operators than the source ({', '.join(sorted(difference))})")
    compressed = {op.name for op in written.operations if op.kind.startswith(CONSTEXPR)}
    for (_, _, before), (_, _, after) in zip(products(source), products(written), strict=True):
        if (before in wanted) != (after in compressed):
            raise _changed(what, f"'{before}' was {'left as it is' if before in wanted else 'compressed unasked'}")
    kept = {digest: name for name, digest in _constants(source, wanted)}
    found = {digest: name for name, digest in _constants(written, _read_by_compression(written))}
    if lost := [name for digest, name in kept.items() if digest not in found]:
        raise _changed(what, f"the constant '{lost[0]}', which was to stay as it is, has other values")
    if new := [name for digest, name in found.items() if digest not in kept]:
        raise _changed(what, f"the constant '{new[0]}' is not in the source")


def _kinds(function: Function) -> Counter[str]:
    kinds = (operation.kind for operation in function.operations)
    return Counter(kind for kind in kinds if kind not in _OF_COMPRESSION and not kind.startswith(CONSTEXPR))


def _constants(function: Function, left_out: Collection[str]) -> Iterator[tuple[str, str]]:
    """Name and digest of every constant tensor of floats. Scalars may be merged with equal ones."""
    for operation in function.operations:
        if operation.kind != "const" or operation.name in left_out:
            continue
        (value,) = operation.inputs["val"]
        if isinstance(value, Constant) and value.type.dtype in FLOATS and value.type.shape:
            array = np.ascontiguousarray(value.read())
            yield operation.name, hashlib.sha256(f"{value.type}".encode() + array.tobytes()).hexdigest()


def _read_by_compression(function: Function) -> set[str]:
    """The constants that make up compressed weights: data, scales, tables."""
    return {
        item
        for operation in function.operations
        if operation.kind.startswith(CONSTEXPR)
        for bound in operation.inputs.values()
        for item in bound
        if isinstance(item, str)
    }


def _changed(what: str, how: str) -> EngineError:
    return EngineError(f"{what}: coremltools compressed it wrongly: {how}", fix="report it with coremltools' version")
