"""Compressed constants and quantization, by their definitions in plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from coreml_case import Array, Case, normal
from coreml_programs import mb, types

# Compressed constants. Their operators have constant inputs alone, so an input is added to what they make.


def stored(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Integers over the whole range of a type that MIL has and numpy does not."""
    kind = types.string_to_builtin(dtype)
    bits, signed = kind.get_bitwidth(), not kind.is_unsigned()
    low = -(1 << (bits - 1)) if signed else 0
    return rng.integers(low, low + (1 << bits), shape).astype(types.nptype_from_builtin(kind))


def over_blocks(values: Array, shape: tuple[int, ...]) -> Array:
    """By the definition's own words: element i takes value floor(i / block size), in every axis."""
    wide = np.empty(shape)
    for place in itertools.product(*map(range, shape)):
        wide[place] = values[tuple(i * n // length for i, n, length in zip(place, values.shape, shape, strict=True))]
    return wide


def case_shift_scale(rng: np.random.Generator) -> Case:
    shape = (4, 6)
    forms = [("int8", (4, 1), False), ("uint8", (1, 1), True), ("int4", (4, 3), False), ("uint4", (2, 2), True)]
    made = [
        (
            stored(rng, dtype, shape),
            normal(rng, *blocks),
            stored(rng, dtype, blocks) if offset else None,
        )
        for dtype, blocks, offset in forms
    ]

    def body(x: Any) -> Any:
        found = []
        for data, scale, offset in made:
            extra = {} if offset is None else {"offset": offset}
            found.append(mb.add(x=x, y=mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **extra)))
        return found

    def want(x: Array) -> list[Array]:
        return [
            x
            + over_blocks(scale.astype(float), shape)
            * (data.astype(float) - (0 if offset is None else over_blocks(offset.astype(float), shape)))
            for data, scale, offset in made
        ]

    return Case({"x": normal(rng, *shape)}, body, want)


def case_lut_to_dense(rng: np.random.Generator) -> Case:
    widths = (1, 2, 3, 4, 6, 8)
    scalar = [(stored(rng, f"uint{bits}", (6, 4)), normal(rng, 3, 1, 1 << bits, 1)) for bits in widths]
    vectors = (stored(rng, "uint2", (3, 2)), normal(rng, 1, 2, 4, 2))

    def body(x: Any) -> Any:
        found = [mb.add(x=x, y=mb.constexpr_lut_to_dense(indices=indices, lut=lut)) for indices, lut in scalar]
        for axis, shape in ((0, (6, 2)), (1, (3, 4))):
            dense = mb.constexpr_lut_to_dense(indices=vectors[0], lut=vectors[1], vector_axis=axis)
            found.append(mb.add(x=mb.slice_by_size(x=x, begin=[0, 0], size=shape), y=dense))
        return found

    def entry(indices: Array, lut: Array, row: int, column: int) -> Array:
        rows, columns = lut.shape[:2]
        table = lut[row * rows // indices.shape[0], column * columns // indices.shape[1]]
        return table[int(indices[row, column])]

    def want(x: Array) -> list[Array]:
        found = []
        for indices, lut in scalar:
            dense = [[entry(indices, lut, row, column)[0] for column in range(4)] for row in range(6)]
            found.append(x + np.array(dense))
        tall, wide = np.empty((6, 2)), np.empty((3, 4))
        for row, column in itertools.product(range(3), range(2)):
            tall[2 * row : 2 * row + 2, column] = wide[row, 2 * column : 2 * column + 2] = entry(*vectors, row, column)
        return [*found, x[:, :2] + tall, x[:3] + wide]

    return Case({"x": normal(rng, 6, 4)}, body, want)


def mask_of(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.integers(0, 2, shape).astype(types.nptype_from_builtin(types.uint1))


def case_sparse_to_dense(rng: np.random.Generator) -> Case:
    mask = mask_of(rng, (6, 4))
    kept = normal(rng, int((mask != 0).sum()))

    def want(x: Array) -> list[Array]:
        dense, values = np.zeros((6, 4)), iter(kept)
        for place in np.argwhere(mask.astype(int)):
            dense[tuple(place)] = next(values)
        return [x + dense]

    return Case(
        {"x": normal(rng, 6, 4)},
        lambda x: mb.add(x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=kept, mask=mask)),
        want,
    )


def case_lut_to_sparse(rng: np.random.Generator) -> Case:
    mask = mask_of(rng, (6, 4))
    places = np.argwhere(mask.astype(int))
    indices, lut, pairs = stored(rng, "uint3", (len(places),)), normal(rng, 2, 1, 8, 1), normal(rng, 1, 1, 8, 2)

    def body(x: Any, y: Any) -> Any:
        common = {"indices_mask": mask, "indices_nonzero_data": indices}
        where, values = mb.constexpr_lut_to_sparse(**common, lut=lut)
        dense = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where)
        where, values = mb.constexpr_lut_to_sparse(**common, lut=pairs, vector_axis=0)
        tall = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where)
        return mb.add(x=x, y=dense), mb.add(x=y, y=tall)

    def want(x: Array, y: Array) -> list[Array]:
        dense, tall = np.zeros((6, 4)), np.zeros((12, 4))
        for (row, column), index in zip(places, indices.astype(int), strict=True):
            dense[row, column] = lut[row // 3, 0, index, 0]
            tall[2 * row : 2 * row + 2, column] = pairs[0, 0, index]
        return [x + dense, y + tall]

    return Case({"x": normal(rng, 6, 4), "y": normal(rng, 12, 4)}, body, want)


def case_sparse_shift_scale(rng: np.random.Generator) -> Case:
    mask = mask_of(rng, (6, 4))
    places = np.argwhere(mask.astype(int))
    data, scale, offset = stored(rng, "int4", (len(places),)), normal(rng, 3, 2), stored(rng, "int4", (3, 2))

    def body(x: Any) -> Any:
        where, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=data, scale=scale, offset=offset
        )
        return mb.add(x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where))

    def want(x: Array) -> list[Array]:
        dense = np.zeros((6, 4))
        for (row, column), value in zip(places, data.astype(float), strict=True):
            block = row // 2, column // 2
            dense[row, column] = float(scale[block]) * (value - float(offset[block]))
        return [x + dense]

    return Case({"x": normal(rng, 6, 4)}, body, want)


def quantized(x: Array, scale: Array, zero: Array, low: int, high: int) -> Array:
    return np.clip(np.rint(x / scale) + zero, low, high)


def quantization(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    scale = rng.uniform(0.005, 0.02, 3).astype(np.float32)
    return scale, rng.integers(0, 256, 3).astype(np.uint8), scale[:, None].astype(float)


def case_quantize(rng: np.random.Generator) -> Case:
    scale, zero, wide = quantization(rng)
    return Case(
        {"x": normal(rng, 2, 3, 40)},
        lambda x: (
            mb.cast(x=mb.quantize(input=x, scale=scale, zero_point=zero, axis=1, output_dtype="uint8"), dtype="int32"),
            mb.cast(x=mb.quantize(input=x, scale=np.float32(0.03125), output_dtype="int8"), dtype="int32"),
        ),
        lambda x: (quantized(x, wide, zero[:, None], 0, 255), quantized(x, np.array(0.03125), np.array(0), -128, 127)),
    )


def case_dequantize(rng: np.random.Generator) -> Case:
    scale, zero, wide = quantization(rng)

    def body(x: Any) -> Any:
        small = mb.quantize(input=x, scale=np.float32(0.03125), zero_point=np.uint8(100), output_dtype="uint8")
        signed = mb.quantize(input=x, scale=np.float32(0.03125), output_dtype="int8")
        return (
            mb.dequantize(input=small, scale=scale, zero_point=zero, axis=-2),
            mb.dequantize(input=signed, scale=np.float32(0.25)),
        )

    def want(x: Array) -> list[Array]:
        small = quantized(x, np.array(0.03125), np.array(100), 0, 255)
        return [
            (small - zero[:, None].astype(float)) * wide,
            quantized(x, np.array(0.03125), np.array(0), -128, 127) / 4,
        ]

    return Case({"x": normal(rng, 2, 3, 40)}, body, want)
