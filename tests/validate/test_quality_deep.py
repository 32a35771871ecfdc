"""The deep metrics: what is missing is said, local weights are found, tiles are averaged, nothing reaches the network.

The packages themselves are stand-ins with the real ones' interfaces (``iqa_support``): their networks cannot run here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from iqa_support import fake_packages, modules, picture
from places import ROOT

from livemoments.errors import EngineError, UsageError
from livemoments.types import Size
from livemoments.validate.quality import lpips_dists_piq
from livemoments.validate.quality.meter import QualityMeter, cosine, relative_deviation
from livemoments.validate.quality.networks import Adapters
from livemoments.validate.quality.registry import BY_NAME, SPECS, select
from livemoments.validate.quality.tiling import direction, divide, patches, tile_mean
from livemoments.validate.quality.weights import missing, offline


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[None]:
    """The stand-ins where ``import`` finds them."""
    planted = fake_packages()
    own = tmp_path / "site-packages" / "DISTS_pytorch"
    own.mkdir(parents=True)
    torch.save({"alpha": torch.full((1, 2, 1, 1), 0.25), "beta": torch.full((1, 2, 1, 1), 0.25)}, own / "weights.pt")
    planted["DISTS_pytorch"].__file__ = str(own / "__init__.py")
    with modules(**planted):
        yield


def plant(folder: Path, *names: str, scale: float = 2.0) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"scale": torch.tensor(scale)}, folder / name)
    return folder


# What is missing


def test_default_all_and_unknown_names() -> None:
    assert [spec.name for spec in select()] == ["psnr_y", "ssim_y", "ms_ssim_y"]
    assert select("default,lpips") == (*select(), BY_NAME["lpips"])
    assert select("all") == SPECS
    assert len(BY_NAME) == len(SPECS)
    with pytest.raises(UsageError, match="'psnr' is no metric") as caught:
        select("psnr,ssim_y")
    assert all(spec.name in str(caught.value.fix) for spec in SPECS)
    with pytest.raises(UsageError, match="no metric was named"):
        select(" , ")


def test_every_relative_metric_has_its_plain_one() -> None:
    for spec in SPECS:
        if spec.kind == "relative":
            base = BY_NAME[str(spec.base)]
            assert (base.kind, base.sources, base.least_side_px) == ("solo", spec.sources, spec.least_side_px)
        assert bool(spec.sources) == (spec.kind != "fidelity")
        assert ("pyiqa" in spec.sources[0].modules if spec.sources else False) == (spec.licence is not None)


def test_every_metric_and_file_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "quality.md").read_text()
    for spec in SPECS:
        assert f"`{spec.name}`" in page
        for source in spec.sources:
            assert all(f"`{name}`" in page for name in source.files)
            assert source.extra is None or f"`{source.extra}`" in page


def test_a_missing_extra_is_said(tmp_path: Path) -> None:
    weights = plant(tmp_path, "alexnet-owt-7be5be79.pth", "musiq_koniq_ckpt-e95806b9.pth")
    assert missing(BY_NAME["lpips"], weights) == "needs the extra 'iqa': pip install 'livemoments-deploy[iqa]'"
    reason = missing(BY_NAME["musiq_re"], weights)
    assert reason is not None
    assert reason.startswith("needs the extra 'iqa-nc': pip install 'livemoments-deploy[iqa-nc]'")
    assert "not for commercial use" in reason


@pytest.mark.usefixtures("packages")
def test_missing_weights_are_said_and_no_number_is_made_up(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    pixels = picture(200, 256, seed=1)
    meter = QualityMeter("all", weights=folder)
    found = meter.measure(pixels, pixels, pixels, pixels)
    for spec in SPECS:
        if spec.sources:
            assert found.metrics.get(spec.name) is None
            assert meter.problems[spec.name].startswith(f"weights not found: put {spec.sources[0].files[0]}"), spec.name
            assert f"into {folder} (from " in meter.problems[spec.name]
    assert not found.features
    assert "name it with --iqa-weights" in str(missing(BY_NAME["lpips"], None))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder of the metrics' weights is not there"):
        QualityMeter("lpips", weights=tmp_path / "none")


# The packages' adapters


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("place", ["", "hub/checkpoints/", "checkpoints/"])
def test_lpips_and_dists_read_their_weights_from_the_folder(tmp_path: Path, place: str) -> None:
    weights = plant(tmp_path / "w", f"{place}alexnet-owt-7be5be79.pth", f"{place}vgg16-397923af.pth", scale=3.0)
    truth, pixels = picture(300, 300, seed=2), picture(300, 300, seed=3)
    before = torch.hub.get_dir()
    meter = QualityMeter("lpips,dists", weights=weights, tile_px=128)
    found = meter.measure(pixels, None, None, truth).metrics
    assert meter.problems == {}
    difference = np.abs(pixels.astype(float) - truth).mean() / 255
    assert found["lpips"] == pytest.approx(3.0 * difference, rel=1e-5)
    assert found["dists"] is not None
    assert found["dists"] > 0
    assert meter.measure(truth, None, None, truth).metrics == {"lpips": 0.0, "dists": 0.0}
    assert torch.hub.get_dir() == before


@pytest.mark.usefixtures("packages")
def test_pyiqa_reads_its_weights_from_the_folder_and_gives_the_relative_form(tmp_path: Path) -> None:
    weights = plant(
        tmp_path / "w",
        "hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth",
        "pyiqa/niqe_modelparameters.mat",
        "hub/clip/RN50.pt",
        "ckpt_koniq10k.pt",
    )
    pixels, photo = picture(320, 300, seed=4), picture(240, 260, seed=5)
    names = ["niqe", "musiq", "clipiqa", "maniqa"]
    meter = QualityMeter([*names, *(f"{name}_re" for name in names)], weights=weights)
    found = meter.measure(pixels, None, photo, None).metrics
    assert meter.problems == {}
    expected = 2 * pixels.mean() / 255
    for name in names:
        assert found[name] == pytest.approx(expected, rel=1e-5)
        assert found[f"{name}_re"] == pytest.approx(abs(pixels.mean() - photo.mean()) / photo.mean(), rel=1e-4)


@pytest.mark.usefixtures("packages")
def test_the_fids_inception_is_read_through_piq(tmp_path: Path) -> None:
    weights = plant(tmp_path / "w", "pt_inception-2015-12-05-6726825d.pth", scale=1.0)
    pixels = picture(520, 1030, seed=6)
    found = QualityMeter("fid_512", weights=weights).measure(pixels, None, None, pixels)
    assert found.metrics == {}
    assert found.features["fid_512.output"].shape == (2, 6)
    first = pixels[:512, :512].reshape(-1, 3) / 255
    np.testing.assert_allclose(found.features["fid_512.truth"][0, :3], first.mean(axis=0), rtol=1e-4)


@pytest.mark.usefixtures("packages")
def test_a_package_that_wants_to_download_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plant(tmp_path, "alexnet-renamed.pth") / "alexnet-renamed.pth"
    with pytest.raises(EngineError, match="wanted to reach the network"):
        lpips_dists_piq.load_lpips(file, "cpu")
    monkeypatch.setattr("livemoments.validate.quality.networks.open_source", lambda spec, _: (spec.sources[0], file))
    plant(tmp_path, "alexnet-owt-7be5be79.pth")
    adapters = Adapters(select("lpips"), tmp_path)
    assert adapters.get(BY_NAME["lpips"]) is None
    assert adapters.problems["lpips"].startswith("could not be loaded: a metric's package wanted to reach the network")


@pytest.mark.usefixtures("packages")
def test_weights_that_are_code_are_refused(tmp_path: Path) -> None:
    """pyiqa unpickles with ``weights_only=False``; here that gives tensors or nothing."""

    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('code in the weights was run')",)

    torch.save({"scale": Planted()}, tmp_path / "musiq_koniq_ckpt-e95806b9.pth")
    meter = QualityMeter("musiq", weights=tmp_path)
    meter.open()
    assert meter.problems["musiq"].startswith("could not be loaded: UnpicklingError")


def test_offline_stops_connections_and_leaves_everything_as_it_was() -> None:
    import os

    attributes = [(socket, "getaddrinfo"), (socket.socket, "connect"), (torch, "load"), (torch.hub, "get_dir")]
    before = [getattr(owner, name) for owner, name in attributes]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with offline(), socket.socket() as client:
            assert os.environ["HF_HUB_OFFLINE"] == "1"
            for attempt in (
                lambda: client.connect(server.getsockname()),
                lambda: client.connect_ex(server.getsockname()),
                lambda: socket.create_connection(("localhost", 9)),
                lambda: torch.hub.download_url_to_file("https://host.invalid/x", "x"),
            ):
                with pytest.raises(EngineError, match="reach the network"):
                    attempt()
        with socket.socket() as client:
            client.connect(server.getsockname())
    assert [getattr(owner, name) for owner, name in attributes] == before
    assert "connect" not in vars(socket.socket)


# Tiles


def test_tiles_cover_every_pixel_once() -> None:
    for size in (Size(3000, 4000), Size(1024, 1024), Size(1025, 7), Size(1, 1)):
        seen = np.zeros((size.height, size.width), np.uint8)
        for tile in divide(size):
            assert max(tile.height, tile.width) <= 1024
            seen[tile.window] += 1
        assert (seen == 1).all()
    sides = [side for tile in divide(Size(3000, 4000)) for side in (tile.height, tile.width)]
    assert min(sides) > 512


def test_means_are_weighted_by_area() -> None:
    pixels = picture(250, 310, seed=7, dtype=np.uint16)
    other = picture(250, 310, seed=8, dtype=np.uint16)
    unit = pixels / 65535
    areas: set[tuple[int, ...]] = set()
    tile_mean(lambda tile: areas.add(tile.shape) or 0.0, pixels, longest_px=100)  # type: ignore[func-returns-value]
    assert len(areas) > 1
    assert tile_mean(lambda tile: float(tile.mean()), pixels, longest_px=100) == pytest.approx(unit.mean(), rel=1e-6)
    mean = tile_mean(lambda a, b: float(np.abs(a - b).mean()), pixels, other, longest_px=100)
    assert mean == pytest.approx(np.abs(unit - other / 65535).mean(), rel=1e-6)
    features = tile_mean(lambda tile: direction(np.array([3.0, 4.0]) * tile.size), pixels, longest_px=100)
    np.testing.assert_allclose(features, [0.6, 0.8])


def test_patches_are_whole_and_begin_at_the_corner() -> None:
    pixels = picture(129, 200, seed=9)
    found = list(patches(pixels, 64))
    assert [patch.shape for patch in found] == [(64, 64, 3)] * 6
    np.testing.assert_array_equal(found[4] * 255, pixels[64:128, 64:128])


# A planted metric: the relative form, the cosine, guards


def test_the_relative_form_of_a_planted_metric() -> None:
    """Equation 7, with the picture's mean level for a metric."""
    photo = np.full((70, 60, 3), 200, np.uint8)
    output, upscaled = np.full((90, 80, 3), 150, np.uint8), np.full((90, 80, 3), 50, np.uint8)
    calls = []

    def level(tile: np.ndarray) -> float:
        calls.append(tile.shape)
        return float(tile.mean()) * 255

    meter = QualityMeter("musiq,musiq_re", planted={"musiq": level})
    found = meter.measure(output, upscaled, photo, None)
    assert found.metrics == {"musiq": pytest.approx(150), "musiq_re": pytest.approx(0.25)}
    assert found.input_metrics == {"musiq": pytest.approx(50), "musiq_re": pytest.approx(0.75)}
    assert len(calls) == 3  # each picture once
    assert meter.measure(output, None, None, None).metrics["musiq_re"] is None
    assert meter.measure(output, None, np.zeros_like(photo), None).metrics["musiq_re"] is None  # scores 0


def test_guards() -> None:
    assert relative_deviation(1.0, 0.0) is None
    assert relative_deviation(1.0, float("nan")) is None
    assert relative_deviation(1.0, -2.0) == 1.5
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 0.0])) is None
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(2**-0.5)
    small = picture(150, 150, seed=10)
    meter = QualityMeter("niqe", planted={"niqe": lambda tile: float("nan")})
    assert meter.measure(small).metrics == {"niqe": None}  # smaller than 192 pixels
    assert meter.measure(picture(200, 200, seed=10)).metrics == {"niqe": None}  # not finite
    with pytest.raises(UsageError, match="different sizes cannot be compared: 150x150 and 150x151"):
        meter.measure(small, truth=picture(151, 150, seed=10))


def test_a_network_that_fails_names_the_metric() -> None:
    def fail(value: np.ndarray, reference: np.ndarray) -> float:
        raise RuntimeError("out of memory\nat line 3")

    pixels = picture(64, 64, seed=11)
    with pytest.raises(EngineError, match=r"the metric lpips failed: out of memory$"):
        QualityMeter("lpips", planted={"lpips": fail}).measure(pixels, truth=pixels)
