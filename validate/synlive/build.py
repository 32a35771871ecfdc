"""``livemoments synlive build``: a set in SynLive260's manner from one's own videos or photographs.

A pair is two frames some frames apart: one in full quality is the key photo (``ref``), the other's full quality is the
truth (``gt``); both degraded with the same parameters are the clip (``ref_lr``, ``lr``). Everything random comes from
the seed and the names, so a second build gives the same bytes, and a killed one goes on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from livemoments.bundle import hash_file
from livemoments.errors import ImageError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.runtime.image_files.photo import MIN_SIDE_PX, write_image
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.synlive.codec import Codec, sample_codec, through_codec
from livemoments.validate.synlive.degradation import Degradation, apply, image_rng, sample_degradation
from livemoments.validate.synlive.journal import Build, check_place, open_build
from livemoments.validate.synlive.manifest import BuildSettings, Pair, Skip, SourceEntry, SynliveManifest
from livemoments.validate.synlive.presets import PRESETS
from livemoments.validate.synlive.sources import WHOLE_MULTIPLE_PX, PairOptions, RawPair, Source, open_sources
from livemoments.version import __version__, version_of

DEGRADATIONS = (*PRESETS, "codec")
DEFAULT_GAP, DEFAULT_CROP = 5, Size(1024, 1024)
"""The paper's: frames 5 apart, 1024-pixel crops."""
MOST_FAILURES = 12
"""Places in a row of which a source gives no pair; it is left then."""
_STEM_CHARS = 40

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BuiltSet:
    """A set that was built: its folder and manifest, and how many pairs an earlier, killed build had finished."""

    folder: Path
    manifest: SynliveManifest
    resumed: int


@dataclass(slots=True)
class _Progress:
    """How far a source was used: the next slot, and what pairs started at."""

    phase: float
    slot: int = 0
    starts: list[int] = field(default_factory=list)
    is_exhausted: bool = False


def build_set(
    folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    photographs: bool = False,
    count: int | None = None,
    gap: int = DEFAULT_GAP,
    crop: Size | None = DEFAULT_CROP,
    scale: int = 2,
    degradation: str = "live-photo",
    seed: int = 0,
    skip_unusable: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> BuiltSet:
    """Build a set; see the module's docstring.

    Args:
        folder: videos and folders of consecutive frames at any depth; with ``photographs``, photographs.
        destination: the set's folder.
        photographs: simulate pairs from photographs (a homography, nothing moves by itself).
        count: pairs; by default one per video or photograph.
        gap: frames between the two of a pair.
        crop: of the frames; ``None``: whole frames, cut to multiples of 16 pixels.
        scale: how much smaller the degraded frames are.
        degradation: one of ``DEGRADATIONS``.
        seed: of everything that is random.
        skip_unusable: leave out sources that cannot be used instead of refusing all.
        overwrite: replace a set that is there.
        progress: where to report.

    Raises:
        ImageError: nothing in the folder can be used, something cannot (without ``skip_unusable``), or it has too few
            good pairs.
        UsageError: a setting cannot be used.
        OutputError: the destination exists or cannot be written, or another build writes it.
        ResourceError: the disk is full.
        ModuleNotFoundError: PyAV is not installed (videos, ``codec``).
    """
    settings = BuildSettings(
        photographs=photographs,
        gap=gap,
        crop="full" if crop is None else str(crop),
        scale=scale,
        degradation=degradation,
        seed=seed,
    )
    _check(settings, crop, count)
    target = check_place(Path(destination), overwrite=overwrite)
    options = PairOptions(gap, crop, neighbours=degradation == "codec")
    sources, unusable = open_sources(
        Path(folder), options, photographs=photographs, skip_unusable=skip_unusable, progress=progress
    )
    entries = tuple(SourceEntry(name=source.name, sha256=source.sha256) for source in sources)
    blank = SynliveManifest(
        livemoments=__version__,
        versions=_versions(),
        settings=settings,
        sources=entries,
        unusable=unusable,
        pairs=(),
        skipped=(),
    )
    wanted = len(sources) if count is None else count
    pairs: list[Pair] = []
    skipped: list[Skip] = []
    resumed = 0
    key = hashlib.sha256(blank.encode()).hexdigest()
    with open_build(target, key, overwrite=overwrite) as build, progress.task("Making pairs", wanted) as task:
        for entry, was_there in _entries(sources, settings, build):
            if isinstance(entry, Skip):
                skipped.append(entry)
                continue
            pairs.append(entry)
            resumed += was_there
            task.advance(1, note=entry.name)
            if len(pairs) == wanted:
                break
        if len(pairs) < wanted:
            raise _too_few(Path(folder), len(pairs), wanted, skipped)
        manifest = msgspec.structs.replace(blank, pairs=tuple(pairs), skipped=tuple(skipped))
        build.publish(manifest)
    return BuiltSet(target, manifest, resumed)


def _check(settings: BuildSettings, crop: Size | None, count: int | None) -> None:
    if settings.degradation not in DEGRADATIONS:
        fix = f"use one of {', '.join(DEGRADATIONS)}"
        raise UsageError(f"'{settings.degradation}' is not a degradation", fix=fix)
    if settings.photographs and settings.degradation == "codec":
        raise UsageError("a photograph has no neighbouring frames for a codec", fix="use live-photo, or videos")
    for name, value, least in (("count", count, 1), ("gap", settings.gap, 1), ("scale", settings.scale, 1)):
        if value is not None and value < least:
            raise UsageError(f"a {name} of {value} cannot be used", fix=f"use {least} or more")
    if settings.seed < 0:
        raise UsageError(f"the seed {settings.seed} is negative", fix="use 0 or more")
    step = 2 * settings.scale if settings.degradation == "codec" else settings.scale
    if crop is None:
        if WHOLE_MULTIPLE_PX % step:
            raise UsageError(f"whole frames cannot be made {settings.scale} times smaller", fix="use 1, 2, 4 or 8")
        return
    if crop.height % step or crop.width % step:
        raise UsageError(f"a crop of {crop} does not fit", fix=f"use sides that are multiples of {step}")
    if min(crop.height, crop.width) < MIN_SIDE_PX * settings.scale:
        least = MIN_SIDE_PX * settings.scale
        raise UsageError(f"a crop of {crop} is too small", fix=f"use sides of {least} pixels or more")


def _versions() -> dict[str, str]:
    versions = {"numpy": np.__version__, "opencv": cv2.__version__, "av": version_of("av")}
    return {name: version for name, version in versions.items() if version is not None}


def _entries(sources: Sequence[Source], settings: BuildSettings, build: Build) -> Iterator[tuple[Pair | Skip, bool]]:
    """Pairs, one source after the other in a random order, round after round, and what was skipped on the way.

    What comes does not depend on how many are taken. The second value: an earlier build had made it.
    """
    rng = image_rng(settings.seed, "order")
    order = [sources[index] for index in rng.permutation(len(sources))]
    states = [_Progress(phase=float(image_rng(settings.seed, f"phase:{source.sha256}").random())) for source in order]
    made = 0
    while not all(state.is_exhausted for state in states):
        for source, state in zip(order, states, strict=True):
            failures = 0
            while not state.is_exhausted:
                start = source.start(state.slot, state.phase)
                state.slot += 1
                entry, was_there = None, False
                if not any(abs(start - taken) < source.gap for taken in state.starts):
                    entry, was_there = _entry(source, start, made, settings, build)
                    yield entry, was_there
                if isinstance(entry, Pair):
                    state.starts.append(start)
                    made += 1
                    break
                failures += 1
                state.is_exhausted = failures == MOST_FAILURES


def _entry(source: Source, start: int, made: int, settings: BuildSettings, build: Build) -> tuple[Pair | Skip, bool]:
    entry = build.finished(source.name, start)
    if entry is not None:
        return entry, True
    raw = source.pair(start, image_rng(settings.seed, f"pair:{source.sha256}:{start}"))
    if isinstance(raw, str):
        entry = Skip(source=source.name, start=start, reason=raw)
    else:
        entry = _make(raw, source, start, f"{made + 1:04d}_{_stem(source.name)}", settings, build.folder)
    build.add(entry)
    return entry, False


def _make(raw: RawPair, source: Source, start: int, name: str, settings: BuildSettings, folder: Path) -> Pair:
    seed, place = settings.seed, f"{source.sha256}:{start}"
    height, width = raw.key.shape[:2]
    rng = image_rng(seed, f"degradation:{place}")
    parameters: Degradation | Codec
    bits = None
    if settings.degradation == "codec":
        parameters = sample_codec(rng, scale=settings.scale)
        frames, bits = through_codec(parameters, raw.around, rate=raw.rate)
        lr, ref_lr = frames[raw.frame_index - raw.first_index], frames[raw.key_index - raw.first_index]
    else:
        parameters = sample_degradation(rng, settings.degradation, Size(height, width), scale=settings.scale)
        lr = apply(parameters, raw.frame, image_rng(seed, f"noise:{FRAMES}:{place}"))
        ref_lr = apply(parameters, raw.key, image_rng(seed, f"noise:{PHOTO_FRAMES}:{place}"))
    files = {}
    for part, pixels in ((FRAMES, lr), (PHOTOS, raw.key), (PHOTO_FRAMES, ref_lr), (TRUTHS, raw.frame)):
        path = folder / part / f"{name}.png"
        write_image(path, pixels)
        files[part] = hash_file(path)
    return Pair(
        name=name,
        source=source.name,
        start=start,
        key_frame=raw.key_index,
        frame=raw.frame_index,
        crop=(raw.x, raw.y, width, height),
        motion_px=round(raw.measure.motion_px, 3),
        correlation=round(raw.measure.correlation, 4),
        degradation=parameters,
        coded_bits_per_pixel=None if bits is None else round(bits, 4),
        files=files,
    )


def _stem(name: str) -> str:
    """The source's name as a part of a file name: letters, digits, dots, dashes and underscores."""
    stem = Path(name).stem or name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:_STEM_CHARS] or "clip"


def _too_few(folder: Path, made: int, wanted: int, skipped: Sequence[Skip]) -> ImageError:
    reasons = Counter(re.sub(r"^frame \d+ is", "a frame is", skip.reason.split(" (")[0]) for skip in skipped)
    why = "; left out: " + ", ".join(f"{number} x {reason}" for reason, number in reasons.items()) if reasons else ""
    fix = f"use --count {made} or less, a smaller --gap, or add videos" if made else "use other videos"
    return ImageError(folder, f"gave {made} of {wanted} pairs{why}", fix=fix)
