"""The VAE window by window: where its networks are local the picture is the same, and what it says of itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from restore_images import FRAME, KEY_FRAME, PHOTO

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime import restore
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.options import RestoreOptions, vae_sizes
from livemoments.runtime.tiles.vae import TileVae, vae_windows
from livemoments.types import Size, Stage

TILE, WINDOW = Size(64, 64), Size(48, 32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("vae") / "bundle", tiles=(TILE, WINDOW))


def test_windows_cover_a_tile_and_overlap() -> None:
    windows = vae_windows(Size(512, 768), Size(256, 256), 8)
    covered = np.zeros((64, 96), int)
    for window in windows:
        assert (window.height, window.width) == (32, 32)
        covered[window.y : window.y + 32, window.x : window.x + 32] += 1
    assert covered.min() == 1
    columns = sorted({window.x for window in windows})
    assert max(b - a for a, b in itertools.pairwise(columns)) <= 32 - 8
    assert len(vae_windows(Size(64, 64), None, 8)) == 1
    assert len(vae_windows(Size(64, 64), Size(128, 64), 8)) == 1
    with pytest.raises(UsageError, match="VAE windows of 128x32 do not fit into tiles of 64x64"):
        vae_windows(Size(64, 64), Size(32, 128), 8)


def test_networks_that_are_local_give_the_same(bundle: Bundle) -> None:
    """The stand-ins' convolutions see a latent pixel's own 8 x 8 pixels: windows add rounding alone."""
    rng = np.random.default_rng()
    images = rng.uniform(-1, 1, (2, 3, TILE.height, TILE.width)).astype(np.float32)
    latent = rng.standard_normal((2, 16, TILE.height // 8, TILE.width // 8)).astype(np.float32)
    with EnginePool(bundle, OrtBackend("cpu", 1), TILE) as pool:
        whole, windows = TileVae(pool), TileVae(pool, WINDOW)
        for found, expected in zip(windows.encode(images), whole.encode(images), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(windows.decode(latent), whole.decode(latent), atol=1e-5)


def test_only_the_vae_sees_windows(bundle: Bundle) -> None:
    backend = LoggingBackend()
    whole = restore(bundle, FRAME, PHOTO, KEY_FRAME, tile=TILE, backend=LoggingBackend())
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, tile=TILE, vae_tile="32x48", backend=backend)
    assert np.abs(found.image.astype(int) - whole.image).max() <= 1
    windows = len(vae_windows(TILE, WINDOW, 8))
    assert windows > 1
    assert len(backend.runs(Stage.VAE_ENCODER)) == 2 * windows * len(found.plan.tiles)
    assert len(backend.runs(Stage.VAE_DECODER)) == windows * len(found.plan.tiles)
    assert len(backend.runs(Stage.MOTION)) == len(found.plan.tiles)
    assert (found.metadata["vae_tile"], "vae_tile" in whole.metadata) == ("32x48", False)


def test_a_size_that_the_vae_does_not_have_is_refused(bundle: Bundle) -> None:
    assert vae_sizes(bundle) == (WINDOW, TILE)
    with pytest.raises(UsageError, match="VAE has no graphs for 16x16; it has 32x48, 64x64"):
        restore(bundle, FRAME, PHOTO, KEY_FRAME, vae_tile="16x16")


def test_windows_are_part_of_what_was_computed() -> None:
    options = RestoreOptions(vae_tile="48x32")
    assert options.key() != RestoreOptions().key()
    assert options.arguments() == ["--vae-tile", "48x32"]
    assert options.to_json()["vae_tile"] == "48x32"


def test_group_norm_and_attention_see_the_whole_tile(tiny_bundle: Path) -> None:
    """Why windows are never said to be exact: far from the seam, too, the real decoder's window is another picture."""
    from livemoments.ort import open_session

    bundle = Bundle.open(tiny_bundle, verify_hashes=False)
    session = open_session(bundle.path / bundle.graph(Stage.VAE_DECODER, Size(128, 128)).path)
    latent = np.random.default_rng().standard_normal((1, 16, 16, 16)).astype(np.float32)
    other = latent.copy()
    other[..., 15, 15] += 3
    images = [session.run(["image"], {"latent": given})[0] for given in (latent, other)]
    corner = np.s_[..., :16, :16]
    assert np.abs(images[0][corner] - images[1][corner]).max() > 1e-4
