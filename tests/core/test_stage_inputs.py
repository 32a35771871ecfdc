"""Made-up inputs of a stage: the magnitudes that the runtime feeds, in the shapes that graphs ask for."""

from __future__ import annotations

import numpy as np
import pytest

from livemoments.natural_images import FLOW_STD_PX
from livemoments.stage_inputs import FREE_SIZE, draw_input
from livemoments.types import Size, TensorSpec

PIXELS = ("batch", 3, "height", "width")


def test_free_axes_get_the_lengths_that_are_asked_for() -> None:
    rng = np.random.default_rng()
    spec = TensorSpec("image1", "float32", PIXELS)
    assert draw_input(spec, rng).shape == (1, 3, FREE_SIZE.height, FREE_SIZE.width)
    assert draw_input(spec, rng, batch=2, size=Size(48, 64)).shape == (2, 3, 48, 64)
    assert draw_input(TensorSpec("reference_k.0", "float16", ("batch", 7, 5)), rng, batch=3).shape == (3, 7, 5)


def test_magnitudes_are_those_of_the_runtime() -> None:
    rng = np.random.default_rng()
    image = draw_input(TensorSpec("image", "float16", PIXELS), rng)
    assert -1 <= image.min() < -0.5 < 0.5 < image.max() <= 1
    flow = draw_input(TensorSpec("flow", "float32", ("batch", 2, 64, 64)), rng)
    assert flow.std() == pytest.approx(FLOW_STD_PX, rel=1e-3)
    latent = draw_input(TensorSpec("latent", "float32", ("batch", 16, 32, 32)), rng)
    assert latent.std() == pytest.approx(1, rel=1e-3)
    keys = draw_input(TensorSpec("reference_kv", "float32", (4, 2, "batch", 64, 64)), rng)
    assert keys.std() == pytest.approx(0.3, rel=0.05)
    assert {array.dtype for array in (image, flow, latent, keys)} == {np.dtype(np.float32)}


def test_the_step_is_the_point_and_noise_comes_from_the_generator_alone() -> None:
    step = draw_input(TensorSpec("step", "int64", ()), np.random.default_rng(), point=5)
    assert (step.shape, step.dtype, int(step)) == ((), np.int64, 5)
    spec = TensorSpec("latent", "float32", ("batch", 4, 16, 16))
    first, again, other = (draw_input(spec, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
