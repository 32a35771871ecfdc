"""A bundle's stages and whole tiles, timed by the project's own meters, with the back-end that a provider names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench_path import make_importable

PACKAGE_FROM = make_importable()

import msgspec  # noqa: E402
import torch  # noqa: E402
from bench_environment import describe_environment  # noqa: E402
from gpu_state import read_clocks, write_json  # noqa: E402

from livemoments.bundle import Bundle  # noqa: E402
from livemoments.runtime.options import RestoreOptions  # noqa: E402
from livemoments.validate.cost.latency import measure_stages, measure_tiles, percentiles  # noqa: E402
from livemoments.version import version_of  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Measure one bundle with one provider; written after every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--policies", default="frozen,per-step", help="of the whole tiles")
    parser.add_argument("--runs", type=int, default=10, metavar="N")
    parser.add_argument("--commit", metavar="HASH")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    bundle = Bundle.open(arguments.bundle, verify_hashes=False)
    options = RestoreOptions(provider=arguments.provider)
    backend = options.open_backend(bundle)
    device = torch.device("cpu" if arguments.provider.startswith("cpu") else "cuda")
    record: dict[str, Any] = {
        "environment": describe_environment(device, PACKAGE_FROM, arguments.commit),
        "command": [Path(__file__).name, *(sys.argv[1:] if argv is None else argv)],
        "backend": f"{backend.name}:{backend.provider}",
        "onnxruntime": next((v for n in ("onnxruntime-gpu", "onnxruntime") if (v := version_of(n))), None),
        "precision": bundle.manifest.precision,
        "tile": bundle.manifest.tiles[0],
        "tiles": {},
    }
    for policy in arguments.policies.split(","):
        chosen = RestoreOptions(provider=arguments.provider, reference=policy, flow="dis")
        cost = measure_tiles(bundle, chosen, backend, runs=arguments.runs)
        record["tiles"][policy] = {"seconds": list(cost.seconds), **percentiles(cost.seconds)}
        write_json(arguments.output, record)
    stages = measure_stages(bundle, backend, runs=arguments.runs)
    record["stages"] = [msgspec.to_builtins(stage) for stage in stages]
    write_json(arguments.output, record | {"clocks_after": read_clocks()})
    for policy, tile in record["tiles"].items():
        print(f"{record['backend']} {policy}: {1e3 * tile['p50']:.1f} ms a tile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
