"""A whole photo through the PyTorch engines with random weights: seconds from decoded images to the finished picture.

Needs what ``livemoments restore`` needs, and diffusers for the VAE. One photo goes first, in which everything is made,
compiled and captured; the others are timed. Written after every photo.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from bench_path import make_importable

PACKAGE_FROM = make_importable()

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_environment import describe_environment  # noqa: E402
from bench_measure import peak_memory, quantiles  # noqa: E402
from bench_networks import Setup  # noqa: E402
from gpu_state import read_clocks, write_json  # noqa: E402
from random_bundle import RandomBackend, random_bundle  # noqa: E402

from livemoments.live_photo import LivePhoto  # noqa: E402
from livemoments.pytorch.backend import TorchBackend  # noqa: E402
from livemoments.reference.checkpoint_sizes import SIZES  # noqa: E402
from livemoments.runtime.image_files.photo import Photo  # noqa: E402
from livemoments.runtime.options import RestoreOptions  # noqa: E402
from livemoments.runtime.restore import RestoreResult, restore  # noqa: E402
from livemoments.simulated_clip import synthetic_photograph  # noqa: E402
from livemoments.types import Size  # noqa: E402
from livemoments.validate.harness.kept_engines import KeptEngines  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Measure one provider and policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda", help="a device and words, as 'livemoments restore' takes them")
    parser.add_argument("--policy", default="frozen", help="when ReferenceNet runs")
    parser.add_argument("--flow", choices=["engine", "dis"], default="engine")
    parser.add_argument("--photo", default="4032x3024", metavar="WxH")
    parser.add_argument("--size", choices=sorted(SIZES), default="sd3-medium")
    parser.add_argument("--tile", type=int, default=1024, metavar="PX")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--commit", metavar="HASH")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    backend = TorchBackend(arguments.provider)
    device = torch.device(backend.options.device)
    setup = Setup(SIZES[arguments.size], arguments.tile, device, getattr(torch, arguments.dtype))
    bundle = random_bundle(setup, overlap_px=arguments.tile // 16)
    options = RestoreOptions(reference=arguments.policy, flow=arguments.flow, batch=arguments.batch)
    live = _live_photo(Size.parse(arguments.photo))
    record: dict[str, Any] = {
        "environment": describe_environment(device, PACKAGE_FROM, arguments.commit),
        "command": [Path(__file__).name, *(sys.argv[1:] if argv is None else argv)],
        "provider": backend.provider,
        "policy": arguments.policy,
        "flow": arguments.flow,
        "photo": arguments.photo,
        "tile_px": arguments.tile,
        "size": arguments.size,
    }
    seconds: list[float] = []
    engines = KeptEngines(RandomBackend(setup, backend), options.policy(bundle))
    with contextlib.closing(engines), peak_memory(device) as peak:
        for number in range(1 + arguments.repeats):
            started = time.perf_counter()
            result = restore(bundle, live, options, backend=engines)
            took = time.perf_counter() - started
            if number == 0:
                record |= {"first_photo_s": took, "tiles": len(result.plan.tiles)}
            else:
                seconds.append(took)
                record |= {"seconds": seconds, "median_s": quantiles([1e3 * s for s in seconds]).median_ms / 1e3}
                record["stages"] = _stages(result)
            write_json(arguments.output, record)
    record |= {"peak_memory_bytes": {"allocated": peak.allocated, "reserved": peak.reserved}}
    write_json(arguments.output, record | {"clocks_after": read_clocks()})
    print(f"{backend.provider} {arguments.policy}: {record.get('median_s')} s a photo of {record['tiles']} tiles")
    return 0


def _live_photo(size: Size) -> LivePhoto[Photo]:
    photo = synthetic_photograph(size)
    half = cv2.resize(photo, (size.width // 2, size.height // 2), interpolation=cv2.INTER_AREA)
    frame = Photo(np.ascontiguousarray(np.roll(half, 2, axis=1)))
    return LivePhoto(frame, Photo(photo), Photo(np.asarray(half)))


def _stages(result: RestoreResult) -> dict[str, dict[str, float]]:
    """Where the last photo's time went; a stage's runs wait for the device only where something comes to the host."""
    return {name: {"seconds": t.seconds, "runs": t.count} for name, t in result.timings.stages.items()}


if __name__ == "__main__":
    sys.exit(main())
