"""What the inner values of a block should be, from what was recorded of the reference's modules.

Modules give most of them; the few sums and concatenations between modules are computed here again, in numpy, as
diffusers' ``JointTransformerBlock`` and the paper's equations 3 and 4 say, not as the graph does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """How to compute one value from a recorded pass; ``needs``: the inner tensors that must have been recorded."""

    make: Make
    needs: tuple[str, ...] = ()

    def is_there(self, given: RecordedRun) -> bool:
        """Whether a pass has what it needs."""
        return given.has(*self.needs)


def recorded(name: str) -> ExpectedValue:
    """An inner tensor as it was recorded."""
    return ExpectedValue(lambda given: given.read(name), (name,))


def module(name: str) -> ExpectedValue:
    """What a module gave."""
    return recorded(f"module.{name}")


def output(name: str) -> ExpectedValue:
    """An output of the whole graph."""
    return ExpectedValue(lambda given: given.case.outputs[name])


def rows(given: RecordedRun, norm: str) -> dict[str, np.ndarray]:
    """The rows that modulate one stream, (D,) each; ``scale_*`` with one added, as tables store them."""
    names = ZERO_ROWS if given.has(f"module.{norm}[0]") else CONTINUOUS_ROWS  # the first kind gives five tensors
    parts = np.split(given.read(f"module.{norm}.linear")[0], len(names))
    return {
        name: part + np.float32(1) if name.startswith("scale") else part
        for name, part in zip(names, parts, strict=True)
    }


def table_rows(norm: str, chunks: int) -> ExpectedValue:
    """What is looked up in a table of ``chunks`` rows, (1, chunks, D)."""

    def make(given: RecordedRun) -> np.ndarray:
        found = rows(given, norm)
        return np.stack([found[name] for name in _kept(found, chunks)])[None]

    return ExpectedValue(make, (f"module.{norm}.linear",))


def table_part(norm: str, chunks: int, place: int) -> ExpectedValue:
    """One of the rows, (D,)."""

    def make(given: RecordedRun) -> np.ndarray:
        found = rows(given, norm)
        return found[_kept(found, chunks)[place]]

    return ExpectedValue(make, (f"module.{norm}.linear",))


def _kept(found: dict[str, np.ndarray], chunks: int) -> tuple[str, ...]:
    """The names of the rows that a table of ``chunks`` rows has: exporters leave out those that nobody reads."""
    names = tuple(found)
    if chunks == len(names):
        return names
    kept = {2: _FIRST_NORM, 4: _WITHOUT_FIRST_NORM}.get(chunks)
    if kept is None or names != ZERO_ROWS:
        raise ValueError(f"a table of {chunks} rows is of no known kind")
    return kept


def first_norm(block: str, norm: str) -> Sequence[ExpectedValue]:
    """A block's first modulated norm, by the two names that it may have been recorded under."""
    return module(f"{block}{norm}[0]"), module(f"{block}{norm}")


def second_norm(block: str, norm: str) -> ExpectedValue:
    """The norm before a feed-forward: diffusers modulates it outside of the module."""
    plain = f"{block}norm2" if norm == "norm1" else f"{block}norm2_context"

    def make(given: RecordedRun) -> np.ndarray:
        found = rows(given, block + norm)
        return given.read(f"module.{plain}") * found["scale_mlp"] + found["shift_mlp"]

    return ExpectedValue(make, (f"module.{plain}", f"module.{block}{norm}.linear"))


def gated(block: str, norm: str, inner: str, gate: str) -> ExpectedValue:
    """A module's output times a gate."""

    def make(given: RecordedRun) -> np.ndarray:
        return given.read(f"module.{block}{inner}") * rows(given, block + norm)[gate]

    return ExpectedValue(make, (f"module.{block}{inner}", f"module.{block}{norm}.linear"))


def middle(block: str, norm: str, out: str, entering: str) -> ExpectedValue:
    """What lies between attention and feed-forward: ``entering + gate * attention``."""
    attention = gated(block, norm, out, "gate_msa")
    return ExpectedValue(lambda given: given.read(entering) + attention.make(given), (entering, *attention.needs))


def query(block: str) -> Sequence[ExpectedValue]:
    """Queries, (B, Q, D): of image and text, or of the image alone in the last block."""
    names = [f"module.{block}attn.{name}" for name in ("to_q", "add_q_proj")]
    return _joined(names), recorded(names[0])


def keys(block: str, index: int, stage: Stage) -> ExpectedValue:
    """Keys, (B, S, D), in the order of equation 4."""
    return _with_guidance(block, index, "k") if stage is Stage.RESTORATION else _joined(_own_names(block, "k"))


def values(block: str, index: int, stage: Stage) -> ExpectedValue:
    """Values, likewise."""
    return _with_guidance(block, index, "v") if stage is Stage.RESTORATION else _joined(_own_names(block, "v"))


def parts_of(block: str, index: int, stage: Stage) -> dict[str, ExpectedValue]:
    """What keys and values are put together from, by a name for people."""
    found: dict[str, ExpectedValue] = {}
    for part in "kv":
        names = _own_names(block, part)
        found[f"own {part} of the image"] = recorded(names[0])
        found[f"own {part} of the text"] = recorded(names[1])
        found[f"own {part}"] = _joined(names)
        if stage is Stage.RESTORATION:
            found |= _reference_parts(index, part)
    if stage is Stage.RESTORATION:
        found["the motion's bias"] = ExpectedValue(lambda given: np.asarray(given.case.inputs["motion_bias"][index]))
        found["the moved image k"] = ExpectedValue(lambda given: _moved(given, index))
    return found


def _reference_parts(index: int, part: str) -> dict[str, ExpectedValue]:
    def image(given: RecordedRun) -> np.ndarray:
        return _reference(given, index, part)[:, : _image_tokens(given)]

    def text(given: RecordedRun) -> np.ndarray:
        return _reference(given, index, part)[:, _image_tokens(given) :]

    return {
        f"the reference's {part}": ExpectedValue(lambda given: _reference(given, index, part)),
        f"the reference's image {part}": ExpectedValue(image),
        f"the reference's text {part}": ExpectedValue(text),
    }


def mixed_parts(block: str, index: int, stage: Stage, heads: int) -> dict[str, ExpectedValue]:
    """Attention itself, (B, Q, D), computed from the recorded projections, and its parts for image and text."""
    key, value = keys(block, index, stage), values(block, index, stage)
    latest: dict[str, np.ndarray] = {}  # three ways to look at one costly result

    def make(given: RecordedRun) -> np.ndarray:
        if given.prefix not in latest:
            latest.clear()
            found = next(way for way in query(block) if way.is_there(given))
            latest[given.prefix] = attention(found.make(given), key.make(given), value.make(given), heads)
        return latest[given.prefix]

    def tokens(given: RecordedRun) -> int:
        return int(given.read(f"module.{block}attn.to_q").shape[1])

    needs = (*query(block)[1].needs, *key.needs, *value.needs)
    return {
        "attention": ExpectedValue(make, needs),
        "attention of the image": ExpectedValue(lambda given: make(given)[:, : tokens(given)], needs),
        "attention of the text": ExpectedValue(lambda given: make(given)[:, tokens(given) :], needs),
    }


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


def _own_names(block: str, part: str) -> list[str]:
    return [f"module.{block}attn.to_{part}", f"module.{block}attn.add_{part}_proj"]


def _joined(names: Sequence[str]) -> ExpectedValue:
    return ExpectedValue(lambda given: np.concatenate([given.read(name) for name in names], axis=1), tuple(names))


def _with_guidance(block: str, index: int, part: str) -> ExpectedValue:
    own = _joined(_own_names(block, part))

    def make(given: RecordedRun) -> np.ndarray:
        reference = _reference(given, index, part)
        if part == "k":
            reference = np.concatenate([_moved(given, index), reference[:, _image_tokens(given) :]], axis=1)
        return np.concatenate([own.make(given), reference], axis=1)

    return ExpectedValue(make, own.needs)


def _moved(given: RecordedRun, index: int) -> np.ndarray:
    return _reference(given, index, "k")[:, : _image_tokens(given)] + given.case.inputs["motion_bias"][index]


def _image_tokens(given: RecordedRun) -> int:
    return int(given.case.inputs["motion_bias"].shape[2])


def _reference(given: RecordedRun, index: int, part: str) -> np.ndarray:
    inputs = given.case.inputs
    if "reference_kv" in inputs:
        return np.asarray(inputs["reference_kv"][index, "kv".index(part)])
    return inputs[f"reference_{part}.{index}"]
