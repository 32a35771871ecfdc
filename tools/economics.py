"""What a 12-megapixel photo takes on every profile's device, by prediction: the table of docs/planning.md.

    python tools/economics.py            # prints it
    python tools/economics.py --write    # puts it into the document
    python tools/economics.py --check    # exit code 1 if the document has another one

Planned from the full-size networks' graphs in benchmarks/graphs/, which ``tools/graphs_only.py`` made:

    python tools/graphs_only.py FOLDER --size sd3-medium --precision fp16 \
        --tile 1072x1072 --tile 1024x1024 --tile 768x768 --tile 512x512
    python tools/graphs_only.py FOLDER --size sd3-medium --precision fp32 --tile 512x512
"""

from __future__ import annotations

import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from document_table import DocumentTable, markdown

from livemoments.bundle import Bundle
from livemoments.profiles.planner.plan import Costs, Plan, PlanRequest, Plans, make_plans
from livemoments.profiles.read import NAMES, load_profile
from livemoments.profiles.schema import Profile
from livemoments.types import Size

ROOT = Path(__file__).parent.parent
GRAPHS = ROOT / "benchmarks" / "graphs"
TABLE = DocumentTable(ROOT / "docs" / "planning.md", "tools/economics.py")
PHOTO = Size(3072, 4096)
FRAME = Size(1080, 1440)
"""A phone's video beside a 4:3 photo."""
UPSTREAM_TILE = Size(1024, 1024)
UPSTREAM_ON = "h20"
_OVERLAPS = 16
"""A tile is this many times as long as its overlap, upstream's 1024 and 64 pixels, in whole cells of 16."""
_HEAD = ("what", "engines", "tiles", "plan", "TFLOP", "s", "GB", "budget, GB", "fits", "basis")
PUBLISHED = (
    ("the paper, on an H20", "PyTorch, fp16", "20 of 1024x1024", "-", "1978", "about 40", "14.6", "-", "-"),
    ("[OP4KSR](https://arxiv.org/abs/2605.13457), 4096x4096 on an H20", "-", "1", "a step", "-", "5.75", "-", "-", "-"),
)
"""Numbers of others: measured by their authors, not by us. 1978 is 20 times the paper's 98.91 a tile."""


@dataclass
class Graphs:
    """The full-size networks' graphs, unpacked; the costs of each are counted once.

    Args:
        folder: where they are unpacked.
    """

    folder: Path
    _costs: dict[tuple[str, Size], Costs] = field(default_factory=dict)

    def costs(self, precision: str, tile: Size) -> Costs:
        """Of the bundle that ``export --tile`` of one size makes."""
        key = (precision, tile)
        if key not in self._costs:
            place = self.folder / precision
            if not place.exists():
                with tarfile.open(GRAPHS / f"sd3-medium-{precision}.tar.xz") as archive:
                    archive.extractall(place, filter="data")
            opened = Bundle.open(place, verify_hashes=False, weights=False)
            overlap = max(1, round(min(tile.height, tile.width) / _OVERLAPS / 16)) * 16
            manifest = msgspec.structs.replace(opened.manifest, tiles=(str(tile),), overlap=overlap)
            self._costs[key] = Costs(Bundle(place, manifest))
        return self._costs[key]

    def plans(self, profile: Profile, tile: Size, **request: str) -> Plans:
        """The plans for a profile's device, with the engines that fit its kind."""
        costs = self.costs(engines_of(profile), tile)
        return make_plans(costs.bundle, profile, PlanRequest(PHOTO, frame=FRAME, **request), costs=costs)


def engines_of(profile: Profile) -> str:
    """Float32 on CPUs, whose engines are; else float16. Recipes are not counted."""
    return profile.base_precision


def profile_row(graphs: Graphs, name: str) -> tuple[str, ...]:
    """The fastest exact plan that fits a profile's device, with the tiles that the profile exports."""
    profile = load_profile(name)
    found = [graphs.plans(profile, Size.parse(size)) for size in profile.tiles.sizes]
    plans = min(found, key=lambda one: (one.chosen is None, (one.chosen or one.nearest).seconds or 0.0))
    return _row(f"`{name}`", profile, plans, plans.chosen or plans.nearest)


def upstream_plan(graphs: Graphs) -> tuple[Profile, Plans, Plan]:
    """Upstream's way with engines of ours: its tiles, one at a time, ReferenceNet at every step, everything loaded."""
    profile = load_profile(UPSTREAM_ON)
    tiles = msgspec.structs.replace(profile.tiles, plan="upstream", batch=1)
    profile = msgspec.structs.replace(profile, tiles=tiles)
    plans = graphs.plans(profile, UPSTREAM_TILE, reference="per-step")
    return profile, plans, _one_at_a_time(plans)


def frozen_plan(graphs: Graphs) -> tuple[Profile, Plans, Plan]:
    """The least work on the same device: balanced tiles, ReferenceNet once."""
    profile = load_profile(UPSTREAM_ON)
    plans = graphs.plans(profile, Size.parse(profile.tiles.sizes[0]), reference="frozen")
    return profile, plans, _one_at_a_time(plans)


def _one_at_a_time(plans: Plans) -> Plan:
    wanted = {"batch": 1, "residency": "all", "flow": "engine", "kv_store": "host", "vae_tile": None}
    (plan,) = [plan for plan in plans.plans if all(getattr(plan, key) == value for key, value in wanted.items())]
    return plan


def _row(what: str, profile: Profile, plans: Plans, plan: Plan) -> tuple[str, ...]:
    fits = "yes" if plan.fits else f"no: {plan.over_bytes / 1e9:.1f} GB too much"
    flow = "RAFT" if plan.flow == "engine" else "DIS"
    vae = f", VAE in {plan.vae_tile}" if plan.vae_tile else ""
    return (
        what,
        engines_of(profile),
        f"{plan.tiles} of {plan.tile}",
        f"{plan.reference}, {flow}, engines `{plan.residency}`, batch {plan.batch}{vae}",
        f"{plan.flops / 1e12:.0f}",
        "unknown" if plan.seconds is None else f"{plan.seconds:.0f}",
        f"{plan.peak_bytes / 1e9:.1f}",
        "-" if plans.budget_bytes is None else f"{plans.budget_bytes / 1e9:.1f}",
        fits,
        "predicted",
    )


def make_table() -> str:
    """The table as Markdown."""
    rows = [_HEAD]
    with tempfile.TemporaryDirectory(prefix="livemoments-graphs-") as name:
        graphs = Graphs(Path(name))
        for profile in NAMES:
            rows.append(profile_row(graphs, profile))
        rows.append(_row(f"upstream's way, on `{UPSTREAM_ON}`", *upstream_plan(graphs)))
        rows.append(_row(f"least work, on `{UPSTREAM_ON}`", *frozen_plan(graphs)))
    rows += [(*row, "published") for row in PUBLISHED]
    return markdown(*rows)


if __name__ == "__main__":
    raise SystemExit(TABLE.main(__doc__, make_table))
