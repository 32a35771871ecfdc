"""What a 12-megapixel photo takes on every profile's device, by prediction: a Markdown table for docs/planning.md.

python tools/graphs_only.py BUNDLE --size sd3-medium --precision fp16 --tile 1072x1072 --tile 768x768
python tools/economics.py BUNDLE
"""

from __future__ import annotations

import argparse
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.profiles.planner.plan import PlanRequest, make_plans
from livemoments.profiles.read import NAMES, load_profile
from livemoments.types import Size

PHOTO = Size(3072, 4096)
FRAME = Size(1080, 1440)
"""A phone's video beside a 4:3 photo."""


def row(bundle: Bundle, name: str) -> str:
    profile = load_profile(name)
    plans = make_plans(bundle, profile, PlanRequest(PHOTO, frame=FRAME))
    plan = plans.chosen or plans.nearest
    seconds = "unknown" if plan.seconds is None else f"{plan.seconds:.0f}"
    budget = "-" if plans.budget_bytes is None else f"{plans.budget_bytes / 1e9:.1f}"
    fits = "yes" if plans.chosen else f"no: {plan.over_bytes / 1e9:.1f} GB too much"
    flow = "RAFT" if plan.flow == "engine" else "DIS"
    return (
        f"| `{name}` | {plan.tiles} of {plan.tile} | {plan.reference}, {flow}, engines `{plan.residency}` | "
        f"{plan.flops / 1e12:.0f} | {seconds} | {plan.peak_bytes / 1e9:.1f} | {budget} | {fits} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, verify_hashes=False, weights=False)
    print("| profile | tiles | plan | TFLOP | s, predicted | GB, predicted | budget, GB | fits |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in NAMES:
        if load_profile(name).kind != "cpu":  # whose engines are float32, which these graphs are not
            print(row(bundle, name))


if __name__ == "__main__":
    main()
