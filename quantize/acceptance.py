"""What a quantized bundle must pass before it is put in place.

Its engines are run beside the source's on the same inputs: outputs must be finite, alive, not saturated and within the
limit of their stage and precision, and a step must not take longer than the source's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from livemoments.bundle import Bundle
from livemoments.distances import relative_l2
from livemoments.errors import CheckFailedError, EngineError, ParityError, UsageError
from livemoments.export.gate import dead_channels
from livemoments.export.stages import PER_BLOCK
from livemoments.limits import load_limits
from livemoments.manifest import StageParity
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.recipes import FLOAT_RECIPES, PACKAGES, Recipe, names_for
from livemoments.quantize.sample_inputs import Arrays, SampleInputs
from livemoments.runtime.backends.base import Engine, to_host
from livemoments.types import Size, Stage

MOST_SLOWER = 1.05
"""A quantized step may take this many times the source's: what repeated measurements of equal engines differ by."""
_ROUNDS = 5
_MOST_TIMING_S = 60.0
_FEWEST_ROUNDS = 2
_SATURATED = 0.01
"""Share of an output's values that may sit exactly at its least or largest value, beyond what the source's do."""


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """The fastest of several runs of one stage, source and quantized in turn."""

    stage: str
    size: str
    source_s: float
    quantized_s: float

    @property
    def ratio(self) -> float:
        """How many times as fast the quantized engine is."""
        return self.source_s / self.quantized_s


def check_source(bundle: Bundle, recipe: Recipe) -> None:
    """Refuse a bundle that is quantized already, or that the recipe is not for.

    Raises:
        UsageError: it is; it is in half precision and that is what the recipe makes; it was exported for TensorRT and
            the recipe is not made for that; its keys and values are one tensor and the recipe makes them int8.
    """
    manifest = bundle.manifest
    if manifest.recipe not in FLOAT_RECIPES:
        raise UsageError(
            f"{bundle.path} is quantized already (recipe '{manifest.recipe}'); its errors would add up",
            fix="quantize the bundle that it was made from",
        )
    if recipe.half and manifest.precision != "fp32":
        raise UsageError(
            f"{bundle.path} is in {manifest.precision} already", fix="take the fp32 bundle, or another recipe"
        )
    if recipe.for_packages != (manifest.target == PACKAGES):
        raise UsageError(
            f"recipe '{recipe.name}' is not for bundles of --target {manifest.target}",
            fix=f"use {', '.join(names_for(manifest.target))}",
        )
    if not (
        recipe.for_packages or bundle.has_onnx_graphs
    ):  # the graphs run in onnxruntime, which calibrates and guards
        raise UsageError(f"{bundle.path} is made for {manifest.target}", fix="quantize a bundle of --target onnx")
    if recipe.keys_values and manifest.kv_layout != PER_BLOCK:
        raise UsageError(
            f"{bundle.path} passes keys and values as one tensor, and '{recipe.name}' makes them int8 block by block",
            fix="export with --kv-layout per-block",
        )
    if manifest.target == "tensorrt" and "tensorrt" not in recipe.devices:
        why = (
            "its zero points change with the timestep, and TensorRT wants them constant and 0"
            if recipe.action is Action.INT8_STATIC
            else "its products are onnxruntime's own operators"
        )
        raise UsageError(
            f"{bundle.path} was exported for TensorRT, which does not take the recipe '{recipe.name}': {why}",
            fix="use int8-tensorrt, int8-rotated or fp8, or quantize a bundle of --target onnx",
        )


def check_mix(mix: Mix, recipe: Recipe, bundle: Bundle) -> None:
    """Refuse a mix that quantizes nothing.

    Raises:
        UsageError: it does not, and the recipe does not change the graph otherwise; or packages are to be made by
            several actions.
    """
    if recipe.for_packages and (other := set(mix.values()) - {Action.KEEP, recipe.action}):
        raise UsageError(
            f"Core ML packages are compressed by one recipe: '{recipe.name}' has no '{min(a.value for a in other)}'",
            fix="keep these layers",
        )
    if recipe.half or any(action is not Action.KEEP for action in mix.values()):
        return
    stages = ", ".join(recipe.stages)
    raise UsageError(
        f"recipe '{recipe.name}' would quantize nothing in {bundle.path} (it is for the stages {stages})",
        fix="use another recipe, or a bundle with these stages",
    )


def compare_stage(
    source: Engine, quantized: Engine, samples: SampleInputs, stage: Stage, size: Size, precision: str
) -> StageParity:
    """Run both engines on the same inputs and compare.

    Raises:
        EngineError: an output is not finite, dead or saturated.
        ParityError: an output is further from the source's than the limit for this precision.
    """
    limit = load_limits(precision).stage_rel_l2[str(stage)]
    worst, label, points = -1.0, "", []
    for point, inputs in samples.cases(stage, size):
        wanted = source.run(source.cast(inputs))
        samples.learn(stage, size, point, {name: to_host(array) for name, array in wanted.items()})
        outputs = quantized.run(quantized.cast(inputs))
        where = f"{precision} stage '{stage}' ({size})" + ("" if point is None else f" at schedule point {point}")
        if point is not None:
            points.append(point)
        for name, array in wanted.items():
            error = _compare(to_host(outputs[name]), to_host(array), f"{where}, output '{name}'", stage)
            if error > worst:
                worst, label = error, name if point is None else f"{name}@{point}"
    if not worst <= limit:
        raise ParityError(
            f"{precision} stage '{stage}' ({size}): output '{label}' is {worst:.3g} from the source bundle's (relative "
            f"L2), the limit is {limit:.3g}",
            fix="keep the sensitive layers (keep = […] in a recipe), or give --budget",
        )
    return StageParity(size=str(size), rel_l2=worst, limit=limit, output=label, points=tuple(points))


def _compare(output: np.ndarray, wanted: np.ndarray, what: str, stage: Stage) -> float:
    wide, wanted = output.astype(np.float32), wanted.astype(np.float32)
    if not np.isfinite(wide).all():
        raise EngineError(f"{what}: NaN or infinity", fix="use another recipe, and report it")
    dead = dead_channels(wide, wanted, stage.channel_axis)
    if dead:
        raise EngineError(f"{what}: {dead} channels are constant and the source's are not", fix="calibrate again")
    share = _extreme_share(wide) - _extreme_share(wanted)
    if share > _SATURATED:
        raise EngineError(
            f"{what}: saturated, {share:.0%} of the values sit at the least or the largest one",
            fix="calibrate on photographs like those that will be restored",
        )
    return relative_l2(wide, wanted)


def _extreme_share(array: np.ndarray) -> float:
    """Share of values that equal the least or the largest one."""
    return float(((array == array.min()) | (array == array.max())).mean())


def time_stage(
    source: Engine, quantized: Engine, inputs: Arrays, stage: Stage, size: Size, *, rounds: int = _ROUNDS
) -> StageSpeed:
    """Time both engines in turn, so that what slows the machine down slows both."""
    feeds = [(engine, engine.cast(inputs)) for engine in (source, quantized)]
    best = [float("inf")] * 2
    started = time.perf_counter()
    for number in range(rounds):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _MOST_TIMING_S:
            break
        for place, (engine, feed) in enumerate(feeds):
            before = time.perf_counter()
            engine.run(feed)
            best[place] = min(best[place], time.perf_counter() - before)
    return StageSpeed(str(stage), str(size), *best)


def refuse_slower(speeds: Sequence[StageSpeed], recipe: Recipe, *, allow_slower: bool) -> None:
    """Refuse engines that are slower than the source's, all timed stages together.

    Raises:
        CheckFailedError: they are, and ``allow_slower`` is false.
    """
    source = sum(speed.source_s for speed in speeds)
    quantized = sum(speed.quantized_s for speed in speeds)
    if allow_slower or not speeds or quantized <= source * MOST_SLOWER:
        return
    stages = ", ".join(f"{s.stage} {s.source_s * 1e3:.0f} -> {s.quantized_s * 1e3:.0f} ms" for s in speeds)
    raise CheckFailedError(
        f"'{recipe.name}' is slower here than the source bundle: {quantized / source:.2f} times as long ({stages})",
        fix="use another recipe; if its smaller memory is what you need, pass --allow-slower",
    )
