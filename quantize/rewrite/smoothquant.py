"""SmoothQuant without a run-time cost: outliers of a layer norm's channels move into the weights that read them.

G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (ICML 2023),
equations 3 and 4: ``x W = (x / s) (s W)`` with ``s = max|x|**alpha / max|W|**(1 - alpha)`` per input channel. Here x is
a layer norm's output whose scale and shift are rows of a table, so ``1 / s`` goes into the table's columns and ``s``
into the weights' rows, both computed in float64 and rounded once. (Powers of two would not round at all, but lose
1.6 of the 2.3 dB that smoothing gains on a network without outliers.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from livemoments.errors import UsageError
from livemoments.export.passes.graph import only_user
from livemoments.graphs.linears import Linear, LinearId, iter_linear_nodes
from livemoments.graphs.tensors import read_tensor
from livemoments.quantize.calibrate.result import LinearStats

_MOST = 1024.0
"""Scales stay within this factor of their norm's middle one, so that half precision holds what they scale."""


def smooth(
    model: ir.Model, linears: Sequence[Linear], stats: Mapping[LinearId, LinearStats], alpha: float
) -> dict[LinearId, LinearStats]:
    """Move outliers of every modulated layer norm of a transformer into its weights.

    Requires: the graph's linears are not quantized yet.
    Ensures: the same function; weights and tables are lazy tensors that are read when they are written.

    Args:
        model: changed in place.
        linears: what ``find_linears`` gives for it.
        stats: what calibration saw in it.
        alpha: how much of the outliers moves, 0 to 1.

    Returns:
        The statistics of the changed graph: all of ``stats``, those behind a smoothed norm anew.

    Raises:
        UsageError: ``alpha`` is out of range, or the calibration does not have one of the linears.
    """
    smoothed = smoothable(model, linears)
    scales = smooth_scales(smoothed, stats, weights_absmax(model, smoothed), alpha)
    fold_scales(model, smoothed, scales)
    return {**stats, **smoothed_stats(smoothed, stats, scales)}


def smoothable(model: ir.Model, linears: Sequence[Linear]) -> list[Linear]:
    """The linears behind layer norms that a table modulates and that nothing else reads."""
    nodes = {weight.name: node for node, _, weight in iter_linear_nodes(model)}
    smoothed = []
    for group in _by_norm(linears).values():
        norm = nodes[group[0].id.weight].inputs[0]
        if norm is not None and _is_alone(model, norm, group):
            smoothed += group
    return smoothed


def _is_alone(model: ir.Model, norm: ir.Value, group: Sequence[Linear]) -> bool:
    """Whether a layer norm is read by these linears only, and they and its table's rows serve nothing else."""
    node = norm.producer()
    readers = [usage.node for usage in norm.uses()]
    weights = {
        reader.inputs[1].name for reader in readers if reader.op_type == "MatMul" and reader.inputs[1] is not None
    }
    if node is None or norm.is_graph_output() or len(readers) != len(group):
        return False
    if weights != {linear.id.weight for linear in group} or None in {linear.table for linear in group}:
        return False
    rows = [value for value in node.inputs[1:3] if value is not None]
    stored = [model.graph.initializers[name or ""] for name in (*weights, group[0].table)]
    return all(only_user(value) is not None for value in (*rows, *stored))


def weights_absmax(model: ir.Model, linears: Sequence[Linear]) -> dict[LinearId, np.ndarray]:
    """For each linear the largest magnitude of each input channel's weights, (K,) float64; one weight at a time."""
    return {
        linear.id: np.abs(read_tensor(_stored(model, linear.id.weight))).max(axis=1).astype(np.float64)
        for linear in linears
    }


def smooth_scales(
    linears: Sequence[Linear],
    stats: Mapping[LinearId, LinearStats],
    weights: Mapping[LinearId, np.ndarray],
    alpha: float,
) -> dict[str, np.ndarray]:
    """One scale per channel for each layer norm: by the norm's name, (K,) float64.

    Linears of one norm share it; the largest weight of any of them counts. Channels that are always zero, or that
    nothing weighs, are left alone. A common factor would change nothing but the numbers' range: the middle one is 1.

    Args:
        linears: :func:`smoothable`'s result.
        stats: what calibration saw.
        weights: :func:`weights_absmax`'s result.
        alpha: 0 makes the weights' rows alike, 1 the activations' channels.

    Raises:
        UsageError: ``alpha`` is out of range, or the calibration does not have one of the linears.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"a smoothing strength of {alpha} is not possible", fix="use 0 to 1")
    scales = {}
    for norm, group in _by_norm(linears).items():
        if missing := [linear.id for linear in group if linear.id not in stats]:
            raise UsageError(f"the calibration has nothing about '{missing[0]}'", fix="calibrate on this bundle")
        activation = np.max([stats[linear.id].channel_absmax for linear in group], axis=0).astype(np.float64)
        weight = np.max([weights[linear.id] for linear in group], axis=0)
        alive = (activation > 0) & (weight > 0)
        scale = np.ones(len(alive))
        if alive.any():
            scale[alive] = activation[alive] ** alpha / weight[alive] ** (1 - alpha)
            scale[alive] /= np.median(scale[alive])
        scales[norm] = np.clip(scale, 1 / _MOST, _MOST)
    return scales


def fold_scales(model: ir.Model, linears: Sequence[Linear], scales: Mapping[str, np.ndarray]) -> None:
    """Divide the norms' scale and shift in their tables by the scales, and multiply the weights' rows by them.

    Args:
        model: changed in place; the changed tensors are lazy.
        linears: :func:`smoothable`'s result: all that read the norms.
        scales: by norm.
    """
    tables: dict[str, np.ndarray] = {}
    for linear in linears:
        scale = scales.get(linear.norm or "")
        if scale is None or linear.table is None or linear.scale_chunk is None or linear.shift_chunk is None:
            continue
        _scale_lazily(model, linear.id.weight, scale[:, None])
        if linear.table not in tables:
            tables[linear.table] = np.ones(_stored(model, linear.table).shape.numpy()[1:])
        tables[linear.table][[linear.scale_chunk, linear.shift_chunk]] = 1 / scale
    for name, factor in tables.items():
        _scale_lazily(model, name, factor)


def smoothed_stats(
    linears: Sequence[Linear], stats: Mapping[LinearId, LinearStats], scales: Mapping[str, np.ndarray]
) -> dict[LinearId, LinearStats]:
    """What calibration would see in the smoothed graph, for the linears behind the norms.

    Ranges are the extremes of the scaled channels: a histogram of all channels together cannot be scaled by channel,
    and where the channels are alike there are no outliers left to clip.
    """
    shared: dict[tuple[int, str], LinearStats] = {}
    scaled = {}
    for linear in linears:
        old, norm = stats[linear.id], linear.norm or ""
        if norm in scales:
            key = (id(old), norm)
            if key not in shared:
                shared[key] = _scaled_stats(old, scales[norm])
            scaled[linear.id] = shared[key]
    return scaled


def _scaled_stats(stats: LinearStats, scale: np.ndarray) -> LinearStats:
    low = (stats.channel_low / scale).astype(np.float32)
    high = (stats.channel_high / scale).astype(np.float32)
    return LinearStats(
        low=np.minimum(low.min(axis=1), 0).astype(np.float64),
        high=np.maximum(high.max(axis=1), 0).astype(np.float64),
        channel_absmax=(stats.channel_absmax / scale).astype(np.float32),
        second_moment=stats.second_moment / scale**2,
        channel_low=low,
        channel_high=high,
        rows=stats.rows,
    )


def _by_norm(linears: Sequence[Linear]) -> dict[str, list[Linear]]:
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        if linear.norm is not None:
            groups.setdefault(linear.norm, []).append(linear)
    return groups


def _stored(model: ir.Model, name: str) -> ir.TensorProtocol:
    stored = model.graph.initializers[name].const_value
    assert stored is not None, f"'{name}' has no value"
    return stored


def _scale_lazily(model: ir.Model, name: str, factor: np.ndarray) -> None:
    """Multiply an initializer by a factor, which is broadcast to it, when it is written."""
    stored = _stored(model, name)

    def read() -> ir.TensorProtocol:
        array = read_tensor(stored)
        return ir.tensor((array * factor).astype(array.dtype), name=stored.name)

    model.graph.initializers[name].const_value = ir.LazyTensor(
        read, dtype=stored.dtype, shape=ir.Shape(stored.shape.numpy()), name=stored.name
    )
