"""The points of a sweep: every bundle with every combination of values, the impossible ones refused before any work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.profiles.sweeps.axes import Axis, with_values
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.schedule import plan_steps
from livemoments.types import ReferencePolicy
from livemoments.validate.harness.run_key import bundle_digest
from livemoments.validate.report.numbers import first_few, format_count

_MOST_NAMED = 8
_EXACT = "per-step"


@dataclass(frozen=True)
class Candidate:
    """One point, not yet measured.

    Attributes:
        bundle: opened.
        label: tells the bundle from the sweep's others.
        values: of the axes by their names, as text.
        settings: everything that matters named: two that do the same work are equal.
        exact: the settings of the exact result that it is held against.
    """

    bundle: Bundle
    label: str
    values: Mapping[str, str]
    settings: RestoreOptions
    exact: RestoreOptions

    def __str__(self) -> str:
        return " ".join([self.label, *(f"{name}={value}" for name, value in self.values.items())])


@dataclass(frozen=True)
class Grid:
    """The points, in the order of the bundles and values, and how many combinations do the same work as others."""

    candidates: tuple[Candidate, ...]
    merged: int


def make_grid(bundles: Sequence[Bundle], axes: Sequence[Axis], base: RestoreOptions, exact: Bundle) -> Grid:
    """Combine bundles and axes.

    Args:
        bundles: opened.
        axes: what varies.
        base: the options that do not.
        exact: the fp32 bundle whose results all others are held against.

    Raises:
        UsageError: an axis was named twice; a bundle is of another checkpoint than the exact one; a combination that
            ``livemoments restore`` would refuse, or that no exact result can be made for: all of these are named.
        MissingExtraError: what a target or a residency needs is not installed.
    """
    names = [axis.name for axis in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"'{twice[0]}' is swept twice", fix="name all of its values in one --sweep")
    for bundle in bundles:
        if bundle.manifest.source.files != exact.manifest.source.files:
            raise UsageError(
                f"{bundle.path} and the exact bundle {exact.path} were exported from different checkpoints",
                fix="sweep one checkpoint's bundles at a time",
            )
    found: dict[tuple[str, str], Candidate] = {}
    impossible: list[tuple[str, str | None]] = []
    combinations = 0
    for bundle, label in zip(bundles, _labels(bundles), strict=True):
        for values in itertools.product(*(axis.values for axis in axes)):
            combinations += 1
            named = dict(zip(names, values, strict=True))
            shown = {name: str(value) for name, value in named.items()}
            try:
                settings = settle(with_values(base, named), bundle)
                settings.open_backend(bundle)  # which says whether it has the provider and the residency
                candidate = Candidate(bundle, label, shown, settings, exact_settings(settings, bundle, exact))
            except UsageError as error:
                point = " ".join([label, *(f"{name}={value}" for name, value in shown.items())])
                impossible.append((f"{point}: {error.message}", error.fix))
                continue
            found.setdefault((bundle_digest(bundle), str(settings.to_json())), candidate)
    if impossible:
        listed = first_few([what for what, _ in impossible], _MOST_NAMED, "; ")
        fixes = dict.fromkeys(fix for _, fix in impossible if fix)
        raise UsageError(
            f"{len(impossible)} of {format_count(combinations, 'point')} cannot be measured: {listed}",
            fix="; or ".join([*fixes, "leave them out"]),
        )
    return Grid(tuple(found.values()), combinations - len(found))


def settle(options: RestoreOptions, bundle: Bundle) -> RestoreOptions:
    """The options with everything named that the bundle decides, and as by default what has no effect.

    Raises:
        UsageError: an option cannot be used, alone or with this bundle.
    """
    known = options.for_bundle(bundle)
    steps = len(plan_steps(bundle.manifest.schedule, known.steps))
    policy = _settled(known.policy(bundle), steps)
    only_tile = bundle.tile_sizes[0] if len(bundle.tile_sizes) == 1 else None
    tile = known.tile or only_tile
    stores_kv = policy.name == "phase-split" or known.residency != "all"
    return replace(
        known,
        reference=str(policy),
        steps=steps,
        tile=tile,
        vae_tile=None if known.vae_tile == tile else known.vae_tile,  # a window as large as the tile is the tile
        kv_dtype=known.kv_dtype if stores_kv else "native",
    )


def _settled(policy: ReferencePolicy, steps: int) -> ReferencePolicy:
    """The plainest policy that does the same: of a single step, frozen is per-step; every-6 of six steps is frozen."""
    sources = policy.source_steps(steps)
    if policy.name == "phase-split":
        return policy
    if sources == tuple(range(steps)):
        return ReferencePolicy("per-step")
    return ReferencePolicy("frozen") if not any(sources) else policy


def exact_settings(settings: RestoreOptions, bundle: Bundle, exact: Bundle) -> RestoreOptions:
    """How the exact bundle restores for a point: its own steps and flow, exact policy, the point's tiles and seed.

    The noise is drawn tile by tile, so that other tiles give another picture, not a worse one: a point is held against
    the exact result with its own tiles.

    Raises:
        UsageError: the exact bundle does not have these tiles.
    """
    if bundle.manifest.overlap != exact.manifest.overlap:
        raise UsageError(
            f"its tiles overlap by {bundle.manifest.overlap} pixels, the exact bundle's by {exact.manifest.overlap}",
            fix="export both with the same tile sizes",
        )
    if settings.tile is None and set(bundle.tile_sizes) != set(exact.tile_sizes):
        own, others = (", ".join(map(str, one.tile_sizes)) for one in (bundle, exact))
        raise UsageError(f"it has {own} tiles, the exact bundle {others}", fix="name one with --sweep tile=WxH")
    if settings.tile is not None and settings.tile not in exact.tile_sizes:
        raise UsageError(
            f"the exact bundle {exact.path} has no graphs for {settings.tile} tiles",
            fix=f"export it again with --tile {settings.tile}",
        )
    wanted = replace(
        settings,
        steps=None,
        reference=_EXACT,
        flow=None,
        kv_dtype="native",
        batch=1,
        residency="all",
        vae_tile=None,
        pcr_grid=1,
    )
    return settle(wanted, exact)


def find_exact(bundles: Sequence[Bundle]) -> Bundle:
    """The first bundle whose engines are float32 and not quantized.

    Raises:
        UsageError: there is none.
    """
    for bundle in bundles:
        if bundle.manifest.precision == "fp32" and bundle.manifest.recipe is None:
            return bundle
    raise UsageError(
        "every point is held against the exact fp32 result, and none of the bundles is fp32 and not quantized",
        fix="name one with --exact, or export the checkpoint with --precision fp32",
    )


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """The folders' names, or their paths where two have the same."""
    names = [bundle.path.resolve().name for bundle in bundles]
    return [name if names.count(name) == 1 else str(bundle.path) for name, bundle in zip(names, bundles, strict=True)]
