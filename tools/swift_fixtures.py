"""Record what the Python runtime computes, for the Swift package's tests.

    python tools/swift_fixtures.py [FILE]      # swift/Tests/LiveMomentsTests/recorded.json

Everything comes from the runtime's own functions. The stages are invented arithmetic, which the Swift tests have too.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fake_bundle import make_fake_bundle  # noqa: E402

from livemoments.bundle import Bundle  # noqa: E402
from livemoments.runtime.backends.base import Array, Backend, Engine, to_host  # noqa: E402
from livemoments.runtime.color import wavelet_color_fix  # noqa: E402
from livemoments.runtime.image_files.photo import Photo  # noqa: E402
from livemoments.runtime.noise import TileNoise  # noqa: E402
from livemoments.runtime.resize import BicubicView, PhotoView  # noqa: E402
from livemoments.runtime.restore import restore  # noqa: E402
from livemoments.runtime.tiles.blend import Blender  # noqa: E402
from livemoments.runtime.tiles.correspondence import mean_flow, reference_corner  # noqa: E402
from livemoments.runtime.tiles.plan import plan_balanced  # noqa: E402
from livemoments.types import Size, Stage, Tile  # noqa: E402

OUTPUT = ROOT / "swift" / "Tests" / "LiveMomentsTests" / "recorded.json"


class InventedEngine(Engine):
    """One stage; each output depends on each input."""

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        x = {name: to_host(value) for name, value in inputs.items()}
        return getattr(self, f"_{self.stage}")(x)

    def _flow(self, x: dict[str, np.ndarray]) -> dict[str, Array]:
        drift = np.array([5, -3], np.float32).reshape(1, 2, 1, 1)  # which PCR follows
        return {"flow": np.float32(4) * (x["image2"] - x["image1"])[:, :2] + drift}

    def _vae_encoder(self, x: dict[str, np.ndarray]) -> dict[str, Array]:
        image, channels = x["image"][0], range(16)
        mean = np.stack([image[c % 3, c % 8 :: 8, 3 * c % 8 :: 8] for c in channels])
        std = np.stack([1 + image[(c + 1) % 3, ::8, ::8] for c in channels])
        return {"mean": np.float32(0.5) * mean[None], "std": np.float32(0.05) * std[None]}

    def _motion(self, x: dict[str, np.ndarray]) -> dict[str, Array]:
        tokens = x["flow"][0, :, ::16, ::16].reshape(2, -1).T[:, np.arange(8) % 2]
        return {"motion_bias": np.stack([np.float32(b + 1) * np.float32(0.01) * tokens[None] for b in range(2)])}

    def _reference(self, x: dict[str, np.ndarray]) -> dict[str, Array]:
        tokens = x["latent"][0, :, ::2, ::2].reshape(16, -1).T[None]
        when = np.float32(1) + np.float32(0.1) * np.float32(x["step"])
        keys: dict[str, Array] = {f"reference_k.{b}": np.float32(b + 1) * when * tokens[..., :8] for b in range(2)}
        return keys | {f"reference_v.{b}": when * tokens[..., 8:] for b in range(2)}

    def _restoration(self, x: dict[str, np.ndarray]) -> dict[str, Array]:
        latent = x["latent"]
        height, width = latent.shape[2:]
        total = np.float32(0.5) * latent

        def spread(tokens: np.ndarray) -> np.ndarray:
            """(1, N, 16) to (1, 16, h, w)."""
            grid = tokens[0].T.reshape(1, 16, height // 2, width // 2)
            return grid.repeat(2, axis=2).repeat(2, axis=3)

        channels = np.arange(16)
        for block in range(2):
            key = x[f"reference_k.{block}"] + x["motion_bias"][block]
            value = x[f"reference_v.{block}"]
            total += np.float32(0.1) * spread(key[..., channels % 8])
            total -= np.float32(0.2) * spread(value[..., (channels + 1) % 8])
        return {"velocity": total * (np.float32(1) + np.float32(0.05) * np.float32(x["step"]))}

    def _vae_decoder(self, x: dict[str, np.ndarray]) -> dict[str, Array]:
        wide = x["latent"].repeat(8, axis=2).repeat(8, axis=3)
        ramp = np.arange(wide.shape[3], dtype=np.float32) % 8 / np.float32(8)
        return {"image": wide[:, [0, 5, 10]] + wide[:, [1, 6, 11]] * ramp}


class InventedBackend(Backend):
    """Opens them with the manifest's names and shapes, which the base class checks."""

    name, provider = "invented", "numpy"

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """See :meth:`Backend.open`."""
        graph = bundle.graph(stage, size)
        return InventedEngine(stage, graph.inputs, graph.outputs)


class InventedNoise:
    """A noise that both languages make the same."""

    def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
        """See :class:`livemoments.runtime.noise.NoiseSource`."""
        count = np.arange(np.prod(latent_shape))

        def drawn(kind: int) -> np.ndarray:
            levels = (count * 7919 + tile.index * 104_729 + kind * 1_299_709) % 2001
            return (levels.astype(np.float32) / np.float32(1000) - np.float32(1)).reshape(latent_shape)

        return TileNoise(drawn(0), drawn(1), drawn(2))


def record() -> dict[str, Any]:
    """Everything, JSON-able; the same at every call."""
    rng = np.random.default_rng(14)
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_fake_bundle(Path(folder) / "bundle", step_counts=(3,))
        manifest = json.loads((bundle.path / "manifest.json").read_text())
        photos = [photo(bundle, size, steps, frozen) for size, steps, frozen in PHOTOS]
    flow = (rng.standard_normal((5, 7, 2)) * 3).astype(np.float32)
    mean = mean_flow(flow)
    return {
        "manifest": json.dumps(manifest, separators=(",", ":")),
        "plans": [plan(*case) for case in PLANS],
        "windows": windows(rng),
        "flow": array(flow),
        "mean": [mean.dx, mean.dy],
        "corners": corners(rng),
        "blend": blend(rng),
        "colours": [colours(rng, size) for size in (Size(7, 40), Size(37, 5))],
        "photos": photos,
    }


FRAME = Size(64, 77)
PHOTOS = ((Size(80, 96), 3, None), (Size(75, 90), 3, 1))
PLANS = (
    (Size(3072, 4096), [Size(1024, 1024), Size(768, 1024)], 64, False),
    (Size(64, 64), [Size(64, 64)], 0, False),
    (Size(65, 200), [Size(64, 64)], 16, False),
    (Size(100, 101), [Size(64, 64), Size(96, 64), Size(64, 96)], 16, False),
    (Size(40, 150), [Size(64, 64), Size(128, 128)], 8, True),
)


def plan(size: Size, tiles: list[Size], overlap: int, pad_small: bool) -> dict[str, Any]:
    found = plan_balanced(size, tiles, overlap, pad_small=pad_small)
    return {
        "size": str(size),
        "tiles": [str(tile) for tile in tiles],
        "overlap": overlap,
        "padSmall": pad_small,
        "padded": str(found.padded),
        "tile": str(found.tile),
        "corners": [[tile.y, tile.x] for tile in found.tiles],
    }


def windows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Resized up, down and not at all, seen beyond every edge."""
    found = []
    for source, size, at, window, padding, scale in (
        (Size(5, 6), Size(11, 14), (-3, -2), Size(16, 19), "reflect", None),
        (Size(9, 8), Size(5, 5), (-1, 1), Size(7, 6), "reflect", None),
        (Size(7, 6), Size(7, 6), (-2, -9), Size(11, 24), "reflect", None),
        (Size(4, 5), Size(9, 12), (-2, 3), Size(13, 12), "zero", [2.4, 2.25]),
    ):
        pixels = rng.random((source.height, source.width, 3 if scale is None else 2)).astype(np.float32)
        view = (
            PhotoView(pixels) if source == size else BicubicView(pixels, size, padding=padding, scale=scale)  # type: ignore[arg-type]
        )
        seen = view.window(*at, window.height, window.width)
        found.append(
            {
                "source": array(pixels),
                "size": str(size),
                "padding": padding,
                "scale": scale,
                "at": list(at),
                "window": array(seen),
            }
        )
    return found


def corners(rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for _ in range(40):
        tile = Tile(0, int(rng.integers(0, 100)), int(rng.integers(0, 150)), int(rng.integers(8, 80)), 64)
        mean = tuple(float(np.float32(value)) for value in rng.standard_normal(2) * rng.choice([0.7, 5, 60]))
        corner = reference_corner(tile, mean, Size(180, 214))  # type: ignore[arg-type]
        found.append(
            {
                "tile": [tile.y, tile.x, tile.height, tile.width],
                "mean": list(mean),
                "bounds": "214x180",
                "corner": [corner.y, corner.x],
                "clamped": corner.clamped,
            }
        )
    return found


def blend(rng: np.random.Generator) -> dict[str, Any]:
    """Four tiles of 8 x 10 on 12 x 15 pixels, two of which reach beyond the edges."""
    size, corners = Size(12, 15), [(-1, 0), (-1, 6), (5, 0), (5, 6)]
    blender = Blender(size, channels=2)
    values = [rng.standard_normal((8, 10, 2)).astype(np.float32) for _ in corners]
    for index, ((y, x), own) in enumerate(zip(corners, values, strict=True)):
        blender.add(Tile(index, y, x, 8, 10), own)
    return {
        "size": str(size),
        "tiles": [list(corner) for corner in corners],
        "values": [array(own) for own in values],
        "result": array(blender.finish()),
    }


def colours(rng: np.random.Generator, size: Size) -> dict[str, Any]:
    content = rng.random((size.height, size.width, 2)).astype(np.float32)
    style = (rng.random(content.shape) * 1.2 - 0.1).astype(np.float32)
    return {"content": array(content), "style": array(style), "result": array(wavelet_color_fix(content, style))}


def photo(bundle: Bundle, size: Size, steps: int, frozen: int | None) -> dict[str, Any]:
    """What the runtime restores of invented pictures with the invented stages."""
    result = restore(
        bundle,
        Photo(picture(FRAME, 1)),
        Photo(picture(size, 0)),
        Photo(picture(FRAME, 0)),
        noise=InventedNoise(),
        backend=InventedBackend(),
        steps=steps,
        reference="per-step" if frozen is None else f"frozen@{frozen}",
    )
    return {
        "size": str(size),
        "frame": str(FRAME),
        "steps": steps,
        "frozen": frozen,
        "result": base64.b64encode(result.image.tobytes()).decode(),
    }


def picture(size: Size, instant: int) -> np.ndarray:
    """(H, W, 3) uint8 of slanted triangle waves over the whole width, by integers alone; moved with ``instant``."""
    y, x, c = np.mgrid[0 : size.height, 0 : size.width, 0:3]
    across = x * 600 // size.width + 40 * c + 13 * instant
    down = y * 500 // size.height + 25 * c - 9 * instant
    waves = np.abs((across + down) % 254 - 127) + np.abs((across - 2 * down) % 250 - 125)
    return waves.astype(np.uint8)


def array(values: np.ndarray) -> dict[str, Any]:
    """Shape and numbers, as short as float32 allows."""
    flat = [int(v) if values.dtype.kind == "u" else float(str(v)) for v in values.ravel()]
    return {"shape": list(values.shape), "values": flat}


def main(path: str | None = None) -> None:
    target = OUTPUT if path is None else Path(path)
    target.write_text(json.dumps(record(), separators=(",", ":")) + "\n")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
