"""What ``--provider`` says of a bundle of PyTorch networks: a device, then words that change how it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from livemoments.errors import UsageError
from livemoments.pytorch.attention import ATTENTIONS, AttentionKind
from livemoments.pytorch.linears import LinearKind

DType = Literal["float32", "float16", "bfloat16"]
_DTYPES: dict[str, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_LINEARS: dict[str, LinearKind] = {"fp8-linears": "fp8", "int8-linears": "int8"}
_FORCED = tuple(kind for kind in ATTENTIONS if kind != "auto")
_MODES = ("compile", "graphs")
WORDS = (*_DTYPES, *_LINEARS, *_FORCED, *_MODES)


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How networks are run.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: what all stages but RAFT compute in; ``None``: the bundle's own type.
        linears: 8-bit products in the transformers' blocks.
        attention: which kernel computes the transformers' attention.
        is_compiled: ``torch.compile``, block by block.
        has_graphs: CUDA graphs of the motion encoder and the transformers.
    """

    device: str = "cpu"
    dtype: DType | None = None
    linears: LinearKind | None = None
    attention: AttentionKind = "auto"
    is_compiled: bool = False
    has_graphs: bool = False

    def __str__(self) -> str:
        """As ``--provider`` takes it."""
        short = {long: word for word, long in _DTYPES.items()}
        words = [
            self.device,
            "" if self.dtype is None else short[self.dtype],
            "" if self.linears is None else f"{self.linears}-linears",
            "" if self.attention == "auto" else self.attention,
            "compile" if self.is_compiled else "",
            "graphs" if self.has_graphs else "",
        ]
        return "+".join(filter(None, words))

    @classmethod
    def parse(cls, provider: str) -> TorchOptions:
        """``cuda``, ``cuda:1``, ``cuda+fp8-linears+cudnn+compile+graphs``, ``cpu+bf16``.

        Raises:
            UsageError: no such device, an unknown word, or two that exclude each other.
        """
        device, *words = provider.split("+")
        dtypes = [_DTYPES[word] for word in words if word in _DTYPES]
        linears = [_LINEARS[word] for word in words if word in _LINEARS]
        attention = [kind for kind in _FORCED if kind in words]
        if unknown := [word for word in words if word not in WORDS]:
            raise UsageError(f"a PyTorch bundle has no '{unknown[0]}'", fix=f"use {', '.join(WORDS)}")
        for several in (dtypes, linears, attention):
            if len(several) > 1:
                raise UsageError(f"'{provider}' names both {several[0]} and {several[1]}", fix="name one")
        found = cls(
            device=device,
            dtype=dtypes[0] if dtypes else None,
            linears=linears[0] if linears else None,
            attention=attention[0] if attention else "auto",
            is_compiled="compile" in words,
            has_graphs="graphs" in words,
        )
        found.check()
        return found

    def check(self) -> None:
        """See whether this machine has what they name.

        Raises:
            UsageError: it does not.
        """
        kind, _, number = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
            raise UsageError(f"a PyTorch bundle has no provider '{self.device}'", fix="use cpu, cuda or cuda:N")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise UsageError(
                f"PyTorch {torch.__version__} sees no device '{self.device}'",
                fix="install a PyTorch for this GPU and its driver, or use --provider cpu",
            )
        if self.has_graphs and kind != "cuda":
            raise UsageError("CUDA graphs need a CUDA device", fix="leave 'graphs' out")
