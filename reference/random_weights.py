"""Random weights that make a network behave like a trained one: values of order one at every depth, nothing inert.

Each tensor is drawn from a stream of its own, named by the seed and the tensor, so that its values do not depend on
which other tensors are made, in which order, or by how many threads.

The standard deviations keep the variance of a linear layer's inputs ("fan-in" scaling: K. He et al., "Delving Deep
into Rectifiers", ICCV 2015, equation 10), with a gain for what stands before or behind the layer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK_ELEMENTS = 1 << 20
"""Values drawn at once (4 MiB in float32): each chunk has a counter range of its own, so threads can share a tensor."""

_BIAS_STD = 0.1
_AFTER_SILU = 1.68  # 1 / sqrt(E[silu(x)^2]) for standard normal x
_AFTER_GELU = 1.53  # 1 / sqrt(E[gelu(x)^2])
_AFTER_RELU = math.sqrt(2.0)
_FLOW_GAIN = 0.03
_LOGVAR_MEAN = -4.0  # posterior standard deviation near 0.14: sampled noise is visible and does not drown the mean


@dataclass(frozen=True, slots=True)
class Fill:
    """A normal distribution; ``mean`` is a number, or one number per element of a vector.

    ``spread`` takes the magnitude of the drawn part, so that no value lies below ``mean``.
    """

    std: float
    mean: float | npt.NDArray[np.float32] = 0.0
    spread: bool = False


# (pattern, gain): the first pattern that is found in a weight's name holds. Gains of 1 keep the variance.
_Gains = tuple[tuple[str, float], ...]

_TRANSFORMER: _Gains = (
    (r"timestep_embedder\.linear_1", 1.4),  # a sinusoid's mean square is 1/2
    (r"_embedder\.linear_2", _AFTER_SILU),
    # modulation: gates, scales and shifts near 0.3, so that 48 gated residuals grow the stream no more than fivefold
    (r"norm1\.linear|norm1_context\.linear|norm_out\.linear", 0.35),
    # logits of standard deviation 2: over a few thousand keys attention is neither uniform nor on one key
    (r"\.(to_q|to_k|add_q_proj|add_k_proj)\.", 1.4),
    (r"\.(to_out\.0|to_add_out)\.", 2.0),  # attention averages its values; this makes up for some of it
    (r"\.net\.2\.", _AFTER_GELU),
)
_VAE: _Gains = (
    (r"\.(to_q|to_k)\.", 1.4),
    (r"\.conv1\.", _AFTER_SILU),
    (r"\.conv2\.", 0.8),  # half of what would keep the variance: residuals add up
    (r"encoder\.conv_out", 1.1),  # posterior means whose scaled latents are of order one
    (r"decoder\.conv_out", 0.8),  # images of order one
)
_MOTION: _Gains = (
    (r"^blocks\.0\.0\.", 1.0),
    # a little under _AFTER_SILU: the input is a flow of several pixels, and 15 layers would amplify it
    (r"", 1.55),
)
_RAFT: _Gains = (
    (r"flow_head\.conv2", _FLOW_GAIN),  # a few pixels in all over 20 iterations
    (r"\.gru\.", 1.0),
    (r"mask\.2", 4.0),  # RAFT divides the mask's logits by 4
    (r"(fnet|cnet)\.conv2", 1.0),
    (r"", _AFTER_RELU),
)
_GAINS: dict[str, _Gains] = {
    "transformer": _TRANSFORMER,
    "transformer_ref": _TRANSFORMER,
    "vae": _VAE,
    "motion_encoder": _MOTION,
    "raft": _RAFT,
}


def fill_of(component: str, name: str, shape: Sequence[int]) -> Fill:
    """The distribution of one tensor's values.

    Args:
        component: the part of the checkpoint, as :class:`~livemoments.reference.layout.CheckpointFiles` names it.
        name: the tensor's name in that part.
        shape: its shape; the first axis of a matrix or kernel is the output.
    """
    if component in ("prompt_embeds", "pooled_prompt_embeds"):
        return Fill(1.0)
    if name == "encoder.conv_out.bias":
        means = np.zeros(shape, np.float32)
        means[shape[0] // 2 :] = _LOGVAR_MEAN
        return Fill(_BIAS_STD, means)
    if name.endswith("running_var"):
        return Fill(0.2, 1.0, spread=True)
    if name == "update_block.flow_head.conv2.bias":
        return Fill(_BIAS_STD * _FLOW_GAIN)  # every iteration adds it, at an eighth of the resolution
    if len(shape) < 2:
        is_norm_weight = name.endswith("weight")
        return Fill(_BIAS_STD, 1.0 if is_norm_weight else 0.0)
    gain = next((gain for pattern, gain in _GAINS[component] if re.search(pattern, name)), 1.0)
    return Fill(gain / math.sqrt(math.prod(shape[1:])))


def stream_key(seed: int, component: str, name: str) -> tuple[int, int]:
    """The key of a tensor's random stream: 128 bits of a SHA-256.

    RAFT's checkpoints hold the normalisation of a strided block's shortcut twice, as ``norm3`` and as ``downsample.1``;
    both names have one stream.
    """
    name = name.replace(".norm3.", ".downsample.1.")
    digest = hashlib.sha256(f"{seed}/{component}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def draw(
    key: tuple[int, int], fill: Fill, elements: int, executor: Executor | None = None, workers: int = 1
) -> Iterator[npt.NDArray[np.float32]]:
    """Values of one tensor, flat, in chunks of at most :data:`CHUNK_ELEMENTS`.

    Args:
        key: from :func:`stream_key`.
        fill: the distribution.
        elements: how many values.
        executor: threads that draw ahead; the values do not depend on it.
        workers: how many chunks to draw ahead.
    """
    starts = range(0, elements, CHUNK_ELEMENTS)

    def chunk(start: int) -> npt.NDArray[np.float32]:
        return _draw_chunk(key, start // CHUNK_ELEMENTS, fill, min(CHUNK_ELEMENTS, elements - start))

    if executor is None or len(starts) == 1:
        yield from map(chunk, starts)
        return
    for first in range(0, len(starts), workers):  # a window at a time bounds the memory
        yield from executor.map(chunk, starts[first : first + workers])


def _draw_chunk(key: tuple[int, int], index: int, fill: Fill, count: int) -> npt.NDArray[np.float32]:
    # The high half of the 256-bit counter is the chunk's number: chunks cannot overlap.
    bits = np.random.Philox(counter=[0, 0, index, 0], key=list(key))
    values = np.random.Generator(bits).standard_normal(count, dtype=np.float32)
    if fill.spread:
        np.abs(values, out=values)
    values *= np.float32(fill.std)
    values += np.float32(fill.mean) if isinstance(fill.mean, float) else fill.mean
    return values
