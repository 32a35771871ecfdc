"""Parity: every stage of a bundle, and a whole photo, against the PyTorch reference on the same inputs and noise."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livemoments.bundle import Bundle, hash_file
from livemoments.errors import BundleError
from livemoments.export.references import Case, References
from livemoments.limits import PrecisionLimits, load_limits
from livemoments.measures import max_abs, psnr_db, relative_l2
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import load_reference, read_configs, read_prompt
from livemoments.reference.layout import CheckpointFiles, locate
from livemoments.runtime.backends.base import Backend, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.images import write_image
from livemoments.runtime.inputs import ImageSource, RestoreInputs, load_inputs
from livemoments.runtime.restore import RestoreResult, restore
from livemoments.types import ReferencePolicy, Size, Stage
from livemoments.validate.reference_photo import reference_photo
from livemoments.validate.simulated_clip import simulate_live_photo, synthetic_photograph

REPORT_SCHEMA = "livemoments/parity/1"
_STEPPED = (Stage.REFERENCE, Stage.RESTORATION)


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage at one tile size: the worst output over the schedule's points.

    ``rel_l2`` is ``||engine - reference|| / ||reference||`` with the stage fed with the reference's own inputs.
    """

    stage: str
    size: str
    precision: str
    output: str
    rel_l2: float
    max_abs: float
    limit_rel_l2: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; NaN never is."""
        return self.rel_l2 <= self.limit_rel_l2


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """The whole photo.

    ``psnr_db`` is the lower of two: the blended photo before the colour fix, in float, and the 8-bit result.
    ``most_levels`` is the largest difference of the 8-bit results.

    ``exact_policy_psnr_db`` is what an inexact reference policy (every-K, frozen) costs: the PSNR of its photo
    against the same engine's under ``per-step``; None for exact policies.
    """

    width: int
    height: int
    tiles: int
    policy: str
    psnr_db: float
    limit_psnr_db: float
    most_levels: int
    exact_policy_psnr_db: float | None
    tile_s: float

    @property
    def passed(self) -> bool:
        """Whether the PSNR reaches its limit; NaN never does."""
        return self.psnr_db >= self.limit_psnr_db


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What :func:`validate` measured."""

    bundle: str
    checkpoint: str
    precision: str
    provider: str
    stages: tuple[StageResult, ...]
    photo: PhotoResult | None

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return all(stage.passed for stage in self.stages) and (self.photo is None or self.photo.passed)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data; infinite PSNR is null."""
        photo = None
        if self.photo is not None:
            photo = {name: _finite(value) for name, value in asdict(self.photo).items()} | {"passed": self.photo.passed}
        return {
            "schema": REPORT_SCHEMA,
            "passed": self.passed,
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "precision": self.precision,
            "provider": self.provider,
            "stages": [
                {name: _finite(value) for name, value in asdict(stage).items()} | {"passed": stage.passed}
                for stage in self.stages
            ],
            "photo": photo,
        }

    def to_text(self) -> str:
        """The report for people: a line per stage, one for the photo, one for the verdict."""
        lines = [f"      {'stage':<14} {'tile':<10} {'precision':<9}  {'relative L2':>11}  {'limit':>7}  worst output"]
        for stage in self.stages:
            lines.append(
                f"{'ok' if stage.passed else 'FAIL':<4}  {stage.stage:<14} {stage.size:<10} {stage.precision:<9}  "
                f"{stage.rel_l2:11.2e}  {stage.limit_rel_l2:7.0e}  {stage.output}"
            )
        if photo := self.photo:
            lines.append(
                f"{'ok' if photo.passed else 'FAIL':<4}  {'photo':<14} {photo.width}x{photo.height} in "
                f"{photo.tiles} tiles, policy {photo.policy}: PSNR {photo.psnr_db:.1f} dB "
                f"(limit {photo.limit_psnr_db:.0f}), 8-bit results differ by at most {photo.most_levels} of 255 levels"
            )
            if photo.exact_policy_psnr_db is not None:
                lines.append(f"{'':6}policy {photo.policy} against per-step: {photo.exact_policy_psnr_db:.1f} dB")
        lines.append("all limits kept" if self.passed else "past a limit: do not ship this bundle")
        return "\n".join(lines)


def validate(
    bundle: Bundle | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    frame: ImageSource | None = None,
    photo: ImageSource | None = None,
    photo_frame: ImageSource | None = None,
    seed: int = 0,
    provider: str = "cpu",
    limits: str | os.PathLike[str] | None = None,
    pictures: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare a bundle with the PyTorch reference.

    Args:
        bundle: an opened bundle, or its folder.
        checkpoint: the checkpoint it was exported from; a bundle made from another one is refused.
        frame: a video frame for the photo comparison; without ``frame`` and ``photo`` a synthetic pair is used.
        photo: the key photo beside it.
        photo_frame: the video frame at the photo's instant; derived from the photo where missing.
        seed: of the inputs and the noise.
        provider: what runs the engines.
        limits: a limits file instead of the shipped ``validate/limits.toml``.
        pictures: a folder for the restored photo of both, ``engine.png`` and ``reference.png``.
        progress: where to report.

    Raises:
        BundleError: the bundle cannot be trusted, or belongs to another checkpoint.
        CheckpointError: the checkpoint cannot be loaded.
        ImageError: an image cannot be used.
        OutputError: the pictures cannot be written.
        EngineError: an engine cannot be loaded, or its outputs are not finite.
        ResourceError: the reference does not fit in memory.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    files = locate(Path(checkpoint))
    _check_source(opened, files, progress)
    allowed = load_limits(opened.manifest.precision, limits)
    backend = OrtBackend(provider)
    stages = _check_stages(opened, files, allowed, seed, backend, progress)
    result = None
    if {str(stage) for stage in Stage} <= set(opened.manifest.stages):
        inputs = _photo_inputs(opened, frame, photo, photo_frame, seed)
        result = _check_photo(opened, files, inputs, allowed, seed, backend, pictures, progress)
    manifest = opened.manifest
    return ParityReport(
        str(opened.path), str(checkpoint), manifest.precision, f"{backend.name}:{backend.provider}", stages, result
    )


def _check_source(bundle: Bundle, files: CheckpointFiles, progress: Progress) -> None:
    found = list(files.walk())
    with progress.task("hashing the checkpoint", total=len(found)) as task:
        for name, path in found:
            if bundle.manifest.source.files.get(name) != hash_file(path):
                raise BundleError(
                    bundle.path,
                    f"was not exported from this checkpoint: {path} is not the file it was made from",
                    fix="name the checkpoint that the bundle was exported from",
                )
            task.advance(note=name)


def _check_stages(
    bundle: Bundle, files: CheckpointFiles, limits: PrecisionLimits, seed: int, backend: Backend, progress: Progress
) -> tuple[StageResult, ...]:
    manifest, configs = bundle.manifest, read_configs(files)
    references = References(
        files, configs, read_prompt(files, configs.transformer), manifest.schedule, manifest.kv_layout, seed=seed + 1
    )
    points = sorted({point for plan in manifest.schedule.plans.values() for point in plan})
    stages = [stage for stage in Stage if str(stage) in manifest.stages]
    rows = []
    work = [(stage, size) for stage in stages for size in bundle.tile_sizes]
    with progress.task("comparing stages", total=len(work)) as task:
        for stage, size in work:
            cases = [references.case(stage, size, point) for point in (points if stage in _STEPPED else [0])]
            rows.append(_compare_stage(bundle, stage, size, cases, limits, backend))
            task.advance(note=str(stage))
    return tuple(rows)


def _compare_stage(
    bundle: Bundle, stage: Stage, size: Size, cases: list[Case], limits: PrecisionLimits, backend: Backend
) -> StageResult:
    worst = ("", -1.0, 0.0)
    engine = backend.open(bundle, stage, size)
    try:
        for case in cases:
            outputs = engine.run(engine.cast(case.inputs))
            for name, expected in case.outputs.items():
                value = to_host(outputs[name])
                error = relative_l2(value, expected)
                if not error <= worst[1]:  # NaN is worse than any number
                    label = name if case.point is None else f"{name} at point {case.point}"
                    worst = (label, error, max_abs(value, expected))
    finally:
        engine.close()
    return StageResult(
        stage=str(stage),
        size=str(size),
        precision=bundle.stage(stage).precision,
        output=worst[0],
        rel_l2=worst[1],
        max_abs=worst[2],
        limit_rel_l2=limits.stage_rel_l2[str(stage)],
    )


def _photo_inputs(
    bundle: Bundle, frame: ImageSource | None, photo: ImageSource | None, photo_frame: ImageSource | None, seed: int
) -> RestoreInputs:
    if frame is not None and photo is not None:
        return load_inputs(frame, photo, photo_frame)
    # A little larger than one tile, so that blending and PCR take part.
    tile = min(bundle.tile_sizes, key=lambda size: size.height * size.width)
    size = Size(round(tile.height * 1.4), round(tile.width * 1.2))
    live = simulate_live_photo(synthetic_photograph(size, seed=seed), seed=seed)
    return load_inputs(*live.as_photos())


def _check_photo(
    bundle: Bundle,
    files: CheckpointFiles,
    inputs: RestoreInputs,
    limits: PrecisionLimits,
    seed: int,
    backend: Backend,
    pictures: str | os.PathLike[str] | None,
    progress: Progress,
) -> PhotoResult:
    policy = bundle.manifest.reference_policy

    def run(reference: str) -> tuple[RestoreResult, np.ndarray]:
        kept: dict[str, np.ndarray] = {}

        def observe(name: str, value: np.ndarray) -> None:
            if name == "photo.stitched":
                kept[name] = value

        result = restore(
            bundle,
            inputs.frame,
            inputs.photo,
            inputs.photo_frame,
            seed=seed,
            reference=reference,
            bit_depth=8,
            pad_small=True,
            observer=observe,
            progress=progress,
            backend=backend,
        )
        return result, kept["photo.stitched"]

    result, stitched = run(policy)
    with torch.inference_mode():
        reference = load_reference(files.root, progress=progress)
        expected = reference_photo(reference, bundle, inputs, seed=seed, policy=policy, progress=progress)
    exact = None
    if not ReferencePolicy.parse(policy).exact:
        exact = psnr_db(stitched / 2, run("per-step")[1] / 2)
    expected_bytes = np.rint(expected.result.numpy() * 255).astype(np.uint8)
    if pictures is not None:
        write_image(Path(pictures) / "engine.png", result.image)
        write_image(Path(pictures) / "reference.png", expected_bytes)
    seconds = sorted(result.timings.tile_seconds)
    return PhotoResult(
        width=inputs.size.width,
        height=inputs.size.height,
        tiles=len(seconds),
        policy=policy,
        psnr_db=min(
            psnr_db(stitched / 2, expected.stitched.numpy() / 2),  # [-1, 1] -> a range of 1
            psnr_db(result.image, expected_bytes, peak=255),
        ),
        limit_psnr_db=limits.photo_psnr_db,
        most_levels=int(max_abs(result.image, expected_bytes)),
        exact_policy_psnr_db=exact,
        tile_s=seconds[len(seconds) // 2],
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
