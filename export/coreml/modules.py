"""The stages as Core ML takes them: one tile, fixed shapes, tensors in and out by position, transformers in chunks.

Shapes: N image tokens, T text tokens, S = N + T, D wide, L blocks; every batch is one tile. A transformer's chunk of
blocks [start, stop) takes the tokens that the chunk before it left (``image.{start}`` (1, N, D), ``text.{start}``
(1, T, D)) and leaves its own; the first takes the latent, the last makes what the network makes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from livemoments.coreml.names import MOTION, slice_name
from livemoments.export.mmdit import Guidance, KeyValue, MMDiT
from livemoments.export.plan import Planner, StageGraph
from livemoments.export.program import filled, whole_module
from livemoments.types import Size, Stage, TensorSpec

STEP = "step"


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes one package.

    Attributes:
        module: called with one tensor for every input, in order, answers with one for every output.
        inputs: fixed shapes; ``step`` is (1,) int32.
        outputs: likewise.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def chunks(blocks: int, most: int) -> list[tuple[int, int]]:
    """Blocks [start, stop) of each package: as few packages as ``most`` blocks in each allow, nearly equally long."""
    count = -(-blocks // most)
    edges = [round(index * blocks / count) for index in range(count + 1)]
    return list(itertools.pairwise(edges))


def build(planner: Planner, stage: Stage, size: Size, span: tuple[int, int] | None) -> Part:
    """A stage, or a chunk of a transformer, with its weights.

    Args:
        planner: its type is that of weights and activations; flow is float32.
        stage: which one.
        size: the tile, or the images of the stage ``flow``.
        span: the chunk's blocks [start, stop) of a transformer; ``None`` for all other stages.
    """
    graph = planner.graph(stage, size)
    inputs, outputs = ([_fixed(spec, size) for spec in specs] for specs in (graph.inputs, graph.outputs))
    if span is not None:
        return _transformer(graph, span, inputs, outputs)
    return Part(whole_module(planner, graph), tuple(inputs), tuple(outputs))


def _transformer(
    graph: StageGraph, span: tuple[int, int], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Part:
    network: MMDiT = graph.module.network  # type: ignore[assignment]
    start, stop = span
    last = stop == len(network.transformer_blocks)
    is_restoration = graph.stage == Stage.RESTORATION
    latent = next(spec for spec in inputs if spec.name == "latent")
    step = next(spec for spec in inputs if spec.name == STEP)
    tokens = network.pos_embed.grid[0] * network.pos_embed.grid[1]
    dim = network.config.dim

    def streams(block: int) -> list[TensorSpec]:
        lengths = {"image": tokens, "text": network.prompt_tokens}
        return [TensorSpec(f"{name}.{block}", latent.dtype, (1, length, dim)) for name, length in lengths.items()]

    def keys_values(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
        wanted = {f"reference_{part}.{block}" for block in range(start, stop) for part in "kv"}
        return [spec for spec in specs if spec.name in wanted]

    takes = [latent, step] if start == 0 else [*streams(start), step]
    gives = [] if last else streams(stop)
    if is_restoration:
        motion = TensorSpec(slice_name(MOTION, start, stop), latent.dtype, (stop - start, 1, tokens, dim))
        takes += [motion, *keys_values(inputs)]
        gives += list(outputs) if last else []
    else:
        gives += keys_values(outputs)
    return Part(filled(_Chunk(network, start, stop), graph), tuple(takes), tuple(gives))


class _Chunk(nn.Module):
    """Blocks [start, stop) of a transformer, with its ends where they are the first or the last.

    ``network`` is a copy without the rest; its blocks keep their numbers, by which their weights are found.
    """

    def __init__(self, network: MMDiT, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.last = stop == len(network.transformer_blocks)
        self.network = copy.copy(network)
        self.network._modules, self.network._parameters = dict(network._modules), dict(network._parameters)
        self.network.pos_embed = copy.deepcopy(network.pos_embed)
        self.blocks = [copy.deepcopy(network.transformer_blocks[index]) for index in range(start, stop)]
        self.network.transformer_blocks = nn.ModuleDict(  # type: ignore[assignment]
            {str(start + index): block for index, block in enumerate(self.blocks)}
        )
        if start > 0:
            self.network.pos_embed._modules.clear()
            self.network.pos_embed._parameters.clear()
            self.network.context = None
        if not self.last:
            self.network.norm_out = self.network.proj_out = None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        queue = list(tensors)
        if self.start == 0:
            latent, step = queue[:2]
            image, text = self.network.pos_embed(latent), self.network.embedded_prompt()
            del queue[:2]
        else:
            image, text, step = queue[:3]
            del queue[:3]
        motion = queue.pop(0) if queue else None
        kept: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            guidance = None
            if motion is not None:
                guidance = Guidance(KeyValue(queue[2 * index], queue[2 * index + 1]), motion[index])
            image, text, own = block(image, text, step, guidance)
            kept += own
        found = [] if self.last else [image, text]
        if motion is None:
            return (*found, *kept)
        velocity = self.network.velocity(image, step)
        return tuple(found) if velocity is None else (velocity,)


def _fixed(spec: TensorSpec, size: Size) -> TensorSpec:
    """The spec for one tile, without free axes; the step as Core ML takes it."""
    if spec.name == STEP:
        return TensorSpec(STEP, "int32", (1,))
    lengths = {"batch": 1, "height": size.height, "width": size.width}
    return TensorSpec(spec.name, spec.dtype, tuple(lengths.get(a, a) if isinstance(a, str) else a for a in spec.shape))
