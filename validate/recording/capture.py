"""Watching the reference's networks while they run: forward hooks, and the pipeline's observer.

Names: ``tile{i}.step{s}.STAGE.embed.hidden`` is what enters a transformer's first block, ``….block{b}.hidden``
(B, N, D) and ``.context`` (B, T, D) what leaves block b, and ``….STAGE.module.NAME`` what leaves the module that the
checkpoint calls NAME. A module with several outputs gives ``NAME[0]``, ``NAME[1]``, …; one that runs several times in
one pass ``NAME``, ``NAME@1``, …. Stages without steps have no ``step{s}``. A module that only passes on what the one
inside it gave is left out, as are those that merely hold others.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from livemoments.reference.checkpoint import Reference
from livemoments.reference.pipeline import Observer
from livemoments.types import Stage
from livemoments.validate.recording.schema import DETAILS, Detail, Selection

_TILE = re.compile(r"tile(\d+)\.(?:step(\d+)\.)?(.+)")
_FIRST, _LAST = "lq.image", "decoded"
"""What the pipeline tells first and last of a tile."""
_NOT_KEPT = re.compile(r"photo\.(lq_up|ref_lq_up|result)|tile\d+\.motion\.(0|last)")
"""Resized inputs, as large as the photo and made again in a second; the result, which is kept as a picture; embeddings
before their projection, which no graph of a bundle gives."""
_BLOCK = re.compile(r"transformer_blocks\.(\d+)(?:\.|$)")
_NO_COMPUTATION = (nn.Sequential, nn.ModuleList, nn.Dropout, nn.Identity)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is recorded of one photo.

    Attributes:
        detail: the level.
        selection: the tiles, steps and blocks of which more than the stages is recorded.
        kv_steps: for each step, the one under whose name its keys and values are told.
    """

    detail: Detail
    selection: Selection
    kv_steps: tuple[int, ...]

    def at_least(self, detail: Detail) -> bool:
        """Whether this level holds what the other one does."""
        return DETAILS.index(self.detail) >= DETAILS.index(detail)

    def tile(self, index: int) -> bool:
        """Whether more than the stages of this tile is recorded."""
        return self.selection.tiles is None or index in self.selection.tiles

    def step(self, index: int) -> bool:
        """Whether more than the stages of this step is recorded."""
        return self.selection.steps is None or index in self.selection.steps

    def kv(self, index: int) -> bool:
        """Whether a wanted step reads the keys and values that are told at this step."""
        return any(self.step(step) for step, source in enumerate(self.kv_steps) if source == index)

    def module(self, name: str) -> bool:
        """Whether the module is recorded."""
        match, blocks = _BLOCK.match(name), self.selection.blocks
        return blocks is None or (match is not None and int(match[1]) in blocks)


class Capture:
    """Hooks on a reference's networks, for the length of a ``with`` block.

    Args:
        reference: the networks.
        wanted: what to record.
        sink: told every tensor once, float32, in the order of computation.

    Attributes:
        result: the 8-bit result, (H, W, 3), once it is there.
    """

    def __init__(self, reference: Reference, wanted: Wanted, sink: Observer) -> None:
        self.result: np.ndarray | None = None
        self._reference = reference
        self._wanted = wanted
        self._sink = sink
        self._handles: list[Any] = []
        self._tile: int | None = None  # only while a tile is computed of which more than the stages is wanted
        self._step = 0
        self._encoded = 0
        self._calls: Counter[str] = Counter()
        self._motion_bias: list[Tensor] = []
        self._recent: deque[Tensor] = deque(maxlen=2)  # two: attention gives the image's tokens and the text's

    def __enter__(self) -> Capture:
        reference, wanted = self._reference, self._wanted
        if wanted.at_least("keys-values"):
            for block in reference.restoration_net.transformer.transformer_blocks:
                self._hook(block.attn.processor.point_proj, self._on_motion_bias)
        if wanted.at_least("blocks"):
            self._watch_blocks(Stage.REFERENCE, reference.reference_net.transformer)
            self._watch_blocks(Stage.RESTORATION, reference.restoration_net.transformer)
        if wanted.at_least("modules"):
            for stage, name, network in _networks(reference):
                self._watch_modules(stage, name, network)
        self._hook(reference.vae.autoencoder.encoder, self._on_encoded)
        self._hook(reference.restoration_net, self._on_step_done)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._recent.clear()

    def observe(self, name: str, value: np.ndarray) -> None:
        """The pipeline's observer."""
        if name == "photo.result":
            self.result = value
        if _NOT_KEPT.fullmatch(name):
            return
        match = _TILE.fullmatch(name)
        if match is None:
            self._sink(name, value)
            return
        tile, step, part = int(match[1]), match[2], match[3]
        if part == _FIRST:
            self._begin(tile)
        if not part.startswith("kv.") or self._wants_kv(tile, int(step)):
            self._sink(name, value)
        if part == _LAST:
            self._tile = None

    def _wants_kv(self, tile: int, step: int) -> bool:
        return self._wanted.at_least("keys-values") and self._wanted.tile(tile) and self._wanted.kv(step)

    def _begin(self, tile: int) -> None:
        self._tile = tile if self._wanted.tile(tile) else None
        self._step = self._encoded = 0
        self._calls.clear()
        self._motion_bias.clear()

    def _hook(self, module: nn.Module, function: Callable[[Any], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda _module, _inputs, output: function(output)))

    def _on_encoded(self, _output: Any) -> None:
        self._encoded += 1

    def _on_step_done(self, _output: Any) -> None:
        self._step += 1
        self._calls.clear()

    def _on_motion_bias(self, bias: Tensor) -> None:
        """Every step projects the same embeddings; the first step's are kept until all blocks have run."""
        if self._tile is None or self._step > 0:
            return
        self._motion_bias.append(bias)
        if len(self._motion_bias) == self._reference.configs.transformer.num_layers:
            self._tell(f"tile{self._tile}.motion_bias", torch.stack(self._motion_bias))
            self._motion_bias.clear()

    def _watch_blocks(self, stage: Stage, transformer: Any) -> None:
        def entering(_module: nn.Module, _inputs: Any, given: dict[str, Any]) -> None:
            self._boundary(stage, "embed", given["hidden_states"], given["encoder_hidden_states"])

        first = transformer.transformer_blocks[0]
        self._handles.append(first.register_forward_pre_hook(entering, with_kwargs=True))
        for index, block in enumerate(transformer.transformer_blocks):

            def leaving(output: tuple[Tensor | None, Tensor], name: str = f"block{index}") -> None:
                context, hidden = output
                self._boundary(stage, name, hidden, context)

            self._hook(block, leaving)

    def _boundary(self, stage: Stage, name: str, hidden: Tensor, context: Tensor | None) -> None:
        if self._tile is None or not self._wanted.step(self._step):
            return
        prefix = f"tile{self._tile}.step{self._step}.{stage}.{name}"
        self._tell(f"{prefix}.hidden", hidden)
        if context is not None:  # the last block gives none
            self._tell(f"{prefix}.context", context)

    def _watch_modules(self, stage: Stage, prefix: str, network: nn.Module) -> None:
        for name, module in network.named_modules(prefix=prefix):
            own = name != prefix and not isinstance(module, _NO_COMPUTATION) and not _BLOCK.fullmatch(name)
            if own and self._wanted.module(name):

                def leaving(output: Any, name: str = name) -> None:
                    self._on_module(stage, name, output)

                self._hook(module, leaving)

    def _on_module(self, stage: Stage, name: str, output: Any) -> None:
        stepped = stage in (Stage.REFERENCE, Stage.RESTORATION)
        if self._tile is None or (stepped and not self._wanted.step(self._step)):
            return
        if stage == Stage.VAE_ENCODER and self._encoded > 0:  # the frame's tile; then the photo's
            return
        place = f"tile{self._tile}.step{self._step}.{stage}" if stepped else f"tile{self._tile}.{stage}"
        key = f"{place}.module.{name}"
        call = self._calls[key]
        self._calls[key] += 1
        repeat = f"@{call}" if call else ""
        for suffix, tensor in _outputs(output):
            if not any(tensor is known for known in self._recent):  # else passed on by a module around the one before
                self._tell(f"{key}{suffix}{repeat}", tensor)
                self._recent.append(tensor)

    def _tell(self, name: str, tensor: Tensor) -> None:
        self._sink(name, tensor.detach().float().cpu().numpy())


def _networks(reference: Reference) -> Iterator[tuple[Stage, str, nn.Module]]:
    """Stage, the network's name within its checkpoint file, network."""
    vae = reference.vae.autoencoder
    if isinstance(reference.flow, nn.Module):  # DIS has no modules
        yield Stage.FLOW, "", reference.flow
    yield Stage.VAE_ENCODER, "encoder", vae.encoder
    yield Stage.MOTION, "", reference.motion_encoder
    yield Stage.REFERENCE, "", reference.reference_net.transformer
    yield Stage.RESTORATION, "", reference.restoration_net.transformer
    yield Stage.VAE_DECODER, "decoder", vae.decoder


def _outputs(output: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, tuple | list):
        for index, part in enumerate(output):
            if isinstance(part, Tensor):
                yield f"[{index}]", part
