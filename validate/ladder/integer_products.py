"""Whether this machine multiplies 8-bit integers exactly, as int8 engines take for granted.

x86 kernels without VNNI add pairs of products u8 x s8 in 16 bits and saturate silently; the engines then compute other
numbers than elsewhere, and nothing fails. The check multiplies what saturates if anything does, through a session
opened like every other one (:mod:`livemoments.ort`), and compares with exact integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from livemoments.ort import open_session
from livemoments.validate.ladder.rungs import held_to
from livemoments.validate.report_data import Check

_ROWS, _DEPTH, _COLUMNS = 64, 256, 64
_IR_VERSION, _OPSET = 8, 17
_UINT8, _INT8, _INT32 = 2, 3, 6  # TensorProto.DataType

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(M, K) uint8 times (K, N) int8: (M, N) int32."""


def check_integer_products(product: Product | None = None, seed: int = 0) -> Check:
    """``self.integer_products``: elements of u8 x s8 products that are not the exact integers.

    Half of the rows and columns are at the ends of their ranges, where two products (255 x 127 x 2 = 64770) pass 16
    bits; the others are random.

    Args:
        product: what multiplies; onnxruntime's ``MatMulInteger`` on the CPU by default.
        seed: decides the random half.
    """
    rng = np.random.default_rng(seed)
    left = rng.integers(0, 256, (_ROWS, _DEPTH), dtype=np.uint8)
    right = rng.integers(-128, 128, (_DEPTH, _COLUMNS)).astype(np.int8)
    left[::2] = 255
    right[:, ::2] = np.where(np.arange(_COLUMNS // 2) % 2, 127, -128).astype(np.int8)
    computed = (product or multiply)(left, right)
    exact = left.astype(np.int64) @ right.astype(np.int64)
    wrong = int(np.count_nonzero(computed != exact))
    worst = float(np.linalg.norm(computed - exact) / np.linalg.norm(exact))
    detail = f"all {exact.size} elements of 8-bit products on the CPU are exact"
    if wrong:
        detail = f"elements of 8-bit products on the CPU that are not exact; off by {worst:.1e} of the norm"
    return held_to("self.integer_products", float(wrong), 0.0, "count", detail)


def multiply(left: np.ndarray, right: np.ndarray, options: object = None) -> np.ndarray:
    """(M, K) uint8 times a constant (K, N) int8 by onnxruntime's ``MatMulInteger``: (M, N) int32.

    Args:
        left: (M, K) uint8.
        right: (K, N) int8.
        options: the session's; by default those of every session.
    """
    session = open_session(_matmul_integer(right, len(left)), options)
    product: np.ndarray = session.run(None, {"left": left})[0]
    return product


def _matmul_integer(right: np.ndarray, rows: int) -> bytes:
    """A serialized ``ModelProto`` of one node; written by hand, for validation works without the package onnx."""
    depth, columns = right.shape
    node = _text(1, "left") + _text(1, "right") + _text(2, "product") + _text(4, "MatMulInteger")
    weight = _number(1, depth) + _number(1, columns) + _number(2, _INT8) + _text(8, "right")
    weight += _message(9, np.ascontiguousarray(right).tobytes())
    graph = _message(1, node) + _text(2, "integer_products") + _message(5, weight)
    graph += _message(11, _value("left", _UINT8, (rows, depth)))
    graph += _message(12, _value("product", _INT32, (rows, columns)))
    return _number(1, _IR_VERSION) + _message(7, graph) + _message(8, _text(1, "") + _number(2, _OPSET))


def _value(name: str, kind: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_message(1, _number(1, length)) for length in shape)
    return _text(1, name) + _message(2, _message(1, _number(1, kind) + _message(2, dims)))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())
