"""Resizing and sampling, by numpy and scipy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from coreml_case import Array, Case, normal
from coreml_programs import mb
from scipy import ndimage

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
