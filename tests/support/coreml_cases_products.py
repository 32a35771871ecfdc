"""Products, convolutions, attention and normalisations, by numpy and scipy in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from coreml_case import Array, Case, normal
from coreml_programs import mb
from scipy import signal, special

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
