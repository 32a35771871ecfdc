"""Count a bundle's stages once and write the counts down, so that tests plan with networks that they cannot trace.

    python tools/graphs_only.py BUNDLE --size sd3-medium --precision fp16 --tile 1072x1072 --tile 512x512
    python tools/plan_costs.py BUNDLE tests/golden/plans/sd3-medium-fp16.json --frame 1440x1080

The file holds the manifest, without the graphs' tensors and the files, and a :class:`StageCost` for every stage, tile
size and weight-only recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from livemoments.bundle import Bundle
from livemoments.profiles.planner.cost import StageCost, cost_of_stage
from livemoments.profiles.planner.packed import RECIPES
from livemoments.store.files import write_file
from livemoments.types import TRANSFORMER_STAGES, Size, Stage


def count(bundle: Bundle, tiles: list[Size], frame: Size) -> dict[str, list[StageCost]]:
    """The costs by recipe; under ``none`` those of all stages, under the others the transformers'."""
    costs: dict[str, list[StageCost]] = {"none": [cost_of_stage(bundle, Stage.FLOW, frame)]}
    for size in tiles:
        costs["none"] += [cost_of_stage(bundle, stage, size) for stage in Stage]
        for recipe in RECIPES:
            packed = [cost_of_stage(bundle, stage, size, recipe=recipe) for stage in TRANSFORMER_STAGES]
            costs.setdefault(recipe, []).extend(packed)
        print(f"counted {size}", flush=True)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tile", type=Size.parse, action="append", help="[default: every one that the bundle has]")
    parser.add_argument("--frame", type=Size.parse, default=Size(1080, 1440))
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, verify_hashes=False, weights=False)
    tiles = options.tile or list(bundle.tile_sizes)
    manifest = msgspec.to_builtins(bundle.manifest)
    manifest |= {"files": {}, "tiles": [str(size) for size in tiles]}
    for stage in manifest["stages"].values():
        graphs = [graph for graph in stage["graphs"] if graph["size"] in ("any", *manifest["tiles"])]
        stage["graphs"] = [graph | {"inputs": [], "outputs": [], "weights": []} for graph in graphs]
    document = {"manifest": manifest, "costs": count(bundle, tiles, options.frame)}
    write_file(options.output, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


if __name__ == "__main__":
    main()
