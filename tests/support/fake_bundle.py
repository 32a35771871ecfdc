"""Small hand-made bundles: every stage is a tiny ONNX graph with the interface of the real one.

The arithmetic is invented but not degenerate: each output depends on each input, so a mix-up of tiles, steps, keys
and values or motion shows in the picture. Weights are seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from livemoments.bundle import Bundle, write_bundle
from livemoments.manifest import SCHEMA_VERSION, Graph, Manifest, Model, Schedule, Source, StageEntry
from livemoments.schedule import build_schedule
from livemoments.types import FlowNetwork, Size, Stage, TensorSpec, whole_bundle

BLOCKS = 2
WIDTH = 8
CHANNELS = 16
VAE_SCALE = 8
PATCH = 2
SHIFT, SCALING = 0.0609, 1.5305
_OPSET = 20
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


@dataclass
class GraphMaker:
    """Collects nodes and initializers of one graph."""

    dtype: str
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, shape: Sequence[int], scale: float) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(self.dtype))

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, self.dtype))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def tokens(self, image: str, channels: int, patch: int) -> str:
        """(B,C,H,W) -> (B,N,WIDTH)."""
        weight = self.weight((WIDTH, channels, patch, patch), 1 / (patch * channels**0.5))
        patches = self.op("Conv", image, weight, strides=[patch, patch])
        return self.op("Transpose", self.op("Reshape", patches, self.ints(0, WIDTH, -1)), perm=[0, 2, 1])

    def at_step(self, points: int) -> str:
        """A scalar that depends on the input ``step``."""
        return self.op("Gather", self.constant(np.linspace(1, 2, points).astype(self.dtype)), "step", axis=0)


def _flow(g: GraphMaker, _size: Size, _points: int, _layout: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    difference = g.op("Sub", "image2", "image1")
    g.op("Conv", difference, g.weight((2, 3, 3, 3), 3.0), output="flow", pads=[1, 1, 1, 1])
    images = [TensorSpec(name, g.dtype, ("batch", 3, "height", "width")) for name in ("image1", "image2")]
    return images, [TensorSpec("flow", g.dtype, ("batch", 2, "height", "width"))]


def _encoder(g: GraphMaker, size: Size, _points: int, _layout: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    stride = [VAE_SCALE, VAE_SCALE]
    g.op("Conv", "image", g.weight((CHANNELS, 3, *stride), 0.1), output="mean", strides=stride)
    spread = g.op("Sigmoid", g.op("Conv", "image", g.weight((CHANNELS, 3, *stride), 0.1), strides=stride))
    g.op("Mul", spread, g.scalar(0.1), output="std")
    latent = ("batch", CHANNELS, size.height // VAE_SCALE, size.width // VAE_SCALE)
    return [TensorSpec("image", g.dtype, ("batch", 3, size.height, size.width))], [
        TensorSpec("mean", g.dtype, latent),
        TensorSpec("std", g.dtype, latent),
    ]


def _motion(g: GraphMaker, size: Size, _points: int, _layout: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    tokens = g.op("Unsqueeze", g.tokens("flow", 2, VAE_SCALE * PATCH), g.ints(0))
    g.op("Mul", tokens, g.weight((BLOCKS, 1, 1, WIDTH), 0.1), output="motion_bias")
    count = size.height * size.width // (VAE_SCALE * PATCH) ** 2
    return [TensorSpec("flow", g.dtype, ("batch", 2, size.height, size.width))], [
        TensorSpec("motion_bias", g.dtype, (BLOCKS, "batch", count, WIDTH))
    ]


def _kv_specs(size: Size, layout: str, dtype: str) -> list[TensorSpec]:
    count = size.height * size.width // (VAE_SCALE * PATCH) ** 2
    if layout == "stacked":
        return [TensorSpec("reference_kv", dtype, (BLOCKS, 2, "batch", count, WIDTH))]
    names = [f"reference_{kind}.{block}" for block in range(BLOCKS) for kind in "kv"]
    return [TensorSpec(name, dtype, ("batch", count, WIDTH)) for name in names]


def _latent_specs(size: Size, dtype: str) -> list[TensorSpec]:
    shape = ("batch", CHANNELS, size.height // VAE_SCALE, size.width // VAE_SCALE)
    return [TensorSpec("latent", dtype, shape), TensorSpec("step", "int64", ())]


def _reference(g: GraphMaker, size: Size, points: int, layout: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    tokens = g.op("Mul", g.tokens("latent", CHANNELS, PATCH), g.at_step(points))
    stacks = []
    for block in range(BLOCKS):
        kv = []
        for kind in "kv":
            name = f"reference_{kind}.{block}" if layout == "per-block" else None
            kv.append(g.op("MatMul", tokens, g.weight((WIDTH, WIDTH), 0.4), output=name))
        if layout == "stacked":
            pair = [g.op("Unsqueeze", name, g.ints(0, 1)) for name in kv]
            stacks.append(g.op("Concat", *pair, axis=1))
    if layout == "stacked":
        g.op("Concat", *stacks, axis=0, output="reference_kv")
    return _latent_specs(size, g.dtype), _kv_specs(size, layout, g.dtype)


def _restoration(g: GraphMaker, size: Size, points: int, layout: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    x = g.op("Mul", g.tokens("latent", CHANNELS, PATCH), g.at_step(points))
    for block in range(BLOCKS):
        if layout == "stacked":
            of_block = g.op("Gather", "reference_kv", g.constant(np.array(block)), axis=0)
            key, value = (g.op("Gather", of_block, g.constant(np.array(i)), axis=0) for i in range(2))
        else:
            key, value = f"reference_k.{block}", f"reference_v.{block}"
        bias = g.op("Gather", "motion_bias", g.constant(np.array(block)), axis=0)
        scores = g.op("MatMul", x, g.op("Transpose", g.op("Add", key, bias), perm=[0, 2, 1]))
        attended = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        x = g.op("Add", x, attended)
    rows, columns = size.height // VAE_SCALE // PATCH, size.width // VAE_SCALE // PATCH
    grid = g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1]), g.ints(0, WIDTH, rows, columns))
    weight = g.weight((WIDTH, CHANNELS, PATCH, PATCH), 1.0)
    g.op("ConvTranspose", grid, weight, output="velocity", strides=[PATCH, PATCH])
    motion = _motion(GraphMaker(g.dtype, np.random.default_rng(0)), size, points, layout)[1]
    inputs = _latent_specs(size, g.dtype) + _kv_specs(size, layout, g.dtype) + motion
    return inputs, [TensorSpec("velocity", g.dtype, inputs[0].shape)]


def _decoder(g: GraphMaker, size: Size, _points: int, _layout: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    weight = g.weight((CHANNELS, 3, VAE_SCALE, VAE_SCALE), 0.15)
    g.op("ConvTranspose", "latent", weight, output="image", strides=[VAE_SCALE, VAE_SCALE])
    return _latent_specs(size, g.dtype)[:1], [TensorSpec("image", g.dtype, ("batch", 3, size.height, size.width))]


_MAKERS = {
    Stage.FLOW: _flow,
    Stage.VAE_ENCODER: _encoder,
    Stage.MOTION: _motion,
    Stage.REFERENCE: _reference,
    Stage.RESTORATION: _restoration,
    Stage.VAE_DECODER: _decoder,
}


def make_fake_bundle(
    path: Path,
    *,
    tiles: Sequence[Size] = (Size(64, 64),),
    overlap: int = 16,
    layout: str = "per-block",
    dtype: str = "float32",
    step_counts: Sequence[int] = (6,),
    policy: str = "per-step",
    seed: int = 0,
    fixed_flow: bool = False,
    omit: Sequence[Stage] = (),
    flow: FlowNetwork = "raft",
    precision: str | None = None,
) -> Bundle:
    """Write a bundle of tiny graphs and open it. ``dtype`` is that of every stage but flow; RestorationNet's weights
    lie in an external file. ``fixed_flow`` gives the flow stage one graph per tile size instead of a free one;
    with ``flow="dis"`` there is none."""
    schedule = build_schedule(step_counts)
    with write_bundle(path) as writer:
        stages = {
            str(stage): _write_stage(writer.folder, stage, tiles, layout, dtype, schedule, seed, fixed_flow)
            for stage in whole_bundle(flow)
            if stage not in omit
        }
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer="tests",
            target="onnx",
            precision=precision or dtype,
            source=Source(name="fake", files={}),
            model=Model(
                num_blocks=BLOCKS,
                num_heads=1,
                head_dim=WIDTH,
                patch_size=PATCH,
                text_tokens=0,
                latent_channels=CHANNELS,
                vae_scale=VAE_SCALE,
                latent_shift=SHIFT,
                latent_scaling=SCALING,
                flow=flow,
            ),
            schedule=schedule,
            tiles=tuple(str(tile) for tile in tiles),
            overlap=overlap,
            reference_policy=policy,
            kv_layout=layout,
            stages=stages,
            toolchain={"onnx": onnx.__version__},
            files=writer.hash_files(),
        )
        writer.commit(manifest)
    return Bundle.open(path)


def _write_stage(
    folder: Path,
    stage: Stage,
    tiles: Sequence[Size],
    layout: str,
    dtype: str,
    schedule: Schedule,
    seed: int,
    fixed_flow: bool,
) -> StageEntry:
    free = stage is Stage.FLOW and not fixed_flow
    graphs = []
    for size in tiles[:1] if free else tiles:
        maker = GraphMaker("float32" if stage is Stage.FLOW else dtype, np.random.default_rng([seed, len(stage)]))
        inputs, outputs = _MAKERS[stage](maker, size, len(schedule.points), layout)
        name = "any" if free else str(size)
        graph_path, data_path = f"{stage}/{name}.onnx", f"{stage}/{name}.data"
        external = stage is Stage.RESTORATION
        _save(folder / graph_path, maker, inputs, outputs, Path(data_path).name if external else None)
        weights = (data_path,) if external else ()
        graphs.append(Graph(path=graph_path, size=name, weights=weights, inputs=tuple(inputs), outputs=tuple(outputs)))
    return StageEntry(precision=dtype, graphs=tuple(graphs), parity=(), parameters=0, parameters_before=0)


def _save(
    path: Path, maker: GraphMaker, inputs: list[TensorSpec], outputs: list[TensorSpec], data_name: str | None
) -> None:
    def infos(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(s.name, _TYPES[s.dtype], list(s.shape)) for s in specs]

    graph = helper.make_graph(maker.nodes, path.parent.name, infos(inputs), infos(outputs), maker.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    path.parent.mkdir(exist_ok=True)
    external = {"save_as_external_data": True, "location": data_name, "size_threshold": 256} if data_name else {}
    onnx.save_model(model, str(path), **external)
