"""What the inner values of a block should be, from what was recorded of the reference's modules.

Modules give most of them; the few sums and concatenations between modules are computed here again, in numpy, as
diffusers' ``JointTransformerBlock`` and the paper's equations 3 and 4 say, not as the graph does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from livemoments.types import Stage
from livemoments.validate.ladder.recorded_runs import RecordedRun

ZERO_ROWS = ("shift_msa", "scale_msa", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
"""Order of the rows of diffusers' ``AdaLayerNormZero``."""
CONTINUOUS_ROWS = ("scale_msa", "shift_msa")
"""Order of the rows of diffusers' ``AdaLayerNormContinuous``."""
_WITHOUT_FIRST_NORM = ("gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
_FIRST_NORM = ("shift_msa", "scale_msa")
_QUERIES_AT_ONCE = 512
"""Rows of attention scores in memory: 36 MB for each head of a 1024-pixel tile."""

Make = Callable[[RecordedRun], np.ndarray]


@dataclass(frozen=True, slots=True)
class ExpectedValue:
    """How to compute one value from a recorded run; ``needs``: the inner tensors that must have been recorded."""

    make: Make
    needs: tuple[str, ...] = ()

    def is_known(self, run: RecordedRun) -> bool:
        """Whether a run has what it needs."""
        return run.has(*self.needs)


def recorded(name: str) -> ExpectedValue:
    """An inner tensor as it was recorded."""
    return ExpectedValue(lambda run: run.read(name), (name,))


def module(name: str) -> ExpectedValue:
    """What a module gave."""
    return recorded(f"module.{name}")


def output(name: str) -> ExpectedValue:
    """An output of the whole graph."""
    return ExpectedValue(lambda run: run.case.outputs[name])


def rows(run: RecordedRun, norm: str) -> dict[str, np.ndarray]:
    """The rows that modulate one stream, (D,) each; ``scale_*`` with one added, as tables store them."""
    names = ZERO_ROWS if run.has(f"module.{norm}[0]") else CONTINUOUS_ROWS  # the first kind gives five tensors
    parts = np.split(run.read(f"module.{norm}.linear")[0], len(names))
    return {
        name: part + np.float32(1) if name.startswith("scale") else part
        for name, part in zip(names, parts, strict=True)
    }


def table_rows(norm: str, chunks: int) -> ExpectedValue:
    """What is looked up in a table of ``chunks`` rows, (1, chunks, D): exporters leave out rows that nobody reads."""

    def make(run: RecordedRun) -> np.ndarray:
        by_name = rows(run, norm)
        kept = tuple(by_name)
        if chunks != len(kept):
            kept = {2: _FIRST_NORM, 4: _WITHOUT_FIRST_NORM}.get(chunks, ()) if kept == ZERO_ROWS else ()
        if not kept:
            raise ValueError(f"a table of {chunks} rows is of no known kind")
        return np.stack([by_name[name] for name in kept])[None]

    return ExpectedValue(make, (f"module.{norm}.linear",))


def table_part(norm: str, chunks: int, place: int) -> ExpectedValue:
    """One of the rows, (D,)."""
    whole = table_rows(norm, chunks)
    return ExpectedValue(lambda run: whole.make(run)[0, place], whole.needs)


def first_norm(block: str, norm: str) -> Sequence[ExpectedValue]:
    """A block's first modulated norm, by the two names that it may have been recorded under."""
    return module(f"{block}{norm}[0]"), module(f"{block}{norm}")


def second_norm(block: str, norm: str, plain: str) -> ExpectedValue:
    """The norm ``plain`` before a feed-forward: diffusers modulates it outside of the module."""

    def make(run: RecordedRun) -> np.ndarray:
        by_name = rows(run, block + norm)
        return run.read(f"module.{block}{plain}") * by_name["scale_mlp"] + by_name["shift_mlp"]

    return ExpectedValue(make, (f"module.{block}{plain}", f"module.{block}{norm}.linear"))


def gated(block: str, norm: str, inner: str, gate: str) -> ExpectedValue:
    """A module's output times a gate."""

    def make(run: RecordedRun) -> np.ndarray:
        return run.read(f"module.{block}{inner}") * rows(run, block + norm)[gate]

    return ExpectedValue(make, (f"module.{block}{inner}", f"module.{block}{norm}.linear"))


def middle(block: str, norm: str, out: str, entering: str) -> ExpectedValue:
    """What lies between attention and feed-forward: ``entering + gate * attention``."""
    attended = gated(block, norm, out, "gate_msa")
    return ExpectedValue(lambda run: run.read(entering) + attended.make(run), (entering, *attended.needs))


def query(block: str) -> Sequence[ExpectedValue]:
    """Queries, (B, Q, D): of image and text, or of the image alone in the last block."""
    names = _projections(block, "q")
    return _joined(names), recorded(names[0])


def keys_or_values(block: str, index: int, stage: Stage, part: str) -> ExpectedValue:
    """Keys (``part`` is ``k``) or values (``v``), (B, S, D): the restoration's in the order of equation 4."""
    own = _joined(_projections(block, part))
    if stage is not Stage.RESTORATION:
        return own

    def make(run: RecordedRun) -> np.ndarray:
        reference = _reference(run, index, part)
        if part == "k":
            reference = np.concatenate([_moved(run, index), reference[:, _image_tokens(run) :]], axis=1)
        return np.concatenate([own.make(run), reference], axis=1)

    return ExpectedValue(make, own.needs)


def parts_of_keys_and_values(block: str, index: int, stage: Stage) -> list[ExpectedValue]:
    """What keys and values are put together from."""
    parts: list[ExpectedValue] = []
    for part in "kv":
        names = _projections(block, part)
        parts += [recorded(names[0]), recorded(names[1]), _joined(names)]
        if stage is Stage.RESTORATION:
            whole = ExpectedValue(functools.partial(_reference, index=index, part=part))
            parts += [whole, *_image_and_text(whole, _image_tokens)]
    if stage is Stage.RESTORATION:
        parts.append(ExpectedValue(lambda run: np.asarray(run.case.inputs["motion_bias"][index])))
        parts.append(ExpectedValue(lambda run: _moved(run, index)))
    return parts


def parts_of_attention(block: str, index: int, stage: Stage, heads: int) -> list[ExpectedValue]:
    """Attention itself, (B, Q, D), computed from the recorded projections, and its parts for image and text."""
    key, value = (keys_or_values(block, index, stage, part) for part in "kv")
    latest: dict[str, np.ndarray] = {}  # three ways to look at one costly result

    def make(run: RecordedRun) -> np.ndarray:
        if run.prefix not in latest:
            latest.clear()
            queries = next(expected for expected in query(block) if expected.is_known(run))
            latest[run.prefix] = attention(queries.make(run), key.make(run), value.make(run), heads)
        return latest[run.prefix]

    whole = ExpectedValue(make, (*query(block)[1].needs, *key.needs, *value.needs))
    return [whole, *_image_and_text(whole, lambda run: int(run.read(f"module.{block}attn.to_q").shape[1]))]


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int) -> np.ndarray:
    """``softmax(q k^T / sqrt(head size)) v`` by heads: (B, Q, D), (B, S, D), (B, S, D) to (B, Q, D)."""
    batch, rows_, dim = query.shape
    size = dim // heads
    result = np.empty_like(query)
    for item in range(batch):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            k, v = key[item, :, part].T / np.float32(math.sqrt(size)), value[item, :, part]
            for start in range(0, rows_, _QUERIES_AT_ONCE):
                some = slice(start, start + _QUERIES_AT_ONCE)
                scores = query[item, some, part] @ k
                scores -= scores.max(axis=-1, keepdims=True)
                np.exp(scores, out=scores)
                result[item, some, part] = (scores @ v) / scores.sum(axis=-1, keepdims=True)
    return result


def _projections(block: str, part: str) -> tuple[str, str]:
    """The names of the image's and the text's queries, keys or values."""
    return f"module.{block}attn.to_{part}", f"module.{block}attn.add_{part}_proj"


def _joined(names: tuple[str, ...]) -> ExpectedValue:
    return ExpectedValue(lambda run: np.concatenate([run.read(name) for name in names], axis=1), names)


def _image_and_text(whole: ExpectedValue, image_tokens: Callable[[RecordedRun], int]) -> Iterator[ExpectedValue]:
    yield ExpectedValue(lambda run: whole.make(run)[:, : image_tokens(run)], whole.needs)
    yield ExpectedValue(lambda run: whole.make(run)[:, image_tokens(run) :], whole.needs)


def _moved(run: RecordedRun, index: int) -> np.ndarray:
    return _reference(run, index, "k")[:, : _image_tokens(run)] + run.case.inputs["motion_bias"][index]


def _image_tokens(run: RecordedRun) -> int:
    return int(run.case.inputs["motion_bias"].shape[2])


def _reference(run: RecordedRun, index: int, part: str) -> np.ndarray:
    inputs = run.case.inputs
    if "reference_kv" in inputs:
        return np.asarray(inputs["reference_kv"][index, "kv".index(part)])
    return inputs[f"reference_{part}.{index}"]
