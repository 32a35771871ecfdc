"""The degradation: kernels against their definitions, noise against its statistics, parameters against the preset."""

from __future__ import annotations

import math
from collections import Counter

import cv2
import msgspec
import numpy as np
import pytest

from livemoments.distances import psnr_db
from livemoments.errors import UsageError
from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size
from livemoments.validate.synlive.degradation import (
    Blur,
    Degradation,
    Jpeg,
    Noise,
    Resize,
    apply,
    image_rng,
    sample_degradation,
)
from livemoments.validate.synlive.kernels import bessel_j1, blur_kernel, sinc_kernel
from livemoments.validate.synlive.presets import PRESETS, load_preset

SIZE = Size(128, 160)


def one(step: Blur | Resize | Noise | Jpeg, size: Size = SIZE) -> Degradation:
    return Degradation(width=size.width, height=size.height, steps=(step,))


# --- kernels


def test_bessel() -> None:
    # Abramowitz and Stegun, table 9.1, and j1's first zero
    known = {0.0: 0.0, 1.0: 0.4400505857, 5.0: -0.3275791376, 10.0: 0.0434727462, 3.8317059702: 0.0}
    np.testing.assert_allclose(bessel_j1(np.array(list(known))), list(known.values()), atol=1e-9)
    far = np.array([50.0, 120.0, 200.0])
    # Hankel's expansion, two terms
    phase = far - 0.75 * np.pi
    asymptotic = np.sqrt(2 / (np.pi * far)) * (np.cos(phase) - 3 / (8 * far) * np.sin(phase))
    np.testing.assert_allclose(bessel_j1(far), asymptotic, atol=2e-5)


def test_the_sinc_kernel_is_a_low_pass() -> None:
    cutoff = np.pi / 2
    spectrum = np.abs(np.fft.fft2(sinc_kernel(51, cutoff), (256, 256)))
    frequency = 2 * np.pi * np.fft.fftfreq(256)
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    assert abs(spectrum[radius < 0.7 * cutoff] - 1).max() < 0.1
    assert spectrum[radius > 1.3 * cutoff].max() < 0.1


def test_gaussians() -> None:
    line = cv2.getGaussianKernel(21, 1.7)
    np.testing.assert_allclose(blur_kernel("iso", 21, (1.7, 1.7), 0.3, 1.0), line @ line.T, atol=1e-12)
    kernel = blur_kernel("aniso", 41, (4.0, 1.5), 0.5, 1.0)
    y, x = np.mgrid[-20:21, -20:21]
    moments = np.array([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])
    turn = np.array([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    np.testing.assert_allclose(moments, turn @ np.diag([16.0, 2.25]) @ turn.T, rtol=0.01)


@pytest.mark.parametrize("kind", ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "sinc"])
def test_kernels_are_symmetric_and_of_unit_sum(kind: str) -> None:
    step = Blur(kind=kind, side_px=13, sigma_px=(2.0, 1.0), angle=1.0, beta=1.5, cutoff=2.0)  # type: ignore[arg-type]
    kernel = step.kernel()
    assert kernel.shape == (13, 13)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-15)


def test_shapes_of_the_other_kernels() -> None:
    gaussian = blur_kernel("iso", 21, (2.0, 2.0), 0, 1.0)
    np.testing.assert_allclose(blur_kernel("generalized_iso", 21, (2.0, 2.0), 0, 1.0), gaussian)
    middle = gaussian[10]
    flat = blur_kernel("generalized_iso", 21, (2.0, 2.0), 0, 3.0)[10]
    assert flat[11] / flat[10] > middle[11] / middle[10]
    plateau = blur_kernel("plateau_iso", 21, (2.0, 2.0), 0, 2.0)
    assert plateau[10, 12] / plateau[10, 10] == pytest.approx(0.5)  # at one sigma


def test_bad_kernels_are_refused() -> None:
    for bad in (lambda: blur_kernel("iso", 4, (1, 1), 0, 1), lambda: blur_kernel("iso", 5, (0, 1), 0, 1)):
        with pytest.raises(UsageError):
            bad()
    with pytest.raises(UsageError, match="cutoff"):
        sinc_kernel(7, 4.0)


# --- noise and the other steps


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(("kind", "amount", "sigma"), [("gaussian", 6.0, 6.0), ("poisson", 0.8, 0.8 * math.sqrt(100))])
def test_noise_has_the_sigma_that_its_parameters_say(kind: str, amount: float, sigma: float, grey: bool) -> None:
    image = np.full((256, 256, 3), 100, np.uint8)
    step = Noise(kind=kind, amount=amount, grey=grey)  # type: ignore[arg-type]
    noise = apply(one(step, Size(256, 256)), image, np.random.default_rng(1)).astype(float) - 100
    assert noise.std() == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=0.03)
    assert abs(noise.mean()) < 0.15
    between = np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]
    assert between == pytest.approx(1.0 if grey else 0.0, abs=0.02)


def test_steps_do_what_they_say() -> None:
    image = synthetic_photograph(SIZE, seed=4)
    rng = np.random.default_rng(0)
    small = apply(one(Resize(width=80, height=64, mode="area")), image, rng)
    np.testing.assert_allclose(small, image.reshape(64, 2, 80, 2, 3).mean(axis=(1, 3)), atol=0.51)
    blurred = apply(one(Blur(kind="iso", side_px=15, sigma_px=(1.5, 1.5))), image, rng)
    wanted = cv2.GaussianBlur(image, (15, 15), 1.5, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(blurred.astype(int) - wanted).max() <= 1
    errors = [psnr_db(apply(one(Jpeg(quality=q)), image, rng), image, 255) for q in (30, 60, 95)]
    assert errors == sorted(errors)
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 250
    assert np.abs(apply(one(Jpeg(quality=95), Size(32, 32)), red, rng).astype(int) - red).max() < 6, "channels in order"


# --- sampling


@pytest.mark.parametrize("name", PRESETS)
def test_samples_lie_in_the_presets_ranges(name: str) -> None:
    preset = load_preset(name)
    count = 400
    kinds: Counter[str] = Counter()
    blurs: Counter[int] = Counter()
    for number in range(count):
        sample = sample_degradation(image_rng(3, str(number)), name, SIZE)
        assert sample.output == Size(64, 80)
        stage = 0
        for step in sample.steps:
            ranges = preset.stages[stage]
            if isinstance(step, Blur):
                blurs[stage] += 1
                assert ranges.kernel_px[0] <= step.side_px <= ranges.kernel_px[1]
                assert step.side_px % 2 == 1
                if step.kind == "sinc":
                    assert (np.pi / 3 if step.side_px < 13 else np.pi / 5) <= step.cutoff <= np.pi
                else:
                    assert all(ranges.sigma_px[0] <= sigma <= ranges.sigma_px[1] for sigma in step.sigma_px)
                    low, high = (1.0, 1.0)
                    if step.kind.startswith("generalized"):
                        low, high = ranges.beta_generalized
                    elif step.kind.startswith("plateau"):
                        low, high = ranges.beta_plateau
                    assert low <= step.beta <= high
                if stage == 0:
                    kinds[step.kind] += 1
            elif isinstance(step, Noise):
                low, high = ranges.gaussian_sigma if step.kind == "gaussian" else ranges.poisson_scale
                assert low <= step.amount <= high
                stage = min(1, stage)
            elif isinstance(step, Jpeg):
                assert ranges.jpeg[0] <= step.quality <= ranges.jpeg[1]
                stage = 1
    wanted = (1 - preset.stages[0].sinc_prob) * preset.stages[0].kernels["iso"] * count
    assert abs(kinds["iso"] - wanted) < 4 * math.sqrt(wanted)
    assert blurs[0] == count
    least = preset.stages[1].blur_prob * count
    assert least - 50 < blurs[1] < least + preset.final_sinc_prob * count + 50


def test_the_order_is_real_esrgans() -> None:
    last_two = Counter()
    for number in range(200):
        sample = sample_degradation(image_rng(0, str(number)), "real-esrgan", SIZE)
        names = "".join(type(step).__name__[0] for step in sample.steps)
        assert names.startswith("BRNJ")
        tail = names[4:].removeprefix("B")
        assert tail in ("RNRJ", "RNRBJ", "RNJR", "RNJRB")
        last_two[tail.startswith("RNJ")] += 1
    assert 60 < last_two[True] < 140


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_seeds_give_equal_pixels_with_any_number_of_threads(preset: str) -> None:
    image = synthetic_photograph(Size(256, 320), seed=1)
    threads = cv2.getNumThreads()
    try:
        results = []
        for count in (1, 2, 4):
            cv2.setNumThreads(count)
            results.append([])
            for number in range(6):
                sample = sample_degradation(image_rng(7, str(number)), preset, Size(256, 320))
                results[-1].append(apply(sample, image, image_rng(8, str(number))))
    finally:
        cv2.setNumThreads(threads)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_one_degradation_differs_between_images_by_its_noise_only() -> None:
    image = synthetic_photograph(SIZE, seed=2)
    sample = sample_degradation(image_rng(0, "a"), "live-photo", SIZE)
    first, again, second = (apply(sample, image, image_rng(0, name)) for name in ("x", "x", "y"))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert psnr_db(first, second, 255) > 30
    still = msgspec.structs.replace(sample, steps=tuple(step for step in sample.steps if not isinstance(step, Noise)))
    np.testing.assert_array_equal(apply(still, image, image_rng(0, "x")), apply(still, image, image_rng(0, "y")))


def test_parameters_are_data() -> None:
    for preset in PRESETS:
        sample = sample_degradation(image_rng(1, preset), preset, SIZE)
        assert msgspec.json.decode(msgspec.json.encode(sample), type=Degradation) == sample


def test_live_photo_is_the_milder_one() -> None:
    image = cv2.GaussianBlur(synthetic_photograph(SIZE, seed=3), (0, 0), 2)  # as smooth as a frame of a 4K video
    means = {}
    for preset in PRESETS:
        found = []
        for number in range(12):
            out = apply(sample_degradation(image_rng(0, str(number)), preset, SIZE), image, image_rng(1, str(number)))
            found.append(psnr_db(cv2.resize(out, (160, 128), interpolation=cv2.INTER_CUBIC), image, 255))
        means[preset] = np.mean(found)
    assert means["live-photo"] > means["real-esrgan"] + 2


def test_bad_uses_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="'harsh' is not a degradation"):
        sample_degradation(rng, "harsh", SIZE)
    with pytest.raises(UsageError, match="divided by 2"):
        sample_degradation(rng, "live-photo", Size(63, 64))
    with pytest.raises(UsageError, match="use a larger image"):
        sample_degradation(rng, "live-photo", Size(16, 16))
    sample = sample_degradation(rng, "live-photo", SIZE)
    with pytest.raises(UsageError, match=r"\(128, 160, 3\)"):
        apply(sample, np.zeros((160, 128, 3), np.uint8), rng)


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_presets_are_ranges_that_can_be_drawn_from(name: str) -> None:
    for stage in load_preset(name).stages:
        ranges = (stage.kernel_px, stage.sigma_px, stage.beta_generalized, stage.beta_plateau)
        for low, high in (*ranges, stage.gaussian_sigma, stage.poisson_scale, stage.jpeg):
            assert low <= high
        assert all(side % 2 for side in stage.kernel_px)
        assert stage.resize[0] <= 1 <= stage.resize[1]
        assert sum(stage.kernels.values()) == pytest.approx(1)
        assert sum(stage.resize_odds) == pytest.approx(1)
