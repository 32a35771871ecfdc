"""How far a changed network moves the photo: real restorations of small pictures, source against candidate."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import OutputError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.quantize.memo import Call, Memo, MemoBackend, MemoEngine
from livemoments.quantize.probe_photos import centre
from livemoments.runtime.backends.base import Backend, Engine
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.restore import restore
from livemoments.runtime.schedule import plan_steps
from livemoments.types import ReferencePolicy, Size, Stage

TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)
"""The stages whose linears are quantized."""
_BIT_DEPTH = 16
_TOP = 65535.0
"""Photos are compared in 16 bits: one layer's error often stays below half a level of 8."""


@dataclass(frozen=True, slots=True)
class Score:
    """How good a candidate's photos are, all photos together.

    Attributes:
        mse: mean squared error from the source's photos over [0, 1]: the larger of the blended photo's in float (before
            the colour fix, which mends some of it) and the result's in 16 bits.
        truth_mse: the result's from the truth; ``None`` where a photo has none.
    """

    mse: float
    truth_mse: float | None

    @property
    def psnr_db(self) -> float:
        """Against the source, dB; infinite for equal photos."""
        return to_db(self.mse)


@dataclass(frozen=True)
class _Restored:
    stitched: np.ndarray
    image: np.ndarray


class Probe:
    """Restores the same photos with one engine or another. Use :func:`open_probe`.

    Attributes:
        bundle: the source.
        photos: what is restored, as it was cut.
        size: the tiles' size.
        points: the schedule's points that are sampled, in the order of the steps.
    """

    def __init__(
        self,
        bundle: Bundle,
        photos: Sequence[LivePhoto[Photo]],
        size: Size,
        backend: MemoBackend,
        *,
        seed: int,
        folder: Path,
    ) -> None:
        self.bundle, self.photos, self.size = bundle, tuple(photos), size
        self.points = plan_steps(bundle.manifest.schedule)
        self._backend, self._seed, self._folder = backend, seed, folder
        policy = bundle.manifest.reference_policy
        # an exact policy's photo is per-step's, which opens no engine twice
        self._policy = "per-step" if ReferencePolicy.parse(policy).exact else policy
        self._source = [self._restore(photo) for photo in self.photos]
        backend.memo.frozen = True

    @property
    def source_score(self) -> Score:
        """The source's own: 0 from itself, and its distance from the truth."""
        return self._score(self._source)

    def calls(self, stage: Stage) -> list[Call]:
        """What the source's stage was asked, and what it answered."""
        return self._backend.memo.calls(stage)

    @contextlib.contextmanager
    def remembered(self, engine: Engine) -> Iterator[Engine]:
        """A candidate's engine whose calls are remembered while the ``with`` block lasts; it is closed afterwards."""
        graph = self.bundle.graph(engine.stage, self.size)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder, engine:
            memo = Memo(Path(folder), knows=self._backend.memo)
            yield MemoEngine(engine.stage, graph, memo, lambda: engine)

    def score(self, engines: Mapping[Stage, Engine], *, point: int | None = None) -> Score:
        """Restore every photo with these engines in place of the source's.

        Args:
            engines: by stage.
            point: only at this point of the schedule.

        Raises:
            EngineError: an engine failed, or its outputs are not finite.
        """
        self._backend.replace(engines, point=point)
        try:
            return self._score([self._restore(photo) for photo in self.photos])
        finally:
            self._backend.replace({})

    def score_bundle(self, candidate: Bundle, backend: Backend) -> Score:
        """Restore every photo with all the stages of a bundle that differ from the source's.

        Raises:
            EngineError: an engine cannot be opened or failed, or its outputs are not finite.
        """
        stages = self.bundle.manifest.model.stages
        changed = [s for s in stages if candidate.digest(s) != self.bundle.digest(s)]
        with contextlib.ExitStack() as stack:
            return self.score({s: stack.enter_context(backend.open(candidate, s, self.size)) for s in changed})

    def _restore(self, photo: LivePhoto[Photo]) -> _Restored:
        kept: dict[str, np.ndarray] = {}

        def observe(name: str, value: np.ndarray) -> None:
            if name == "photo.stitched":
                kept[name] = value.astype(np.float32)

        result = restore(
            self.bundle,
            photo.frame,
            photo.photo,
            photo.photo_frame,
            seed=self._seed,
            reference=self._policy,
            tile=self.size,
            bit_depth=_BIT_DEPTH,
            pad_small=True,
            observer=observe,
            backend=self._backend,
        )
        return _Restored(kept["photo.stitched"], result.image)

    def _score(self, found: Sequence[_Restored]) -> Score:
        stitched = _mean(_mse(a.stitched / 2, b.stitched / 2) for a, b in zip(found, self._source, strict=True))
        images = _mean(_mse(a.image / _TOP, b.image / _TOP) for a, b in zip(found, self._source, strict=True))
        truths = [photo.truth for photo in self.photos if photo.truth is not None]
        truth = None
        if len(truths) == len(found):
            truth = _mean(_mse(a.image / _TOP, _unit(t.pixels)) for a, t in zip(found, truths, strict=True))
        return Score(max(stitched, images), truth)


@contextlib.contextmanager
def open_probe(
    bundle: Bundle,
    photos: Sequence[LivePhoto[Photo]],
    *,
    backend: Backend | None = None,
    size: Size | None = None,
    seed: int = 0,
    parent: Path | None = None,
) -> Iterator[Probe]:
    """Restore the photos' middles with the source, and keep what every engine computed while the block lasts.

    Args:
        bundle: the source; needs all six stages.
        photos: at least one; of each, the middle of one tile is used (:func:`centre`).
        backend: what runs the source's graphs; onnxruntime on the CPU by default.
        size: the tiles' size; the bundle's smallest by default.
        seed: of the noise.
        parent: where the temporary folder for large tensors is made.

    Raises:
        UsageError: there is no photo.
        BundleError: the bundle lacks a stage.
        EngineError: an engine failed.
        OutputError: the temporary folder cannot be made.
    """
    if not photos:
        raise UsageError("there is no photo to try the layers on", fix="name at least one")
    if backend is None:
        from livemoments.runtime.backends.ort import OrtBackend

        backend = OrtBackend()
    if parent is not None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(parent, f"cannot be made ({error.strerror})", fix="choose another folder") from None
    tile = size or min(bundle.tile_sizes, key=lambda own: own.height * own.width)
    with tempfile.TemporaryDirectory(dir=parent, prefix="livemoments-probe-") as name:
        folder = Path(name)
        memo = MemoBackend(backend, folder)
        try:
            yield Probe(bundle, [centre(photo, tile) for photo in photos], tile, memo, seed=seed, folder=folder)
        finally:
            memo.close()


def to_db(mse: float) -> float:
    """Mean squared error over [0, 1] as PSNR in dB."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def from_db(psnr_db: float) -> float:
    """PSNR in dB as mean squared error over [0, 1]."""
    return 10 ** (-psnr_db / 10)


def _mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def _unit(pixels: np.ndarray) -> np.ndarray:
    unit: np.ndarray = pixels / np.iinfo(pixels.dtype).max
    return unit


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
