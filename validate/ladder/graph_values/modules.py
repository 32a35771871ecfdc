"""Where in a graph the checkpoint's modules are: for each weight that kept its name, what its module gives.

A module here is a product (``MatMul``, ``MatMulInteger``, ``MatMulNBits``, ``Conv``, a scale) of an activation with a
weight ``NAME.weight`` (or its codes ``NAME.weight.values``), with what belongs to it: dequantization before, casts and
scales after, and the addition of ``NAME.bias``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from livemoments.graphs.subgraphs import Network

_WEIGHT = re.compile(r"^(.+)\.weight(?:\.values)?$")
_ON_THE_WAY = ("Cast", "Mul", "Add", "Reshape", "Transpose")
"""What may lie between a product and the addition of its bias."""
_QUANTIZING = ("Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""What may lie between an activation and the product that reads it."""
PRODUCTS = ("MatMul", "MatMulInteger", "MatMulNBits", "Conv", "Gemm", "Mul")


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """One module of the checkpoint as the graph has it.

    Attributes:
        name: the checkpoint's, e.g. ``transformer_blocks.3.attn.to_q``.
        data: the activation that it reads, before any quantization.
        product: index of the node that multiplies.
        value: what the module gives.
    """

    name: str
    data: str
    product: int
    value: str


def find_modules(network: Network) -> dict[str, ModuleOutput]:
    """The modules of a graph by name, in the graph's order.

    Weights that several products read (unrolled iterations) are left out, for one name stands for several values there.
    """
    weights = {match[1]: name for name in network.weights if (match := _WEIGHT.match(name))}
    modules = [module for name, weight in weights.items() if (module := _module(network, name, weight)) is not None]
    return {module.name: module for module in sorted(modules, key=lambda module: module.product)}


def _before_quantization(network: Network, value: str) -> str:
    """The float activation that a quantized or cast one stands for; any other value is itself."""
    while (maker := network.maker(value)) is not None and network.nodes[maker].op_type in _QUANTIZING:
        value = network.nodes[maker].input[0]
    return value


def _module(network: Network, name: str, weight: str) -> ModuleOutput | None:
    held, readers = weight, network.readers(weight)
    while len(readers) == 1 and _prepares_weight(network, readers[0], held):
        held = network.nodes[readers[0]].output[0]
        readers = network.readers(held)
    readers = [index for index in readers if network.nodes[index].op_type in PRODUCTS]
    if not readers or (len(readers) > 1 and not name.startswith("transformer_blocks.")):
        return None
    product = readers[0]
    node = network.nodes[product]
    data = next((value for value in node.input if value and value != held and value not in network.weights), None)
    if data is None:
        return None
    return ModuleOutput(name, _before_quantization(network, data), product, _end(network, name, product))


def _prepares_weight(network: Network, index: int, held: str) -> bool:
    """Whether a node only changes the form of a weight: everything that it reads is stored."""
    node = network.nodes[index]
    return all(value in network.weights or value == held for value in node.input if value) and bool(node.output)


def _end(network: Network, name: str, product: int) -> str:
    """The last value that belongs to the module whose product this is."""
    value, end = network.nodes[product].output[0], network.nodes[product].output[0]
    if f"{name}.bias" in network.nodes[product].input:
        return value
    for index in _followers(network, value):
        node = network.nodes[index]
        origins = {origin for other in node.input for origin in _origins(network, other)}
        if node.op_type == "Add" and f"{name}.bias" in origins:
            return node.output[0]
        scales = any(origin.startswith(f"{name}.weight") for origin in origins)
        if node.op_type == "Cast" or (node.op_type == "Mul" and scales):
            end = node.output[0]
    return end


def _followers(network: Network, value: str) -> Iterator[int]:
    """The chain of nodes after a value, as long as each is the only reader and may lie before a bias."""
    for _ in range(6):
        readers = network.readers(value)
        if len(readers) != 1 or value in network.outputs or network.nodes[readers[0]].op_type not in _ON_THE_WAY:
            return
        yield readers[0]
        value = network.nodes[readers[0]].output[0]


def _origins(network: Network, value: str, depth: int = 3) -> Iterator[str]:
    """The initializers that a value is made of, a few nodes up."""
    if value in network.weights:
        yield value
        return
    maker = network.maker(value)
    if maker is not None and depth:
        for name in network.nodes[maker].input:
            yield from _origins(network, name, depth - 1)
