"""Checks of an engine that need no reference: what must not change a result does not.

What goes into the stages is taken from a real restoration of a small picture, so it has the magnitudes that the
networks see. Known engine faults that only this finds: different outputs for identical rows of a batch, results that
depend on what else is in the batch, runs that do not repeat, activations that overflowed to a constant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import EngineError
from livemoments.limits import PrecisionLimits, load_limits
from livemoments.manifest import APPLE_TARGETS
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Array, Backend, Engine, batch_axis, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.flow import FlowKind
from livemoments.runtime.image_files.photo import MIN_SIDE_PX, Photo
from livemoments.runtime.inputs import RestoreInputs, load_inputs
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restoration import Restoration, plan_tiles
from livemoments.runtime.restore import restore_tiles, to_integers
from livemoments.types import Size, Stage, TensorSpec
from livemoments.validate.ladder.rungs import held_to
from livemoments.validate.ladder.tensor_distance import tensor_distance
from livemoments.validate.report_data import Check

_NEIGHBOUR_SCALE = 1.25
"""How much larger the other row of a batch is: a range that is taken over the batch then shows."""
_PHOTO_TILES = 1.5
"""Width of the picture in tiles: two of them, which overlap."""


_Captured = tuple[dict[str, np.ndarray], Size]
"""What went into a stage's first run, on the host, and the size that its engine was opened for."""


class _Capturing(Backend):
    """A backend around another one that keeps what went into the first run of each stage."""

    def __init__(self, inner: Backend) -> None:
        self.name, self.provider = inner.name, inner.provider
        self.inner = inner
        self.captured: dict[Stage, _Captured] = {}

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        return _CapturingEngine(self.inner.open(bundle, stage, size), size, self.captured)


class _CapturingEngine(Engine):
    def __init__(self, inner: Engine, size: Size, captured: dict[Stage, _Captured]) -> None:
        super().__init__(inner.stage, inner.inputs, inner.outputs)
        self._inner, self._size, self._captured = inner, size, captured

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        if self.stage not in self._captured:
            copies = {name: np.array(to_host(array)) for name, array in inputs.items()}
            self._captured[self.stage] = copies, self._size
        return self._inner.run(inputs, keep=keep)

    def close(self) -> None:
        self._inner.close()
        super().close()


def self_checks(
    bundle: Bundle,
    *,
    backend: Backend | None = None,
    seed: int = 0,
    limits: PrecisionLimits | None = None,
    progress: Progress = SILENT,
) -> tuple[Check, ...]:
    """Check a bundle's engines against themselves.

    For every stage: ``self.batch_rows`` (identical rows of a batch give identical outputs),
    ``self.batch_neighbours`` (a row's result does not depend on its neighbour, nor on being alone) and
    ``self.constant_channels``. For a picture of two tiles: ``self.second_run``, ``self.tile_order`` and
    ``self.batch_size``. An engine that fails, or gives NaN or infinity, is ``self.finite``.

    Args:
        bundle: opened.
        backend: what runs the engines; :class:`OrtBackend` on the CPU by default.
        seed: decides the picture and the noise.
        limits: how far another batch may move a result, by sums in another order or (dynamic quantization) a range over
            the whole batch: ``stage_rel_l2`` and ``step_rel_l2``. Rows and repetitions must be identical whatever the
            limits. The shipped ones of the bundle's precision by default.
        progress: where to report.

    Returns:
        The checks; none for a bundle of some stages only, which restores nothing.

    Raises:
        ResourceError: memory ran out.
    """
    held = limits or load_limits(bundle.manifest.precision)
    capturing = _Capturing(backend or OrtBackend())
    if bundle.missing_stages:
        return ()
    checks: list[Check] = []
    try:
        checks += _picture(bundle, capturing, seed, held, progress)
        checks += _stages(bundle, capturing, held, progress)
    except EngineError as error:
        return (*checks, held_to("self.finite", None, 0.0, "count", error.message.splitlines()[0]))
    return (*checks, held_to("self.finite", 0.0, 0.0, "count", "no stage failed or gave NaN or infinity"))


def _picture(
    bundle: Bundle, backend: _Capturing, seed: int, limits: PrecisionLimits, progress: Progress
) -> Iterator[Check]:
    """Restore a small picture four times: as it is, again, in another order of tiles, two tiles at once."""
    inputs = _scene(min(bundle.tile_sizes, key=lambda size: size.height * size.width), seed)
    with progress.task("Restoring a picture four times", 4) as task:
        first = _restore(bundle, inputs, backend, seed)
        task.advance()
        again = _restore(bundle, inputs, backend.inner, seed)
        task.advance()
        backwards = _restore(bundle, inputs, backend.inner, seed, backwards=True)
        task.advance()
        together = _restore(bundle, inputs, backend.inner, seed, batch=2)
        task.advance()
    for name, picture, what in (
        ("second_run", again, "a second run of the same picture"),
        ("tile_order", backwards, "the same picture with its tiles in the opposite order"),
    ):
        differing = float(np.count_nonzero(picture != first))
        yield held_to(f"self.{name}", differing, 0.0, "count", f"values of {what} that differ")
    error = tensor_distance(together, first).rel_l2
    levels = int(np.abs(_levels(together) - _levels(first)).max())
    detail = f"two tiles at once against one after the other; the 8-bit pictures differ by at most {levels} levels"
    yield held_to("self.batch_size", error, limits.step_rel_l2, "rel_l2", detail)


def _stages(bundle: Bundle, backend: _Capturing, limits: PrecisionLimits, progress: Progress) -> Iterator[Check]:
    with progress.task("Checking stages against themselves", len(backend.captured)) as task:
        for stage in (stage for stage in Stage if stage in backend.captured):
            inputs, size = backend.captured.pop(stage)
            with backend.inner.open(bundle, stage, size) as engine:
                yield from _stage(engine, inputs, limits)
            task.advance(note=str(stage))


def _stage(engine: Engine, row: Mapping[str, np.ndarray], limits: PrecisionLimits) -> Iterator[Check]:
    stage = engine.stage
    other = {spec.name: _other(spec, row[spec.name]) for spec in engine.inputs}
    alone = _run(engine, [row])
    twins = _run(engine, [row, row])
    mixed = _run(engine, [row, other])
    worst_rows, worst_neighbour, where = 0.0, 0.0, ""
    constant = 0
    for spec in engine.outputs:
        first, second = (_take(spec, twins[spec.name], place) for place in (0, 1))
        worst_rows = max(worst_rows, float(np.count_nonzero(first != second)))
        for name, value in (("another row", mixed), ("the same row", twins)):
            error = tensor_distance(_take(spec, value[spec.name], 0), _take(spec, alone[spec.name], 0)).rel_l2
            if error > worst_neighbour:
                worst_neighbour, where = error, f"output '{spec.name}' beside {name}"
        constant += _constant_channels(stage, _take(spec, alone[spec.name], 0))
    detail = "elements that differ between two identical rows"
    yield held_to(f"self.batch_rows.{stage}", worst_rows, 0.0, "count", detail)
    limit = limits.stage_rel_l2[str(stage)]
    detail = where or "equal to being alone"
    yield held_to(f"self.batch_neighbours.{stage}", worst_neighbour, limit, "rel_l2", detail)
    detail = "channels of an output without variation"
    yield held_to(f"self.constant_channels.{stage}", float(constant), 0.0, "count", detail)


def _run(engine: Engine, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Run several rows as one batch."""
    inputs: dict[str, Array] = {}
    for spec in engine.inputs:
        values = [row[spec.name] for row in rows]
        inputs[spec.name] = np.concatenate(values, axis=batch_axis(spec)) if _has_batch(spec) else values[0]
    return {name: to_host(array) for name, array in engine.run(engine.cast(inputs)).items()}


def _has_batch(spec: TensorSpec) -> bool:
    return "batch" in spec.shape


def _take(spec: TensorSpec, value: np.ndarray, place: int) -> np.ndarray:
    """One row of a batch, without the batch's axis."""
    return np.take(value, place, axis=batch_axis(spec))


def _other(spec: TensorSpec, value: np.ndarray) -> np.ndarray:
    """Another row of the same kind: moved along the width, or along the tokens, and a little larger."""
    if not _has_batch(spec):
        return value
    axis = -1 if spec.shape.index("batch") == 0 and value.ndim == 4 else batch_axis(spec) + 1
    return (np.roll(value, value.shape[axis] // 3, axis=axis) * _NEIGHBOUR_SCALE).astype(value.dtype)


def _constant_channels(stage: Stage, row: np.ndarray) -> int:
    """Channels without variation; what overflows in half precision can end as zeros instead of NaN."""
    is_image = stage.channel_axis == 1
    tokens = np.moveaxis(row, 0 if is_image else -1, -1)
    if is_image:
        return int(np.count_nonzero(np.ptp(tokens.reshape(-1, tokens.shape[-1]), axis=0) == 0))
    return int(np.count_nonzero(np.ptp(tokens, axis=-2) == 0))  # (…, tokens, D): of each block


def _restore(
    bundle: Bundle, inputs: RestoreInputs, backend: Backend, seed: int, *, batch: int = 1, backwards: bool = False
) -> np.ndarray:
    """The blended picture in float, (H, W, 3), with as few steps as the bundle offers."""
    fewest = min(int(count) for count in bundle.manifest.schedule.plans)
    # Apple's packages take images of their own sizes only, which this picture's frames are not
    flow: FlowKind | None = "dis" if bundle.manifest.target in APPLE_TARGETS else None
    run = Restoration.of(bundle, RestoreOptions(seed=seed, steps=fewest, batch=batch, pad_small=True, flow=flow))
    plan = plan_tiles(run, inputs.size)
    if backwards:
        plan = dataclasses.replace(plan, tiles=plan.tiles[::-1])
    blender = restore_tiles(run, inputs, plan, backend).blender
    return blender.result_rows(0, inputs.size.height)


def _scene(tile: Size, seed: int) -> RestoreInputs:
    """A picture of smooth colours at several scales, one and a half tiles wide; a shifted frame at half its size."""
    height = max(tile.height, 2 * MIN_SIDE_PX)  # frames are half as large
    width = max(int(tile.width * _PHOTO_TILES), 2 * MIN_SIDE_PX) // 16 * 16
    rng = np.random.default_rng(seed)
    photo = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        coarse = rng.standard_normal((cells, cells * 2, 3)).astype(np.float32)
        photo += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (40 / math.log2(cells))
    pixels = np.clip(np.rint(128 + photo), 0, 255).astype(np.uint8)
    key_frame = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    frame = np.roll(key_frame, 2, axis=1)
    return load_inputs(Photo(np.ascontiguousarray(frame)), Photo(pixels), Photo(np.asarray(key_frame)))


def _levels(stitched: np.ndarray) -> np.ndarray:
    return to_integers(stitched / 2 + 0.5, 8).astype(np.int16)
