"""Operators that move elements, by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from coreml_case import Array, Case, normal
from coreml_programs import mb


def case_reshape(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 4)},
        lambda x: (mb.reshape(x=x, shape=[4, -1]), mb.reshape(x=x, shape=[0, 0, 4])),
        lambda x: (x.reshape(4, 6), x),
    )


def case_transpose(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 4)}, lambda x: mb.transpose(x=x, perm=[2, 0, -2]), lambda x: [x.transpose(2, 0, 1)]
    )


def case_expand_dims(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3)},
        lambda x: (mb.expand_dims(x=x, axes=[0, -1]), mb.expand_dims(x=x, axes=[1])),
        lambda x: (x[None, ..., None], x[:, None]),
    )


def case_squeeze(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 1, 3, 1, 2)},
        lambda x: (mb.squeeze(x=x, axes=[-2]), mb.squeeze(x=x)),
        lambda x: (x[:, :, 0], x[0, :, 0]),
    )


def case_concat(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3), "y": normal(rng, 2, 5)},
        lambda x, y: mb.concat(values=[x, y, x], axis=-1),
        lambda x, y: [np.concatenate([x, y, x], 1)],
    )


def case_stack(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3), "y": normal(rng, 2, 3)},
        lambda x, y: (mb.stack(values=[x, y], axis=1), mb.stack(values=[x, y, y], axis=-1)),
        lambda x, y: (np.stack([x, y], 1), np.stack([x, y, y], -1)),
    )


def case_split(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 3, 8)},
        lambda x: [*mb.split(x=x, split_sizes=[1, 5, 2], axis=1), *mb.split(x=x, num_splits=4, axis=-1)],
        lambda x: [*np.split(x, [1, 6], 1), *np.split(x, 4, 1)],
    )


def case_slice_by_index(rng: np.random.Generator) -> Case:
    def body(x: Any) -> Any:
        return (
            mb.slice_by_index(x=x, begin=[1, 0, -3], end=[3, 5, -1], stride=[1, 2, 1]),
            mb.slice_by_index(
                x=x,
                begin=[1, 2, 1],
                end=[0, 0, 0],
                begin_mask=[False, True, False],
                end_mask=[False, True, True],
                squeeze_mask=[True, False, False],
            ),
            mb.slice_by_index(x=x, begin=[3, 5, 0], end=[0, 0, 7], stride=[-1, -2, 3], end_mask=[False, True, False]),
        )

    return Case(
        {"x": normal(rng, 4, 6, 7)}, body, lambda x: (x[1:3, 0:5:2, -3:-1], x[1, :, 1:], x[3:0:-1, 5::-2, 0:7:3])
    )


def case_slice_by_size(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 4, 6)},
        lambda x: mb.slice_by_size(x=x, begin=[1, 2], size=[2, -1]),
        lambda x: [x[1:3, 2:]],
    )


def case_slice_update(rng: np.random.Generator) -> Case:
    def want(x: Array, y: Array) -> list[Array]:
        changed = x.copy()
        changed[1:3, 0:6:3] = y
        return [changed, x + 1]  # x itself stays

    return Case(
        {"x": normal(rng, 4, 6), "y": normal(rng, 2, 2)},
        lambda x, y: (mb.slice_update(x=x, update=y, begin=[1, 0], end=[3, 6], stride=[1, 3]), mb.add(x=x, y=1.0)),
        want,
    )


def case_tile(rng: np.random.Generator) -> Case:
    return Case({"x": normal(rng, 2, 3)}, lambda x: mb.tile(x=x, reps=[3, 2]), lambda x: [np.tile(x, (3, 2))])


def case_shape(rng: np.random.Generator) -> Case:
    return Case({"x": normal(rng, 2, 3, 5)}, lambda x: mb.shape(x=mb.relu(x=x)), lambda x: [np.array([2, 3, 5])])


def case_gather(rng: np.random.Generator) -> Case:
    inputs = {"x": normal(rng, 4, 5, 6), "i": rng.integers(0, 4, (2, 3), dtype=np.int32)}
    return Case(
        inputs,
        lambda x, i: (
            mb.gather(x=x, indices=i, axis=1),
            mb.gather(x=x, indices=i),
            mb.gather(x=x, indices=np.int32(2), axis=-1),
        ),
        lambda x, i: (np.take(x, i, 1), np.take(x, i, 0), x[..., 2]),
    )


def case_gather_along_axis(rng: np.random.Generator) -> Case:
    inputs = {"x": normal(rng, 4, 5), "i": rng.integers(0, 4, (2, 5), dtype=np.int32)}
    return Case(
        inputs, lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=0), lambda x, i: [np.take_along_axis(x, i, 0)]
    )


def case_pad(rng: np.random.Generator) -> Case:
    def body(x: Any) -> Any:
        return (
            mb.pad(x=x, pad=[1, 0, 2, 3], mode="constant", constant_val=1.5),
            mb.pad(x=x, pad=[0, 0, 0, 0, 2, 1, 3, 2], mode="reflect"),
            mb.pad(x=x, pad=[1, 2, 0, 3], mode="replicate"),
        )

    def want(x: Array) -> list[Array]:
        none = ((0, 0), (0, 0))
        return [
            np.pad(x, (*none, (1, 0), (2, 3)), constant_values=1.5),
            np.pad(x, (*none, (2, 1), (3, 2)), mode="reflect"),
            np.pad(x, (*none, (1, 2), (0, 3)), mode="edge"),
        ]

    return Case({"x": normal(rng, 2, 3, 4, 5)}, body, want)


def case_pixel_shuffle(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 12, 3, 4)},
        lambda x: mb.pixel_shuffle(x=x, upscale_factor=2),
        lambda x: [x.reshape(2, 3, 2, 2, 3, 4).transpose(0, 1, 4, 2, 5, 3).reshape(2, 3, 6, 8)],
    )


def case_pixel_unshuffle(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 6, 8)},
        lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
        lambda x: [x.reshape(2, 3, 3, 2, 4, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 12, 3, 4)],
    )
