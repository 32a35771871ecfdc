"""Element by element: arithmetic with broadcasting, comparison, activations, casts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.coreml.kernels.registry import TORCH_DTYPES, Arguments, kernel

Unary = Callable[[Tensor], Tensor]
Binary = Callable[[Tensor, Tensor], Tensor]


def _floor_divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


_BINARY: dict[str, Binary] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": _floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}
_UNARY: dict[str, Unary] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}


def _register_binary(name: str, function: Binary) -> None:
    kernel(name)(lambda arguments: function(arguments.tensor("x"), arguments.tensor("y")))


def _register_unary(name: str, function: Unary) -> None:
    kernel(name)(lambda arguments: function(arguments.tensor("x")))


for _name, _binary in _BINARY.items():
    _register_binary(_name, _binary)
for _name, _unary in _UNARY.items():
    _register_unary(_name, _unary)


@kernel("identity")
def identity(arguments: Arguments) -> Tensor:
    """x."""
    return arguments.tensor("x")


@kernel("real_div")
def real_div(arguments: Arguments) -> Tensor:
    """x / y of floats; how Core ML rounds integers' quotients is not said anywhere."""
    x, y = arguments.tensor("x"), arguments.tensor("y")
    if not x.is_floating_point():
        raise arguments.refuse("dividing integers is not interpreted")
    return x / y


@kernel("rsqrt")
def rsqrt(arguments: Arguments) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(arguments.tensor("x") + arguments.number("epsilon", 1e-12))


@kernel("inverse")
def inverse(arguments: Arguments) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (arguments.tensor("x") + arguments.number("epsilon", 1e-4))


@kernel("log")
def log(arguments: Arguments) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(arguments.tensor("x") + arguments.number("epsilon", 1e-45))


@kernel("clip")
def clip(arguments: Arguments) -> Tensor:
    """Limited to [alpha, beta]."""
    return arguments.tensor("x").clamp(arguments.number("alpha"), arguments.number("beta"))


@kernel("leaky_relu")
def leaky_relu(arguments: Arguments) -> Tensor:
    """alpha x below 0."""
    return F.leaky_relu(arguments.tensor("x"), arguments.number("alpha"))


@kernel("gelu")
def gelu(arguments: Arguments) -> Tensor:
    """x times the normal distribution's cumulated density: exact, by tanh, or by a sigmoid of 1.702 x."""
    x = arguments.tensor("x")
    mode = arguments.choice("mode", ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"), "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


@kernel("cast")
def cast(arguments: Arguments) -> Tensor:
    """Another element type; towards 0 from floats to integers. The interpreter rounds floats to the declared type."""
    names = {"fp16": "float16", "fp32": "float32"}
    wanted = arguments.choice("dtype", ("bool", "fp16", "fp32", "int8", "int16", "int32", "uint8", "uint16"))
    x = arguments.tensor("x")
    if wanted in names and x.is_floating_point():
        return x
    return x.to(torch.float32 if wanted in names else TORCH_DTYPES[wanted])


@kernel("select")
def select(arguments: Arguments) -> Tensor:
    """a where the condition holds, else b."""
    return torch.where(arguments.tensor("cond"), arguments.tensor("a"), arguments.tensor("b"))
