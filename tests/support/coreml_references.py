"""For every operator that the interpreter knows: a program with it, and what numpy or scipy make of it in float64.

Nothing here calls torch. A body's outputs are compared one by one with what its reference returns, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from coreml_programs import mb, types
from scipy import ndimage, signal, special

Array = np.ndarray
Body = Callable[..., Any]


class Case(NamedTuple):
    """A program of one operator in several forms."""

    inputs: dict[str, Array]
    body: Body
    want: Callable[..., Sequence[Array]]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def binary(name: str, function: Callable[[Array, Array], Array], low: float, high: float) -> Callable[..., Case]:
    def case(rng: np.random.Generator) -> Case:
        x = rng.uniform(low, high, (2, 3, 4)).astype(np.float32)
        y = rng.uniform(low, high, (3, 1)).astype(np.float32)
        y[0, 0] = x[0, 0, 0]  # equal somewhere, which matters to comparisons
        make = getattr(mb, name)
        return Case(
            {"x": x, "y": y},
            lambda x, y: (make(x=x, y=y), make(x=y, y=x)),
            lambda x, y: (function(x, y), function(y, x)),
        )

    return case


def logical(name: str, function: Callable[[Array, Array], Array]) -> Callable[..., Case]:
    def case(rng: np.random.Generator) -> Case:
        x, y = normal(rng, 3, 5), normal(rng, 5)
        body = lambda x, y: getattr(mb, name)(x=mb.greater(x=x, y=0.0), y=mb.less(x=y, y=0.5))  # noqa: E731
        return Case({"x": x, "y": y}, body, lambda x, y: [function(x > 0, y < 0.5)])

    return case


def unary(name: str, function: Callable[[Array], Array], low: float = -3, high: float = 3) -> Callable[..., Case]:
    def case(rng: np.random.Generator) -> Case:
        x = rng.uniform(low, high, (4, 33)).astype(np.float32)
        return Case({"x": x}, lambda x: getattr(mb, name)(x=x), lambda x: [function(x)])

    return case


def reduction(name: str, function: Callable[..., Array]) -> Callable[..., Case]:
    def case(rng: np.random.Generator) -> Case:
        make = getattr(mb, name)

        def body(x: Any) -> Any:
            return make(x=x, axes=[1, -1], keep_dims=True), make(x=x, axes=[0]), make(x=x, axes=[0, 1, 2, 3])

        def want(x: Array) -> list[Array]:
            return [function(x, axis=(1, 3), keepdims=True), function(x, axis=0), np.asarray(function(x))]

        return Case({"x": normal(rng, 2, 3, 4, 5)}, body, want)

    return case


def gelu(x: Array, mode: str) -> Array:
    if mode == "EXACT":
        return x * special.ndtr(x)
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * special.expit(1.702 * x)


def case_gelu(rng: np.random.Generator) -> Case:
    modes = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    return Case(
        {"x": normal(rng, 4, 50) * 2},
        lambda x: [*(mb.gelu(x=x, mode=mode) for mode in modes), mb.gelu(x=x)],
        lambda x: [*(gelu(x, mode) for mode in modes), gelu(x, "EXACT")],
    )


def with_epsilon(name: str, function: Callable[[Array], Array]) -> Callable[..., Case]:
    def case(rng: np.random.Generator) -> Case:
        x, make = rng.uniform(0.1, 4, (3, 9)).astype(np.float32), getattr(mb, name)
        default = {"rsqrt": 1e-12, "inverse": 1e-4, "log": 1e-45}[name]
        return Case(
            {"x": x},
            lambda x: (make(x=x, epsilon=np.float32(0.25)), make(x=x)),
            lambda x: (function(x + 0.25), function(x + np.float64(np.float32(default)))),
        )

    return case


def case_clip(rng: np.random.Generator) -> Case:
    return Case({"x": normal(rng, 40)}, lambda x: mb.clip(x=x, alpha=-0.5, beta=0.75), lambda x: [x.clip(-0.5, 0.75)])


def case_leaky_relu(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 40)},
        lambda x: mb.leaky_relu(x=x, alpha=0.25),
        lambda x: [np.where(x > 0, x, 0.25 * x)],
    )


def case_cast(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 40) * 5},
        lambda x: (
            mb.cast(x=x, dtype="int32"),
            mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32"),
            mb.cast(x=x, dtype="bool"),
        ),
        lambda x: (np.trunc(x).astype(np.int32), np.trunc(x), x != 0),
    )


def case_select(rng: np.random.Generator) -> Case:
    inputs = {"x": normal(rng, 3, 4), "y": normal(rng, 3, 4)}
    return Case(
        inputs, lambda x, y: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=y), lambda x, y: [np.where(x > 0, x, y)]
    )


# Moving


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


# Products


def case_linear(rng: np.random.Generator) -> Case:
    weight, bias = normal(rng, 6, 5), normal(rng, 6)
    return Case(
        {"x": normal(rng, 2, 3, 5)},
        lambda x: (mb.linear(x=x, weight=weight, bias=bias), mb.linear(x=x, weight=weight)),
        lambda x: (x @ weight.T.astype(float) + bias, x @ weight.T.astype(float)),
    )


def case_matmul(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 4), "y": normal(rng, 2, 4, 5), "z": normal(rng, 2, 5, 4)},
        lambda x, y, z: (
            mb.matmul(x=x, y=y),
            mb.matmul(x=z, y=x, transpose_y=True),
            mb.matmul(x=y, y=z, transpose_x=True, transpose_y=True),
        ),
        lambda x, y, z: (x @ y, z @ x.swapaxes(1, 2), y.swapaxes(1, 2) @ z.swapaxes(1, 2)),
    )


def case_einsum(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 4, 5), "y": normal(rng, 2, 5, 4, 6)},
        lambda x, y: mb.einsum(values=[x, y], equation="bnhw,bwhu->bnhu"),
        lambda x, y: [np.einsum("bnhw,bwhu->bnhu", x, y)],
    )


def attend(query: Array, key: Array, value: Array, mask: Array | float = 0.0) -> Array:
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]) + mask
    return special.softmax(scores, axis=-1) @ value


def case_attention(rng: np.random.Generator) -> Case:
    shapes = {"q": (2, 3, 7, 8), "k": (2, 3, 9, 8), "v": (2, 3, 9, 4), "m": (7, 9)}
    inputs = {name: normal(rng, *shape) for name, shape in shapes.items()}

    def body(q: Any, k: Any, v: Any, m: Any) -> Any:
        seen = mb.greater(x=m, y=-1.0)
        attention = mb.scaled_dot_product_attention
        return (
            attention(query=q, key=k, value=v),
            attention(query=q, key=k, value=v, attn_mask=m),
            attention(query=q, key=k, value=v, attn_mask=seen),
        )

    return Case(
        inputs,
        body,
        lambda q, k, v, m: (attend(q, k, v), attend(q, k, v, m), attend(q, k, v, np.where(m > -1, 0, -np.inf))),
    )


def correlate(x: Array, weight: Array, strides: Sequence[int], groups: int) -> Array:
    """Every sum written out by scipy, image by image and channel by channel; x is padded already."""
    dims = x.ndim - 2
    per_group, out_per_group = weight.shape[1], len(weight) // groups
    rows = []
    for image in x:
        channels = []
        for out in range(len(weight)):
            first = out // out_per_group * per_group
            total = sum(
                signal.correlate(image[first + i], weight[out, i], mode="valid", method="direct")
                for i in range(per_group)
            )
            channels.append(total[tuple(slice(None, None, stride) for stride in strides[:dims])])
        rows.append(np.stack(channels))
    return np.stack(rows)


def dilated(weight: Array, by: int) -> Array:
    wide = np.zeros((*weight.shape[:2], *((side - 1) * by + 1 for side in weight.shape[2:])))
    wide[(..., *(slice(None, None, by) for _ in weight.shape[2:]))] = weight
    return wide


def case_conv(rng: np.random.Generator) -> Case:
    weight, bias, grouped, line = normal(rng, 4, 6, 3, 3), normal(rng, 4), normal(rng, 4, 3, 2, 3), normal(rng, 2, 6, 3)

    def body(x: Any) -> Any:
        return (
            mb.conv(x=x, weight=weight, bias=bias, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2]),
            mb.conv(x=x, weight=weight, pad_type="custom", pad=[0, 1, 2, 0], strides=[1, 2]),
            mb.conv(x=x, weight=grouped, groups=2, pad_type="valid"),
            mb.conv(x=x, weight=weight, dilations=[2, 2]),
            mb.conv(x=x, weight=grouped, groups=2, pad_type="same", strides=[2, 1]),
            mb.conv(x=x, weight=grouped, groups=2, pad_type="same_lower", strides=[1, 1]),
            mb.conv(x=mb.reshape(x=x, shape=[2, 6, 63]), weight=line, pad_type="custom", pad=[1, 1]),
        )

    def want(x: Array) -> list[Array]:
        def padded(top: int, bottom: int, left: int, right: int) -> Array:
            return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))

        return [
            correlate(padded(1, 1, 1, 1), weight, (2, 2), 1) + bias[:, None, None],
            correlate(padded(0, 1, 2, 0), weight, (1, 2), 1),
            correlate(x, grouped, (1, 1), 2),
            correlate(x, dilated(weight, 2), (1, 1), 1),
            correlate(padded(0, 1, 1, 1), grouped, (2, 1), 2),  # 7 rows at stride 2: 4 of them, 1 row of padding
            correlate(padded(1, 0, 1, 1), grouped, (1, 1), 2),
            correlate(np.pad(x.reshape(2, 6, 63), ((0, 0), (0, 0), (1, 1))), line, (1,), 1),
        ]

    return Case({"x": normal(rng, 2, 6, 7, 9)}, body, want)


def windows(x: Array, size: tuple[int, int], strides: tuple[int, int]) -> Array:
    return np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]


def case_avg_pool(rng: np.random.Generator) -> Case:
    def body(x: Any) -> Any:
        common = {"x": x, "kernel_sizes": [2, 3], "strides": [2, 2]}
        padded = {"pad_type": "custom", "pad": [1, 0, 1, 1]}
        return (
            mb.avg_pool(**common, pad_type="valid"),
            mb.avg_pool(**common, **padded),
            mb.avg_pool(**common, **padded, exclude_padding_from_average=True),
        )

    def want(x: Array) -> list[Array]:
        wide = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 1)))
        counts = np.pad(np.ones_like(x), ((0, 0), (0, 0), (1, 0), (1, 1)))
        sums = windows(wide, (2, 3), (2, 2)).sum((-1, -2))
        return [
            windows(x, (2, 3), (2, 2)).mean((-1, -2)),
            sums / 6,
            sums / windows(counts, (2, 3), (2, 2)).sum((-1, -2)),
        ]

    return Case({"x": normal(rng, 2, 3, 6, 7)}, body, want)


def case_max_pool(rng: np.random.Generator) -> Case:
    def want(x: Array) -> list[Array]:
        wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        return [windows(x, (2, 2), (2, 2)).max((-1, -2)), windows(wide, (3, 3), (1, 2)).max((-1, -2))]

    return Case(
        {"x": normal(rng, 2, 3, 6, 7) - 4},
        lambda x: (
            mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
            mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[1, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        ),
        want,
    )


# Normalisations


def normed(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def case_softmax(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 3, 4, 5) * 4},
        lambda x: (mb.softmax(x=x, axis=1), mb.softmax(x=x)),
        lambda x: (special.softmax(x, axis=1), special.softmax(x, axis=-1)),
    )


def case_layer_norm(rng: np.random.Generator) -> Case:
    gamma, beta = normal(rng, 5), normal(rng, 5)
    return Case(
        {"x": normal(rng, 2, 3, 4, 5)},
        lambda x: (
            mb.layer_norm(x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=np.float32(1e-2)),
            mb.layer_norm(x=x, axes=[1, 2], epsilon=np.float32(0.5)),
            mb.layer_norm(x=x, axes=[-1]),
        ),
        lambda x: (
            normed(x, (3,), np.float32(1e-2)) * gamma + beta,
            normed(x, (1, 2), 0.5),
            normed(x, (3,), np.float32(1e-5)),
        ),
    )


def case_instance_norm(rng: np.random.Generator) -> Case:
    gamma, beta = normal(rng, 3), normal(rng, 3)
    return Case(
        {"x": normal(rng, 2, 3, 4, 5)},
        lambda x: (
            mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=np.float32(1e-2)),
            mb.instance_norm(x=x, epsilon=np.float32(0.5)),
        ),
        lambda x: (
            normed(x, (2, 3), np.float32(1e-2)) * gamma[:, None, None] + beta[:, None, None],
            normed(x, (2, 3), 0.5),
        ),
    )


def case_batch_norm(rng: np.random.Generator) -> Case:
    mean, variance = normal(rng, 3), rng.uniform(0.5, 2, 3).astype(np.float32)
    gamma, beta = normal(rng, 3), normal(rng, 3)
    wide = lambda a: a[:, None, None].astype(float)  # noqa: E731
    return Case(
        {"x": normal(rng, 2, 3, 4, 5)},
        lambda x: mb.batch_norm(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=np.float32(0.25)),
        lambda x: [(x - wide(mean)) / np.sqrt(wide(variance) + 0.25) * wide(gamma) + wide(beta)],
    )


def case_l2_norm(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 4, 5)},
        lambda x: mb.l2_norm(x=x, epsilon=np.float32(0.25)),
        lambda x: [x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 0.25)],
    )


# Images


def case_nearest(rng: np.random.Generator) -> Case:
    return Case(
        {"x": normal(rng, 2, 3, 4, 5)},
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: [x.repeat(2, 2).repeat(3, 3)],
    )


def linear_axis(x: Array, places: Array, axis: int) -> Array:
    places = places.clip(0, x.shape[axis] - 1)
    low = np.floor(places).astype(int).clip(0, x.shape[axis] - 2)
    share = np.expand_dims(places - low, tuple(range(1, x.ndim - axis)))
    return np.take(x, low, axis) * (1 - share) + np.take(x, low + 1, axis) * share


def case_bilinear(rng: np.random.Generator) -> Case:
    def larger(x: Array, corners: bool) -> Array:
        for axis, factor in ((2, 2), (3, 3)):
            length = x.shape[axis]
            count = np.arange(length * factor)
            places = count * (length - 1) / (length * factor - 1) if corners else (count + 0.5) / factor - 0.5
            x = linear_axis(x, places, axis)
        return x

    common = {"scale_factor_height": 2, "scale_factor_width": 3}
    return Case(
        {"x": normal(rng, 2, 3, 4, 5)},
        lambda x: (
            mb.upsample_bilinear(x=x, **common, align_corners=True),
            mb.upsample_bilinear(x=x, **common, align_corners=False),
        ),
        lambda x: (larger(x, True), larger(x, False)),
    )


def case_resample(rng: np.random.Generator) -> Case:
    inputs = {"x": normal(rng, 2, 3, 6, 7), "at": rng.uniform(-1.3, 1.3, (2, 4, 5, 2)).astype(np.float32)}
    forms = [
        ("bilinear", "constant", True),
        ("bilinear", "border", False),
        ("bilinear", "reflection", True),
        ("nearest", "border", True),
    ]

    def body(x: Any, at: Any) -> Any:
        common = {"x": x, "coordinates": at, "padding_value": 0.0}
        found = [
            mb.resample(
                **common,
                sampling_mode=sampling,
                padding_mode=padding,
                align_corners=corners,
                coordinates_mode="normalized_minus_one_to_one",
            )
            for sampling, padding, corners in forms
        ]
        plain = {"sampling_mode": "bilinear", "padding_mode": "border", "align_corners": True}
        unit = mb.resample(**common, **plain, coordinates_mode="normalized_zero_to_one")
        pixels = mb.resample(**common, **plain, coordinates_mode="unnormalized")
        return [*found, unit, pixels]

    def sample(x: Array, column: Array, row: Array, sampling: str, padding: str) -> Array:
        mode = {"constant": "grid-constant", "border": "nearest", "reflection": "mirror"}[padding]
        order = 1 if sampling == "bilinear" else 0
        return np.stack(
            [
                np.stack([ndimage.map_coordinates(c, [r, q], order=order, mode=mode) for c in image])
                for image, r, q in zip(x, row, column, strict=True)
            ]
        )

    def want(x: Array, at: Array) -> list[Array]:
        found = []
        for sampling, padding, corners in forms:
            column, row = (
                (at[..., i] + 1) / 2 * (length - 1) if corners else ((at[..., i] + 1) * length - 1) / 2
                for i, length in ((0, 7), (1, 6))
            )
            found.append(sample(x, column, row, sampling, padding))
        unit = sample(x, at[..., 0] * 6, at[..., 1] * 5, "bilinear", "border")
        return [*found, unit, sample(x, at[..., 0], at[..., 1], "bilinear", "border")]

    return Case(inputs, body, want)


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


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "add": binary("add", np.add, -3, 3),
    "sub": binary("sub", np.subtract, -3, 3),
    "mul": binary("mul", np.multiply, -3, 3),
    "real_div": binary("real_div", np.divide, 0.5, 3),
    "floor_div": binary("floor_div", np.floor_divide, 0.5, 3),
    "mod": binary("mod", np.mod, 0.5, 3),
    "pow": binary("pow", np.power, 0.5, 2),
    "maximum": binary("maximum", np.maximum, -3, 3),
    "minimum": binary("minimum", np.minimum, -3, 3),
    "equal": binary("equal", np.equal, -3, 3),
    "not_equal": binary("not_equal", np.not_equal, -3, 3),
    "less": binary("less", np.less, -3, 3),
    "less_equal": binary("less_equal", np.less_equal, -3, 3),
    "greater": binary("greater", np.greater, -3, 3),
    "greater_equal": binary("greater_equal", np.greater_equal, -3, 3),
    "logical_and": logical("logical_and", np.logical_and),
    "logical_or": logical("logical_or", np.logical_or),
    "logical_xor": logical("logical_xor", np.logical_xor),
    "logical_not": lambda rng: Case(
        {"x": normal(rng, 20)}, lambda x: mb.logical_not(x=mb.greater(x=x, y=0.0)), lambda x: [x <= 0]
    ),
    "abs": unary("abs", np.abs),
    "ceil": unary("ceil", np.ceil),
    "cos": unary("cos", np.cos),
    "erf": unary("erf", special.erf),
    "exp": unary("exp", np.exp),
    "exp2": unary("exp2", np.exp2),
    "floor": unary("floor", np.floor),
    "identity": unary("identity", np.array),
    "relu": unary("relu", lambda x: np.maximum(x, 0)),
    "relu6": unary("relu6", lambda x: x.clip(0, 6), -3, 9),
    "round": unary("round", np.rint),
    "sigmoid": unary("sigmoid", special.expit),
    "sign": unary("sign", np.sign),
    "silu": unary("silu", lambda x: x * special.expit(x)),
    "sin": unary("sin", np.sin),
    "softplus": unary("softplus", lambda x: np.log1p(np.exp(x))),
    "sqrt": unary("sqrt", np.sqrt, 0, 9),
    "square": unary("square", np.square),
    "tanh": unary("tanh", np.tanh),
    "rsqrt": with_epsilon("rsqrt", lambda x: 1 / np.sqrt(x)),
    "inverse": with_epsilon("inverse", lambda x: 1 / x),
    "log": with_epsilon("log", np.log),
    "clip": case_clip,
    "leaky_relu": case_leaky_relu,
    "gelu": case_gelu,
    "cast": case_cast,
    "select": case_select,
    "reduce_mean": reduction("reduce_mean", np.mean),
    "reduce_sum": reduction("reduce_sum", np.sum),
    "reduce_max": reduction("reduce_max", np.max),
    "reduce_min": reduction("reduce_min", np.min),
    "reduce_l2_norm": reduction("reduce_l2_norm", lambda x, **how: np.sqrt(np.sum(x**2, **how))),
    "reduce_sum_square": reduction("reduce_sum_square", lambda x, **how: np.sum(x**2, **how)),
    "softmax": case_softmax,
    "layer_norm": case_layer_norm,
    "instance_norm": case_instance_norm,
    "batch_norm": case_batch_norm,
    "l2_norm": case_l2_norm,
    "reshape": case_reshape,
    "transpose": case_transpose,
    "expand_dims": case_expand_dims,
    "squeeze": case_squeeze,
    "concat": case_concat,
    "stack": case_stack,
    "split": case_split,
    "slice_by_index": case_slice_by_index,
    "slice_by_size": case_slice_by_size,
    "slice_update": case_slice_update,
    "tile": case_tile,
    "shape": case_shape,
    "gather": case_gather,
    "gather_along_axis": case_gather_along_axis,
    "pad": case_pad,
    "pixel_shuffle": case_pixel_shuffle,
    "pixel_unshuffle": case_pixel_unshuffle,
    "linear": case_linear,
    "matmul": case_matmul,
    "einsum": case_einsum,
    "scaled_dot_product_attention": case_attention,
    "conv": case_conv,
    "avg_pool": case_avg_pool,
    "max_pool": case_max_pool,
    "upsample_nearest_neighbor": case_nearest,
    "upsample_bilinear": case_bilinear,
    "resample": case_resample,
    "constexpr_blockwise_shift_scale": case_shift_scale,
    "constexpr_lut_to_dense": case_lut_to_dense,
    "constexpr_sparse_to_dense": case_sparse_to_dense,
    "constexpr_lut_to_sparse": case_lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": case_sparse_shift_scale,
    "quantize": case_quantize,
    "dequantize": case_dequantize,
}
