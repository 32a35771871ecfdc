"""Recipes: what a bundle is quantized to, as data: a TOML file each in ``quantize/recipes``; users may write more."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from importlib import resources
from typing import Literal

import msgspec

from livemoments.errors import FileError, UsageError
from livemoments.graphs.linears import Linear
from livemoments.quantize.actions import Action, Mix
from livemoments.recipe_names import RECIPES
from livemoments.store.files import read_file

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block lengths that onnxruntime's ``MatMulNBits`` accepts."""
ROTATIONS = (16, 64, 256)
"""Block lengths of a rotation: powers of four, whose matrix entries are powers of two, so exact in half precision."""
PACKAGES = "coreml"
"""The target whose bundles hold packages instead of graphs; recipes for it alone compress these."""
PACKAGE_ACTIONS = (Action.WEIGHT_INT8, Action.WEIGHT_INT4, Action.PALETTE, Action.INT8_STATIC)
PALETTE_BITS = (4, 6, 8)
"""Widths of an index that every Core ML engine reads."""
FLOAT_RECIPES = (None, "fp16")
"""What a manifest says of bundles that can be quantized: their weights are still floats."""
_PRECISION = {
    Action.KEEP: "fp16",
    Action.INT8_STATIC: "int8",
    Action.INT8_DYNAMIC: "int8-dynamic",
    Action.WEIGHT_INT8: "int8-weights",
    Action.WEIGHT_INT4: "int4-weights",
    Action.FP8: "fp8",
}


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One recipe.

    Attributes:
        name: how it is called; goes to the manifest.
        summary: one sentence for lists.
        action: what happens to every linear that is not kept.
        half: the whole graph becomes float16 (the action is ``keep`` then).
        stages: the stages whose linears are quantized.
        devices: the kinds of engine it is meant to be fast on (``cpu``, ``cuda``, ``tensorrt``, ``coreml``).
        keep: patterns of the weights that keep their precision (``*`` and ``?`` as in file names).
        block_size: inputs that share a scale, for the weight-only actions; 0, for packages only: all of them.
        bits: the width of a palette's index.
        group_rows: outputs that share a palette; 0: all of a weight's.
        symmetric: neither blocks of weights nor static activations have a zero point.
        method: how a block's scale and zero point are found: ``rtn`` spans its values, ``hqq`` minimises its error.
        int8_compute: weight-only products quantize their input by blocks while they run (8 bit): faster, less exact.
        smoothquant_alpha: how much of the activations' spread moves into the weights, 0 to 1; ``None``: nothing.
        observer: how activations' ranges are chosen from what calibration saw.
        percentile: share of the values, in percent, that lies within the range, for the observer of that name.
        step_ranges: every point of the schedule has its own activation ranges, looked up by ``step`` (at no cost in
            onnxruntime; TensorRT takes them from symmetric recipes and fp8 only).
        rotation: channels of a block that a Hadamard matrix mixes before they are quantized, a power of two; 0: none.
        keys_values: keys and values leave ReferenceNet and enter RestorationNet in int8, a scale per channel.
        attention: what attention reads is quantized too, to the type of the action, one constant scale a tensor.
    """

    name: str
    summary: str
    action: Action
    half: bool = False
    stages: tuple[str, ...] = ("reference", "restoration")
    devices: tuple[str, ...] = ("cpu",)
    keep: tuple[str, ...] = ()
    block_size: int = 32
    bits: int = 8
    group_rows: int = 0
    symmetric: bool = False
    method: Literal["rtn", "hqq"] = "rtn"
    int8_compute: bool = False
    smoothquant_alpha: float | None = None
    observer: str = "percentile"
    percentile: float = 99.99
    step_ranges: bool = False
    rotation: int = 0
    keys_values: bool = False
    attention: bool = False

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be observed first."""
        return self.action.needs_calibration or self.smoothquant_alpha is not None

    @property
    def needs_operands(self) -> bool:
        """Whether calibration must also see what attention reads and what passes between the networks."""
        return self.keys_values or self.attention

    @property
    def precision(self) -> str:
        """The row of ``validate/limits.toml`` that holds: the shipped recipe's of the same action."""
        return f"palette{self.bits}" if self.action is Action.PALETTE else _PRECISION[self.action]

    @property
    def for_packages(self) -> bool:
        """Whether it compresses Core ML packages, not graphs."""
        return self.devices == (PACKAGES,)

    def keeps(self, weight: str) -> bool:
        """Whether a weight keeps its precision; names in packages have underscores in the place of dots."""
        patterns = (form for pattern in self.keep for form in (pattern, pattern.replace(".", "_")))
        return any(fnmatch.fnmatchcase(weight, pattern) for pattern in patterns)


def load_recipe(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """A recipe by the name of a shipped one, or from a TOML file.

    Raises:
        UsageError: no such name.
        FileError: the file is missing or malformed, or its values contradict.
    """
    if isinstance(recipe, Recipe):
        _check(recipe, recipe.name)
        return recipe
    name = os.fspath(recipe)
    if name in RECIPES:
        text = (resources.files("livemoments.quantize") / "recipes" / f"{name}.toml").read_bytes()
    elif name.endswith(".toml"):
        try:
            text = read_file(name)
        except OSError as error:
            raise FileError(name, f"cannot be read ({error.strerror})") from None
    else:
        raise UsageError(f"there is no recipe '{name}'", fix=f"use {', '.join(RECIPES)}, or name a .toml file")
    try:
        decoded = msgspec.toml.decode(text, type=Recipe)
    except (msgspec.MsgspecError, ValueError) as error:
        raise FileError(name, f"not a recipe: {error}", fix="see docs/quantization.md") from None
    _check(decoded, name)
    return decoded


def names_for(target: str) -> tuple[str, ...]:
    """The shipped recipes for bundles of a target."""
    return tuple(name for name in RECIPES if load_recipe(name).for_packages == (target == PACKAGES))


def recipe_mix(recipe: Recipe, linears: Iterable[Linear]) -> Mix:
    """What a recipe does to each linear. Pure.

    Returns:
        An entry for every linear of the recipe's stages; empty for a recipe that quantizes none.
    """
    if recipe.action is Action.KEEP:
        return {}
    return {
        linear.id: Action.KEEP if recipe.keeps(linear.id.weight) else recipe.action
        for linear in linears
        if linear.id.stage in recipe.stages
    }


def _check(recipe: Recipe, name: str) -> None:
    alpha, palette = recipe.smoothquant_alpha, recipe.action is Action.PALETTE
    sizes = (0, *BLOCK_SIZES) if recipe.for_packages else BLOCK_SIZES
    for wrong, what in (
        (not recipe.name, "it has no name"),
        (recipe.half != (recipe.action is Action.KEEP), "half goes with the action 'keep', and only with it"),
        (recipe.block_size not in sizes, f"block_size must be one of {', '.join(map(str, sizes))}"),
        (recipe.bits not in PALETTE_BITS, f"bits must be one of {', '.join(map(str, PALETTE_BITS))}"),
        (recipe.group_rows < 0, "group_rows must be 0 or more"),
        (palette and not recipe.for_packages, 'palettes are for Core ML packages: devices = ["coreml"]'),
        (
            recipe.for_packages and (recipe.action not in PACKAGE_ACTIONS or alpha is not None or recipe.step_ranges),
            "Core ML packages take weight-int8, weight-int4, palette and int8-static, without smoothquant_alpha and "
            "step_ranges",
        ),
        (alpha is not None and not 0 <= alpha <= 1, "smoothquant_alpha must lie between 0 and 1"),
        (not 50 < recipe.percentile <= 100, "percentile must lie between 50 and 100"),
        (
            (recipe.rotation or recipe.needs_operands) and not recipe.action.needs_calibration,
            "rotation, keys_values and attention go with the actions 'int8-static' and 'fp8'",
        ),
        (
            recipe.keys_values and set(recipe.stages) != {"reference", "restoration"},
            "keys_values changes what the two networks exchange: stages must be both",
        ),
        (
            recipe.rotation and (recipe.rotation not in ROTATIONS or alpha is not None),
            f"rotation must be one of {', '.join(map(str, ROTATIONS))}, and goes without smoothquant_alpha",
        ),
    ):
        if wrong:
            raise FileError(name, f"not a recipe: {what}", fix="see docs/quantization.md")
