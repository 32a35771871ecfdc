"""Where coremltools 9.0 turns PyTorch's operators into something else, its lowerings replaced by right ones.

Each is a fault that a test of this project shows without the replacement (``tests/export/test_coreml_lowerings.py``):

* ``gelu``: the keyword ``approximate`` of an exported program is dropped, and tanh-GELU becomes the exact one
  (apple/coremltools pull request 2863).
* ``layer_norm``: scale and shift must be constants; a modulated norm's are not, and the conversion fails.
* ``clamp`` of integers is computed in float32, and the gather that takes the result as its index fails.
* ``div`` by a number and ``pad`` with one make half-precision tensors float32, and what follows is float32 too, or
  fails.

The registry is the process's: packages are converted in processes of their own
(:mod:`livemoments.export.coreml.worker`).
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def install() -> None:
    """Put the lowerings in place of coremltools' own, once in this process."""
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
    from coremltools.converters.mil.mil import types

    def arguments(context: Any, node: Any, names: tuple[str, ...]) -> dict[str, Any]:
        """What is bound to the parameters, by position or by name; absent ones are ``None``."""
        bound = dict.fromkeys(names)
        bound.update(zip(names, ops._get_inputs(context, node), strict=False))
        for name in names:
            (found,) = ops._get_kwinputs(context, node, name, default=[None])
            if found is not None:
                bound[name] = found
        return bound

    @register_torch_op(override=True)
    def gelu(context: Any, node: Any) -> None:
        bound = arguments(context, node, ("x", "approximate"))
        how = getattr(bound["approximate"], "val", bound["approximate"])
        mode = "TANH_APPROXIMATION" if how == "tanh" else "EXACT"
        context.add(mb.gelu(x=bound["x"], mode=mode, name=node.name))

    @register_torch_op(override=True)
    def layer_norm(context: Any, node: Any) -> None:
        bound = arguments(context, node, ("x", "shape", "weight", "bias", "eps"))
        x = bound["x"]
        axes = list(range(x.rank - len(bound["shape"].val), x.rank))
        affine = {"mul": bound["weight"], "add": bound["bias"]}
        constant = all(value is None or value.val is not None for value in affine.values())
        extra = {"gamma": affine["mul"], "beta": affine["add"]} if constant else {}
        eps = 1e-5 if bound["eps"] is None else float(bound["eps"].val)
        epsilon = types.nptype_from_builtin(x.dtype)(eps)
        steps = [] if constant else [(name, value) for name, value in affine.items() if value is not None]
        name = node.name if not steps else f"{node.name}_normed"
        found = mb.layer_norm(
            x=x, axes=axes, epsilon=epsilon, name=name, **{k: v for k, v in extra.items() if v is not None}
        )
        for index, (kind, value) in enumerate(steps):
            last = index == len(steps) - 1
            found = getattr(mb, kind)(x=found, y=value, name=node.name if last else f"{node.name}_{kind}")
        context.add(found)

    own_clamp = ops.clamp

    @register_torch_op(override=True)
    def clamp(context: Any, node: Any) -> None:
        bound = arguments(context, node, ("x", "min", "max"))
        x = bound["x"]
        if not types.is_int(x.dtype):
            own_clamp(context, node)
            return
        for kind, limit in (("maximum", bound["min"]), ("minimum", bound["max"])):
            if limit is not None and limit.val is not None:
                x = getattr(mb, kind)(x=x, y=types.nptype_from_builtin(x.dtype)(limit.val))
        context.add(mb.identity(x=x, name=node.name))

    own_div = ops.div

    @register_torch_op(torch_alias=["truediv"], override=True)
    def div(context: Any, node: Any) -> None:
        bound = arguments(context, node, ("x", "other", "rounding_mode"))
        x, other = bound["x"], bound["other"]
        number = other.val if other.rank == 0 else None
        if number is None or bound["rounding_mode"] is not None or not types.is_float(x.dtype):
            own_div(context, node)
            return
        context.add(mb.real_div(x=x, y=types.nptype_from_builtin(x.dtype)(number), name=node.name))

    own_pad = ops.pad

    @register_torch_op(override=True)
    def pad(context: Any, node: Any) -> None:
        bound = arguments(context, node, ("x", "pad", "mode", "value"))
        x, value = bound["x"], bound["value"]
        mode = getattr(bound["mode"], "val", bound["mode"]) or "constant"
        if not types.is_float(x.dtype) or mode != "constant":
            own_pad(context, node)
            return
        pairs = bound["pad"].val.reshape(-1, 2)[::-1]  # torch begins with the last axis
        widths = [0, 0] * (x.rank - len(pairs)) + pairs.reshape(-1).tolist()
        number = types.nptype_from_builtin(x.dtype)(0 if value is None else getattr(value, "val", value))
        context.add(mb.pad(x=x, pad=widths, mode="constant", constant_val=number, name=node.name))
