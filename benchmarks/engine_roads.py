"""Engines of one checkpoint by both roads, from graphs and by torch-tensorrt: layers, bytes, building, and on the GPU
their outputs and times.

    python benchmarks/engine_roads.py [--size tiny|small|mid|sd3-medium] [--engine rtx|tensorrt] [--tile WxH]
        [--stages STAGE,…] [--runs 50] [--work DIR]

Method. A checkpoint is made and exported in fp16 with ``--target tensorrt``; ``livemoments build`` builds each stage by
both roads for the GPU of this machine, in processes of their own. Then both engines run on the same random inputs,
which stay on the device: relative L2 of each one's worst output from onnxruntime's on the CPU, and milliseconds between
two CUDA events around each of ``--runs`` runs, after ten that are not counted. A road that does not build a stage is in
the record with the library's words.

Needs an NVIDIA GPU, in an environment with the extra ``torch-tensorrt`` or ``torch-tensorrt-rtx``. **Not run yet.**
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import summary, write_record
from engines import TILES, run

from livemoments.bundle import Bundle
from livemoments.distances import relative_l2
from livemoments.engine_files import VIAS
from livemoments.export.gate import random_inputs
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.tensorrt.gpu import find_gpu
from livemoments.tensorrt.library import load_library
from livemoments.types import Stage, TensorSpec
from livemoments.validate.cost.fresh_process import measure_process

WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TILES), default="tiny")
    parser.add_argument("--engine", choices=["rtx", "tensorrt"], default="rtx")
    parser.add_argument("--tile", help="default: by the checkpoint's size")
    parser.add_argument("--stages", default="motion,reference,restoration,vae_encoder,vae_decoder")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the bundle (default: temporary)")
    options = parser.parse_args()
    gpu = find_gpu()
    if gpu is None or not torch.cuda.is_available():
        raise SystemExit("no GPU that NVIDIA's management library and PyTorch both see: nothing can be measured here")
    with tempfile.TemporaryDirectory(prefix="livemoments-roads-", dir=options.work) as name:
        rows = measure(Path(name), options, gpu.sm)
    record = {"gpu": gpu.name, "driver": gpu.driver, "library": load_library(options.engine).title, "stages": rows}
    print(write_record(f"engine-roads-{options.size}", record))


def measure(work: Path, options: argparse.Namespace, sm: str) -> list[dict[str, Any]]:
    """A row for each stage and road."""
    checkpoint, bundle = work / "checkpoint", work / "bundle"
    run("make-checkpoint", checkpoint, "--size", options.size)
    tile = options.tile or TILES[options.size]
    run(
        *("export", checkpoint, "-o", bundle, "--target", "tensorrt", "--precision", "fp16", "--verify", "none"),
        *(("--tile", tile) if tile else ()),
        *("--stages", options.stages),
    )
    rows = []
    for stage in options.stages.split(","):
        for via in VIAS:
            arguments = ["build", bundle, "--engine", options.engine, "--stages", stage, "--via", via, "--json"]
            arguments += ["--sm", sm] if options.engine == "rtx" else []
            arguments += ["--checkpoint", checkpoint] if via != VIAS[0] else []
            built = measure_process([sys.executable, "-m", "livemoments", *map(str, arguments)])
            row: dict[str, Any] = {"stage": stage, "via": via}
            if built.returncode:
                row["refused"] = built.stderr.strip()
            else:
                (engine,) = json.loads(built.stdout)["engines"]
                row |= {name: engine[name] for name in ("layers", "bytes", "seconds", "peak_rss_bytes")}
                row |= run_engine(Bundle.open(bundle), Stage(stage), bundle / engine["path"], options)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def run_engine(bundle: Bundle, stage: Stage, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Error and time of an engine on random inputs."""
    (size,) = bundle.tile_sizes
    graph = bundle.graph(stage, size)
    with OrtBackend("cpu").open(bundle, stage, size) as reference:
        inputs = reference.cast(random_inputs(graph.inputs))
        wanted = reference.run(inputs)
    library = load_library(options.engine).module
    engine = library.Runtime(library.Logger(library.ILogger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    held = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in inputs.items()}
    held |= {spec.name: _empty(spec) for spec in graph.outputs}
    for name, tensor in held.items():
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()
    stream, times = torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        for index in range(WARM_UP + options.runs):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            if not context.execute_async_v3(stream.cuda_stream):
                raise SystemExit(f"{path.name}: the library did not run it")
            after.record()
            after.synchronize()
            if index >= WARM_UP:
                times.append(before.elapsed_time(after))
    found = {spec.name: held[spec.name].float().cpu().numpy() for spec in graph.outputs}
    worst = max(relative_l2(array, wanted[name].astype(np.float32)) for name, array in found.items())
    return {"milliseconds": summary(times), "worst_rel_l2": worst}


def _empty(spec: TensorSpec) -> torch.Tensor:
    shape = [1 if axis == "batch" else axis for axis in spec.shape]
    return torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cuda")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
