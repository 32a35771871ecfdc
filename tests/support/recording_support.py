"""Small recordings: hand-made ones, written without torch, and photos for real ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from restore_images import shrunk, textured

from livemoments.manifest import SchedulePoint, Source
from livemoments.types import Size
from livemoments.validate.recording.schema import (
    LR,
    RECORDING_SCHEMA,
    ImageEntry,
    RecordingMeta,
    RecordingSettings,
    Selection,
    StorageType,
    TileEntry,
)
from livemoments.validate.recording.writer import write_recording

PHOTO, VIDEO = Size(128, 128), Size(64, 64)
"""The smallest that can be restored: one tile."""


def write_set(folder: Path, count: int = 1, *, truth: bool = False) -> Path:
    """``lr``, ``ref``, ``ref_lr`` and perhaps ``gt`` with ``count`` photos of :data:`PHOTO`'s size: a, b, …"""
    for number in range(count):
        photo = textured(PHOTO, 50 + number)
        images = {"ref": photo, "lr": shrunk(photo, VIDEO, shift_px=2), "ref_lr": shrunk(photo, VIDEO)}
        if truth:
            images["gt"] = photo[:, ::-1]
        for part, pixels in images.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / part / f"{'abcdef'[number]}.png"), pixels[..., ::-1])
    return folder


def small_meta(dtype: StorageType = "float32") -> RecordingMeta:
    return RecordingMeta(
        schema=RECORDING_SCHEMA,
        created="2026-01-01T00:00:00+00:00",
        producer="a test",
        source=Source(name="none", files={}),
        dtype=dtype,
        settings=RecordingSettings(
            tile="128x128",
            overlap=32,
            steps=2,
            policy="per-step",
            schedule=(SchedulePoint(timestep=200.0, sigma=0.2), SchedulePoint(timestep=3.0, sigma=0.003)),
            noise_level=0.2,
            seed=1,
        ),
        model=None,
        detail="keys-values",
        selection=Selection(),
        images={},
        files={},
    )


def small_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """In the order in which the pipeline tells them, one of every kind."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "photo.flow_lr": floats(1, 2, 8, 8),
        "ref_patch_coords": np.array([[0, 0], [0, 96]]),
        "tile0.flow": floats(1, 2, 16, 16),
        "tile0.motion_bias": floats(2, 1, 4, 8),
        "tile0.step0.reference.block0.hidden": floats(1, 4, 8),
        "tile0.step0.kv.transformer_blocks.0.attn.to_k": floats(1, 4, 8),
        "tile0.step0.velocity": floats(1, 16, 2, 2),
        "tile0.step1.kv.transformer_blocks.0.attn.to_k": floats(1, 4, 8),
        "tile0.step1.restoration.module.transformer_blocks.0.ff.net.0": floats(1, 4, 8),
        "tile0.decoded": floats(1, 3, 16, 16),
        "tile1.flow": floats(1, 2, 16, 16),
        "photo.stitched": floats(1, 3, 16, 16),
        "photo.before_color_fix": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
    }


def small_recording(place: Path, images: tuple[str, ...] = ("a", "b"), dtype: StorageType = "float32") -> Path:
    """A recording of invented tensors (:func:`small_tensors` with the photo's number as its seed)."""
    with write_recording(place) as writer:
        writer.take_over({})
        for number, name in enumerate(images):
            write_image(writer, place.parent, name, number, dtype)
        writer.commit(small_meta(dtype))
    return place


def write_image(writer, folder: Path, name: str, number: int, dtype: StorageType = "float32") -> None:
    picture = folder / f"{name}.txt"
    picture.write_text("any bytes")
    with writer.image(name, dtype) as image:
        for tensor, value in small_tensors(number).items():
            image.add(tensor, value)
        files = {LR: image.copy(LR, picture)}
        entry = ImageEntry(
            files=files,
            size="128x128",
            padded="128x128",
            tiles=(TileEntry(y=0, x=0, height=128, width=128, ref_y=0, ref_x=0),),
            detail="keys-values",
            tensors=image.close(),
        )
        writer.finish(name, f"key of {name}", entry, image.files)
