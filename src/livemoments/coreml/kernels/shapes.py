"""What moves elements without computing with them: reshaping, slicing, joining, gathering, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.coreml.kernels.registry import Arguments, kernel


@kernel("reshape", moves=True)
def reshape(arguments: Arguments) -> Tensor:
    """Another shape; -1 is what is left, 0 the axis as it is."""
    x, shape = arguments.tensor("x"), arguments.ints("shape")
    return x.reshape([x.shape[i] if axis == 0 else axis for i, axis in enumerate(shape)])


@kernel("transpose", moves=True)
def transpose(arguments: Arguments) -> Tensor:
    """Axes in another order."""
    return arguments.tensor("x").permute(arguments.ints("perm"))


@kernel("expand_dims", moves=True)
def expand_dims(arguments: Arguments) -> Tensor:
    """New axes of length 1, at their places in the result."""
    x, axes = arguments.tensor("x"), arguments.ints("axes")
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@kernel("squeeze", moves=True)
def squeeze(arguments: Arguments) -> Tensor:
    """Without axes of length 1: those named, or all."""
    x = arguments.tensor("x")
    axes = tuple(arguments.ints("axes", list(range(x.dim()))))
    if arguments.has("axes") and any(x.shape[axis] != 1 for axis in axes):
        raise arguments.refuse(f"an axis of {axes} is not of length 1 in {tuple(x.shape)}")
    return x.squeeze(axes)


@kernel("concat", moves=True)
def concat(arguments: Arguments) -> Tensor:
    """Joined along an axis."""
    if arguments.flag("interleave", False):
        raise arguments.refuse("interleaving is not interpreted")
    return torch.cat(arguments.tensors("values"), arguments.integer("axis"))


@kernel("stack", moves=True)
def stack(arguments: Arguments) -> Tensor:
    """Joined along a new axis."""
    return torch.stack(arguments.tensors("values"), arguments.integer("axis"))


@kernel("split", moves=True)
def split(arguments: Arguments) -> tuple[Tensor, ...]:
    """Cut along an axis, into parts of the given sizes or into equal ones."""
    x, axis = arguments.tensor("x"), arguments.integer("axis")
    if arguments.has("split_sizes"):
        arguments.ignore("num_splits")
        return torch.split(x, arguments.ints("split_sizes"), axis)
    parts = arguments.integer("num_splits")
    if x.shape[axis] % parts:
        raise arguments.refuse(f"an axis of {x.shape[axis]} is not {parts} equal parts")
    return torch.split(x, x.shape[axis] // parts, axis)


@kernel("slice_by_index", moves=True)
def slice_by_index(arguments: Arguments) -> Tensor:
    """x[begin:end:stride], axis by axis; squeezed axes are indexed instead."""
    x = arguments.tensor("x")
    places, reversed_axes = _places(x, arguments)
    return x.flip(reversed_axes)[places] if reversed_axes else x[places]


@kernel("slice_update", moves=True)
def slice_update(arguments: Arguments) -> Tensor:
    """x with another tensor in that slice."""
    x = arguments.tensor("x").clone()
    places, reversed_axes = _places(x, arguments)
    if reversed_axes:
        raise arguments.refuse("a negative stride is not interpreted")
    target = x[places]
    update = arguments.tensor("update")
    if update.shape != target.shape:
        raise arguments.refuse(f"the update is {tuple(update.shape)}, its place {tuple(target.shape)}")
    target.copy_(update)
    return x


def _places(x: Tensor, arguments: Arguments) -> tuple[tuple[slice | int, ...], list[int]]:
    """For each axis its slice or index, in the tensor with the axes of negative stride flipped, and these axes."""
    rank = x.dim()
    begin, end, stride = arguments.ints("begin"), arguments.ints("end"), arguments.ints("stride", [1] * rank)
    from_start, to_end, squeezed = (
        arguments.ints(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    places: list[slice | int] = []
    reversed_axes = []
    for axis in range(rank):
        if squeezed[axis]:
            places.append(begin[axis])
            continue
        wanted = slice(None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis], stride[axis])
        chosen = range(*wanted.indices(x.shape[axis]))
        if stride[axis] < 0:
            reversed_axes.append(axis)
            last = x.shape[axis] - 1
            chosen = range(last - chosen.start, last - chosen.stop, -chosen.step)
        places.append(slice(chosen.start, max(chosen.stop, chosen.start), chosen.step))
    return tuple(places), reversed_axes


@kernel("slice_by_size", moves=True)
def slice_by_size(arguments: Arguments) -> Tensor:
    """So many elements of each axis from a begin on; -1 is all that follow."""
    begins, sizes = arguments.ints("begin"), arguments.ints("size")
    x = arguments.tensor("x")
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


@kernel("tile", moves=True)
def tile(arguments: Arguments) -> Tensor:
    """Repeated along each axis."""
    return arguments.tensor("x").repeat(arguments.ints("reps"))


@kernel("shape", moves=True)
def shape(arguments: Arguments) -> Tensor:
    """The lengths of the axes."""
    return torch.tensor(arguments.tensor("x").shape, dtype=torch.int32)


@kernel("gather", moves=True)
def gather(arguments: Arguments) -> Tensor:
    """Slices of x along an axis, at the indices; out of range is refused, as such programs have no defined result."""
    x, indices = arguments.tensor("x"), arguments.tensor("indices")
    axis = arguments.integer("axis", 0) % x.dim()
    if arguments.integer("batch_dims", 0):
        raise arguments.refuse("batch dimensions are not interpreted")
    _check_indices(indices, x.shape[axis], arguments)
    rows = x.index_select(axis, indices.reshape(-1).long())
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@kernel("gather_along_axis", moves=True)
def gather_along_axis(arguments: Arguments) -> Tensor:
    """Elements of x along an axis, at indices of the same rank; out of range is refused."""
    x, indices = arguments.tensor("x"), arguments.tensor("indices")
    axis = arguments.integer("axis", 0) % x.dim()
    _check_indices(indices, x.shape[axis], arguments)
    return torch.gather(x, axis, indices.long())


def _check_indices(indices: Tensor, length: int, arguments: Arguments) -> None:
    arguments.ignore("validate_indices")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < length:
        raise arguments.refuse(f"indices from {int(indices.min())} to {int(indices.max())} into {length} places")


@kernel("pad", moves=True)
def pad(arguments: Arguments) -> Tensor:
    """More elements before and after: constant, reflected without the edge, or the edge repeated."""
    x, widths = arguments.tensor("x"), arguments.ints("pad")
    mode = arguments.choice("mode", ("constant", "reflect", "replicate"), "constant")
    value = arguments.number("constant_val", 0.0)
    first = x.dim() - len(widths) // 2
    if mode == "constant":
        pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)]
        return F.pad(x, [width for pair in reversed(pairs) for width in pair], value=value)
    for place in range(0, len(widths), 2):  # one axis after the other: torch pads the last ones only, of some ranks
        before, after = widths[place : place + 2]
        x = x.index_select(first + place // 2, _around(x.shape[first + place // 2], before, after, mode))
    return x


def _around(length: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, length + after)
    if mode == "replicate":
        return places.clamp(0, length - 1)
    return (length - 1) - ((length - 1) - places.abs()).abs()


@kernel("pixel_shuffle", moves=True)
def pixel_shuffle(arguments: Arguments) -> Tensor:
    """(B, C r r, H, W) to (B, C, H r, W r)."""
    return F.pixel_shuffle(arguments.tensor("x"), arguments.integer("upscale_factor"))


@kernel("pixel_unshuffle", moves=True)
def pixel_unshuffle(arguments: Arguments) -> Tensor:
    """(B, C, H r, W r) to (B, C r r, H, W)."""
    return F.pixel_unshuffle(arguments.tensor("x"), arguments.integer("downscale_factor"))
