"""Arithmetic, comparisons, activations, reductions and casts, by numpy and scipy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from coreml_case import Array, Case, normal
from coreml_programs import mb
from scipy import special


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
