"""Stable Diffusion 3's text encoders, of which only the layer at work is in memory as float32.

The weights stay in their files, in the type they are stored in, and are mapped: the system reads a page when it is
needed and may drop it again. A layer's weights become float32 when the layer begins and are let go when it ends, so
that half-precision files are computed with as exactly as with all of them turned into float32 at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from livemoments.errors import CheckpointError
from livemoments.reference.config import read_json
from livemoments.reference.stored import AGAIN, check_keys, open_safetensors
from livemoments.reference.weights import check_dense, check_finite

_POSITIONS = "text_model.embeddings.position_ids"
"""A row of whole numbers that older files of CLIP hold."""
_T5_INPUT = "encoder.embed_tokens.weight"
"""T5's input table under its second name; files hold one or both."""
_T5_TABLE = "shared.weight"


@dataclass(frozen=True, slots=True)
class Stored:
    """How an encoder's weights are stored.

    Attributes:
        dtypes: of the tensors, sorted.
        files: that hold them.
    """

    dtypes: list[str]
    files: tuple[Path, ...]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of an encoder's weights: whole precision where it is there, else the variant ``fp16``.

    Raises:
        CheckpointError: none, or a shard is missing.
    """
    for variant in ("", ".fp16"):
        single, index = folder / f"model{variant}.safetensors", folder / f"model.safetensors.index{variant}.json"
        if single.is_file():
            return (single,)
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise CheckpointError(folder, f"missing shards: {', '.join(missing)}", fix=AGAIN)
            if names:
                return tuple(folder / name for name in names)
    fix = "bring it with 'livemoments fetch DIR --only text-encoders'"
    raise CheckpointError(folder, "holds no model.safetensors, whole, in shards or as fp16", fix=fix)


def clip_encoder(folder: Path) -> tuple[CLIPTextModelWithProjection, Stored]:
    """A CLIP text encoder with projection (``text_encoder/`` or ``text_encoder_2/``).

    Raises:
        CheckpointError: no or damaged files, or weights that are not its configuration's.
    """
    config = _config(CLIPTextConfig, folder)
    with torch.device("meta"):
        network = CLIPTextModelWithProjection._from_config(config)
    stored = _load(network, folder, ignored=(_POSITIONS,))
    embeddings = network.text_model.embeddings
    embeddings.position_ids = torch.arange(config.max_position_embeddings).expand((1, -1))  # no weight: not loaded
    return _streamed(network, folder), stored


def t5_encoder(folder: Path) -> tuple[T5EncoderModel, Stored]:
    """T5's encoder (``text_encoder_3/``).

    Raises:
        CheckpointError: as :func:`clip_encoder`.
    """
    with torch.device("meta"):
        network = T5EncoderModel._from_config(_config(T5Config, folder))
    stored = _load(network, folder, shared={_T5_INPUT: _T5_TABLE})
    network.set_input_embeddings(network.shared)
    return _streamed(network, folder), stored


def t5_width(folder: Path) -> int:
    """Width of T5's embeddings by its configuration alone.

    Raises:
        CheckpointError: there is none, or it says nothing of it.
    """
    width = read_json(folder / "config.json").get("d_model")
    if type(width) is not int or width < 1:
        raise CheckpointError(folder / "config.json", "lacks d_model")
    return width


def _config(kind: Any, folder: Path) -> Any:
    settings = read_json(folder / "config.json")
    try:
        return kind.from_dict(settings)
    except Exception as error:  # the library's checks raise errors of many kinds
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(folder / "config.json", f"is no {kind.__name__} ({first})") from None


def _load(
    network: nn.Module, folder: Path, *, ignored: Sequence[str] = (), shared: dict[str, str] | None = None
) -> Stored:
    """Give a network on the meta device its mapped weights."""
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        handle = open_safetensors(file)
        tensors |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
    for name in ignored:
        tensors.pop(name, None)
    for first, second in (shared or {}).items():
        known = tensors.get(second, tensors.get(first))
        if known is not None:
            tensors |= {first: known, second: known}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_keys(folder, expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    check_dense(folder, tensors)
    network.load_state_dict(tensors, strict=True, assign=True)
    return Stored(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}), files)


def _streamed(network: Any, folder: Path) -> Any:
    """Make every layer's weights float32 for as long as the layer computes."""
    network.eval().requires_grad_(False)
    for layer in dict.fromkeys(_layers(network)):  # T5's table is met twice
        _stream(layer, folder)
    return network


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The transformer layers, and what has weights outside of them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif next(child.parameters(recurse=False), None) is not None:
            yield child
        else:
            yield from _layers(child)


def _stream(layer: nn.Module, folder: Path) -> None:
    mapped: dict[nn.Parameter, Tensor] = {}

    def begin(_layer: nn.Module, _inputs: object) -> None:
        for name, weight in layer.named_parameters():
            mapped[weight] = weight.data
            check_finite(folder, {name: weight.data})
            weight.data = weight.data.float()

    def end(_layer: nn.Module, _inputs: object, _outputs: object) -> None:
        for weight, stored in mapped.items():
            weight.data = stored
        mapped.clear()

    layer.register_forward_pre_hook(begin)
    layer.register_forward_hook(end, always_call=True)
