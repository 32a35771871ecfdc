"""Write a bundle of graphs without weights: enough for 'livemoments plan', and a few megabytes.

    python tools/graphs_only.py BUNDLE --size sd3-medium --precision fp16 --tile 1024x1024

The networks have the published sizes and are traced on the meta device from a checkpoint whose tensors are holes in
files; nothing of theirs is computed or written. Such a bundle opens with ``Bundle.open(…, weights=False)`` only.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch

from livemoments.export.pipeline import default_overlap
from livemoments.export.plan import ANY_SIZE, Planner
from livemoments.export.stages import PER_BLOCK
from livemoments.export.to_onnx import trace
from livemoments.manifest import SCHEMA_VERSION, FileEntry, Graph, Manifest, Source, StageEntry
from livemoments.reference import random_checkpoint
from livemoments.reference.checkpoint import model_of, read_configs, read_prompt
from livemoments.reference.layout import locate
from livemoments.schedule import build_schedule
from livemoments.store.safetensors_file import ITEM_BYTES
from livemoments.types import Size, Stage
from livemoments.version import __version__

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
FLOW_PRECISION = "fp32"
NO_DIGEST = "0" * 64
INLINE_BYTES = 256
"""Constants up to this size stay in the graph."""


def write_hollow(folder: Path, stem: str, shapes: dict[str, tuple[int, ...]], dtype: str, *_: Any) -> None:
    """A safetensors file of zeros that takes no disk: its tensors are a hole."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        kind = {"float16": "F16", "float32": "F32"}[dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / f"{stem}.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def make_hollow_checkpoint(folder: Path, size: str) -> Path:
    with (
        mock.patch.object(random_checkpoint, "write_sharded", write_hollow),
        mock.patch.object(random_checkpoint, "_check_space", return_value=None),
    ):
        random_checkpoint.make_checkpoint(folder, size=size, dtype="float16")
    return folder


def without_weights(model: ir.Model, offset: int) -> int:
    """Put every weight outside of the graph, into a file that is not written; where it ends there."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE_BYTES:
            continue
        value.const_value = ir.ExternalTensor(
            "weights.bin", offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name or ""
        )
        offset += tensor.nbytes
    return offset


def write_stage(
    planner: Planner, stage: Stage, sizes: list[Size], folder: Path, precision: str
) -> tuple[StageEntry, dict[str, FileEntry]]:
    graphs: list[Graph] = []
    files: dict[str, FileEntry] = {}
    weights = f"{stage}/weights.bin"
    (folder / stage).mkdir(parents=True)
    end = parameters = before = 0
    for size in sizes:
        plan = planner.graph(stage, size)
        if any(graph.size == plan.size for graph in graphs):
            continue
        model, _ = trace(plan)
        parameters = sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value)
        before = plan.parameters_before
        end = max(end, without_weights(model, 0))
        path = f"{stage}/{plan.size}.onnx"
        (folder / path).write_bytes(ir.to_proto(model).SerializeToString())
        files[path] = FileEntry(sha256=NO_DIGEST, bytes=(folder / path).stat().st_size)
        graphs.append(Graph(path=path, size=plan.size, weights=(weights,), inputs=plan.inputs, outputs=plan.outputs))
        print(f"{stage} {plan.size}: {parameters / 1e6:.1f} M parameters", flush=True)
        if plan.size == ANY_SIZE:
            break
    files[weights] = FileEntry(sha256=NO_DIGEST, bytes=end)
    own = FLOW_PRECISION if stage is Stage.FLOW else precision
    entry = StageEntry(precision=own, graphs=tuple(graphs), parity=(), parameters=parameters, parameters_before=before)
    return entry, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", default="sd3-medium", help="see make-checkpoint")
    parser.add_argument("--precision", choices=list(TYPES), default="fp16")
    parser.add_argument("--tile", type=Size.parse, action="append", required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 4, 6], help="step counts of the schedule")
    options = parser.parse_args()
    options.bundle.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="livemoments-hollow-") as name:
        files = locate(make_hollow_checkpoint(Path(name) / "checkpoint", options.size))
        configs = read_configs(files)
        prompt = read_prompt(files, configs.transformer)
        schedule = build_schedule(tuple(options.steps))
        planner = Planner(files, configs, prompt, schedule, TYPES[options.precision], PER_BLOCK)
        entries: dict[str, StageEntry] = {}
        listed: dict[str, FileEntry] = {}
        for stage in Stage:
            entries[str(stage)], found = write_stage(planner, stage, options.tile, options.bundle, options.precision)
            listed |= found
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer=f"livemoments-deploy {__version__}, graphs only",
            target="onnx",
            precision=options.precision,
            source=Source(name=f"{options.size}, without weights", files={}),
            model=model_of(configs, prompt, files.flow),
            schedule=schedule,
            tiles=tuple(str(size) for size in options.tile),
            overlap=default_overlap(configs, options.tile),
            reference_policy="per-step",
            kv_layout=PER_BLOCK,
            stages=entries,
            toolchain={},
            files=listed,
        )
    import msgspec

    (options.bundle / "manifest.json").write_bytes(msgspec.json.encode(manifest))


if __name__ == "__main__":
    main()
