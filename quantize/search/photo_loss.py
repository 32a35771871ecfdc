"""How far a changed network moves the photo: restorations of small pictures with the source's and other networks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from livemoments.bundle import Bundle
from livemoments.distances import mean_squared_error, psnr_of
from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.quantize.search.cached_backend import CachedBackend, CachedEngine, Call, CallCache
from livemoments.quantize.search.trial_photos import centre
from livemoments.runtime.backends.base import Backend, Engine
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.restore import restore
from livemoments.runtime.schedule import plan_steps
from livemoments.store.errors import output_errors
from livemoments.types import ReferencePolicy, Size, Stage

TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)
"""The stages whose linears are quantized."""
_BIT_DEPTH = 16
_TOP = 65535.0
"""Photos are compared in 16 bits: one layer's error often stays below half a level of 8."""


@dataclass(frozen=True, slots=True)
class Score:
    """How good the photos of changed networks are, all photos together.

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
        return psnr_of(self.mse)


@dataclass(frozen=True)
class _Restored:
    stitched: np.ndarray
    image: np.ndarray


class PhotoLoss:
    """Restores the same photos with one engine or another. Use :func:`open_photo_loss`.

    Attributes:
        bundle: the source.
        photos: what is restored, as it was cut.
        size: the tiles' size.
        seed: the seed of the noise.
        points: the schedule's points that are sampled, in the order of the steps.
    """

    def __init__(
        self, bundle: Bundle, photos: Sequence[LivePhoto[Photo]], size: Size, backend: CachedBackend, *, seed: int
    ) -> None:
        self.bundle, self.photos, self.size, self.seed = bundle, tuple(photos), size, seed
        self.points = plan_steps(bundle.manifest.schedule)
        self._backend = backend
        policy = bundle.manifest.reference_policy
        # an exact policy's photo is per-step's, which opens no engine twice
        self._policy = "per-step" if ReferencePolicy.parse(policy).exact else policy
        self._source = [self._restore(photo) for photo in self.photos]
        backend.cache.frozen = True

    @property
    def source_score(self) -> Score:
        """The source's own: 0 from itself, and its distance from the truth."""
        return self._score(self._source)

    def calls(self, stage: Stage) -> list[Call]:
        """What the source's stage was asked, and what it answered."""
        return self._backend.cache.calls(stage)

    @contextlib.contextmanager
    def remembered(self, engine: Engine) -> Iterator[Engine]:
        """A changed engine whose calls are remembered while the ``with`` block lasts; it is closed afterwards."""
        with tempfile.TemporaryDirectory(dir=self._backend.folder) as folder, engine:
            cache = CallCache(Path(folder), knows=self._backend.cache)
            yield CachedEngine(self.bundle.graph(engine.stage, self.size), cache, engine.stage, lambda: engine)

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

    def score_bundle(self, quantized: Bundle, backend: Backend) -> Score:
        """Restore every photo with all the stages of a bundle that differ from the source's.

        Raises:
            EngineError: an engine cannot be opened or failed, or its outputs are not finite.
        """
        stages = self.bundle.manifest.model.stages
        changed = [s for s in stages if quantized.digest(s) != self.bundle.digest(s)]
        with contextlib.ExitStack() as stack:
            return self.score({s: stack.enter_context(backend.open(quantized, s, self.size)) for s in changed})

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
            seed=self.seed,
            reference=self._policy,
            tile=self.size,
            bit_depth=_BIT_DEPTH,
            pad_small=True,
            observer=observe,
            backend=self._backend,
        )
        return _Restored(kept["photo.stitched"], result.image)

    def _score(self, restored: Sequence[_Restored]) -> Score:
        pairs = list(zip(restored, self._source, strict=True))
        stitched = fmean(mean_squared_error(new.stitched / 2, old.stitched / 2) for new, old in pairs)
        images = fmean(mean_squared_error(new.image / _TOP, old.image / _TOP) for new, old in pairs)
        truths = [photo.truth.pixels for photo in self.photos if photo.truth is not None]
        truth_mse = None
        if len(truths) == len(restored):
            truth_mse = fmean(
                mean_squared_error(new.image / _TOP, truth / np.iinfo(truth.dtype).max)
                for new, truth in zip(restored, truths, strict=True)
            )
        return Score(max(stitched, images), truth_mse)


@contextlib.contextmanager
def open_photo_loss(
    bundle: Bundle,
    photos: Sequence[LivePhoto[Photo]],
    *,
    backend: Backend | None = None,
    seed: int = 0,
    parent: Path | None = None,
) -> Iterator[PhotoLoss]:
    """Restore the photos' middles with the source, and keep what every engine computed while the block lasts.

    Args:
        bundle: the source; needs all six stages.
        photos: at least one; of each, the middle of one tile of the bundle's smallest size is used (:func:`centre`).
        backend: what runs the source's graphs; onnxruntime on the CPU by default.
        seed: the seed of the noise.
        parent: where the temporary folder for large tensors is made.

    Raises:
        UsageError: there is no photo.
        BundleError: the bundle lacks a stage.
        EngineError: an engine failed.
        OutputError: the temporary folder cannot be made.
        ResourceError: the disk is full.
    """
    if not photos:
        raise UsageError("there is no photo to try the layers on", fix="name at least one")
    if parent is not None:
        with output_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
    tile = min(bundle.tile_sizes, key=lambda size: size.height * size.width)
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix="livemoments-loss-") as folder,
        contextlib.closing(CachedBackend(backend or OrtBackend(), Path(folder))) as cached,
    ):
        yield PhotoLoss(bundle, [centre(photo, tile) for photo in photos], tile, cached, seed=seed)
