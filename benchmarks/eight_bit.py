"""8-bit products for TensorRT: rotation against SmoothQuant, and what holds 2 % (int8) and 5 % (fp8) a step.

    python benchmarks/eight_bit.py {small,mid,modelopt} [--work DIR]

Method. `small` begins with one product: 4096 Gaussian tokens of 512 channels, with outliers 60 times as large in four
channels of every token (the same ones), or in one channel of each token (another each), or none; signal to noise of
the product with int8 weights (a scale per output) and int8 inputs (one symmetric scale): plain, after SmoothQuant,
and rotated. Then the trained checkpoint in this package restores three photographs to calibrate, and a fourth;
relative L2 of each transformer's outputs over the steps, the worst one, with the float32 engines' own inputs. The same
with outliers planted in four channels of every modulated norm, which changes no function. `mid`: random weights,
256-pixel tile, likewise, every step of RestorationNet, with some kinds of linears kept; and relative L2 of the latent
after the step, which the velocity's error enters times the step's length. `modelopt`: the trained checkpoint again,
with several observers, ours and nvidia-modelopt's (`make modelopt`), on the same calibration photographs. All in
onnxruntime on a CPU, Q/DQ pairs computed as written (`session.disable_quant_qdq`): what TensorRT's arithmetic adds to
it is not measured here.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import msgspec
import numpy as np
import onnx_ir as ir
from common import photograph, write_record

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.distances import relative_l2, sqnr_db
from livemoments.graphs.linears import LinearId, find_linears
from livemoments.ort import open_session, session_options
from livemoments.quantize.actions import Action
from livemoments.quantize.calibrate.modelopt_observers import FP8_OBSERVERS, METHODS, modelopt_observer
from livemoments.quantize.calibrate.observers import Observer
from livemoments.quantize.calibrate.result import CalibrationResult
from livemoments.quantize.calibrate.run import calibrate_for
from livemoments.quantize.recipes import Recipe, load_recipe, recipe_mix
from livemoments.quantize.rewrite.attention import quantize_operands
from livemoments.quantize.rewrite.input_ranges import INT8_MAX
from livemoments.quantize.rewrite.round_weights import int8_channels
from livemoments.quantize.rewrite.run import rewrite
from livemoments.quantize.rewrite.smoothquant import smooth
from livemoments.quantize.rotation import rotate
from livemoments.quantize.search.cached_backend import Call
from livemoments.quantize.search.in_memory_engine import load_graph
from livemoments.quantize.search.photo_loss import open_photo_loss
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.schedule import sigmas
from livemoments.simulated_clip import simulate_live_photo
from livemoments.types import Size, Stage

R = TypeVar("R")
TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)
PHOTOS = ("astronaut", "chelsea", "rocket")
OUTLIER = 60.0
_LEAST_PX = 192
"""No clip can be simulated from a smaller photograph; one tile is cut from its middle."""
PLANTED = (3, 40, 77, 101)
VALUES, OUTPUTS, SECONDS = "*.attn.*v*", "*.attn.to_*out*", "*.net.2.weight"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8-tensorrt", {"smoothquant_alpha": None}),
    "int8, SmoothQuant 0.5": ("int8-tensorrt", {"smoothquant_alpha": 0.5}),
    "int8, SmoothQuant 0.8": ("int8-tensorrt", {"smoothquant_alpha": 0.8}),
    "int8, SmoothQuant 0.8, a scale per step": ("int8-tensorrt", {"smoothquant_alpha": 0.8, "step_ranges": True}),
    "int8, rotated in blocks of 64": ("int8-rotated", {"rotation": 64}),
    "fp8": ("fp8", {}),
}
MID_VARIANTS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "int8-tensorrt": ("int8-tensorrt", (), {}),
    "int8-tensorrt, with 8-bit attention": ("int8-tensorrt", (), {"attention": True}),
    "int8-tensorrt, attention's outputs in fp16": ("int8-tensorrt", (OUTPUTS,), {}),
    "int8-tensorrt, MLP's second linears in fp16": ("int8-tensorrt", (SECONDS,), {}),
    "int8-tensorrt, attention's outputs and MLP's second linears in fp16": (
        "int8-tensorrt",
        (OUTPUTS, SECONDS),
        {},
    ),
    "int8-rotated": ("int8-rotated", (), {}),
    "fp8": ("fp8", (), {}),
    "fp8, without 8-bit attention": ("fp8", (), {"attention": False}),
    "fp8, values, attention's outputs and MLP's second linears in fp16": (
        "fp8",
        (VALUES, OUTPUTS, SECONDS),
        {"attention": False},
    ),
    "fp8, the same and the first block in fp16": (
        "fp8",
        (VALUES, OUTPUTS, SECONDS, "transformer_blocks.0.*"),
        {"attention": False},
    ),
}
OBSERVED: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "int8, SmoothQuant 0.8": ("int8-tensorrt", ("percentile",), {}),
    "fp8": ("fp8", FP8_OBSERVERS, {}),
    "int8": ("int8-tensorrt", tuple(METHODS), {"smoothquant_alpha": None}),
}
"""A recipe, observers and changes."""
BARS = {Action.INT8_STATIC: 0.02, Action.FP8: 0.05}


def planted() -> dict[str, dict[str, float]]:
    """Signal to noise of one product, dB."""
    rng = np.random.default_rng(0)
    tokens, channels, outputs = 4096, 512, 512
    weight = rng.standard_normal((channels, outputs)).astype(np.float32)
    plain = rng.standard_normal((tokens, channels)).astype(np.float32)
    same, moving = plain.copy(), plain.copy()
    same[:, PLANTED] *= OUTLIER
    moving[np.arange(tokens), rng.integers(0, channels, tokens)] *= OUTLIER
    return {
        name: {
            "as it is": product_sqnr_db(x, weight),
            "SmoothQuant 0.5": product_sqnr_db(*_smoothed(x, weight, 0.5)),
            "SmoothQuant 0.8": product_sqnr_db(*_smoothed(x, weight, 0.8)),
            "rotated in blocks of 64": product_sqnr_db(rotate(x, 64), rotate(weight, 64, axis=0)),
        }
        for name, x in (("no outliers", plain), ("in the same channels", same), ("in changing channels", moving))
    }


def _smoothed(x: np.ndarray, weight: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(x).max(axis=0) ** alpha / np.abs(weight).max(axis=1) ** (1 - alpha)
    return x / scale, weight * scale[:, None]


def product_sqnr_db(x: np.ndarray, weight: np.ndarray) -> float:
    """Of ``x @ weight`` with both in int8."""
    step = np.abs(x).max() / INT8_MAX
    stored = int8_channels(weight)
    product = (np.rint(x / step) * step) @ (stored.values * stored.scale)
    return round(sqnr_db(product, x @ weight), 2)


@dataclass(frozen=True)
class Case:
    """A bundle, photos to calibrate on, and what its float engines were fed with and gave on another photo."""

    bundle: Bundle
    photos: Path
    calls: Mapping[Stage, Sequence[Call]]
    work: Path
    size: Size

    def calibration(self, recipe: Recipe, observer: Observer | None = None) -> CalibrationResult:
        """As a recipe wants it; photos that were restored before are not restored again."""
        return calibrate_for(recipe, self.bundle, self.photos, observer=observer, work=self.work)

    def errors(
        self,
        stage: Stage,
        recipe: Recipe,
        stats: Mapping[LinearId, Any],
        measure: Callable[[Call, dict[str, np.ndarray]], R],
    ) -> list[R]:
        """What ``measure`` says of each call of a stage whose linears a recipe quantized."""
        model = load_graph(self.bundle, stage, self.size)
        linears = find_linears(model, str(stage))
        known = dict(stats)
        if recipe.smoothquant_alpha is not None:
            known = smooth(model, linears, known, recipe.smoothquant_alpha)
        rewrite(model, linears, recipe_mix(recipe, linears), recipe, known)
        if recipe.attention:
            quantize_operands(model, stage, known, fp8=recipe.action is Action.FP8)
        path = self.bundle.path / self.bundle.graph(stage, self.size).path
        options = session_options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = open_session(ir.to_proto(model).SerializeToString(), options)
        names = [output.name for output in session.get_outputs()]
        runs = ((call, session.run(names, dict(call.inputs))) for call in self.calls[stage])
        return [measure(call, dict(zip(names, arrays, strict=True))) for call, arrays in runs]


def outputs_error(call: Call, found: dict[str, np.ndarray]) -> float:
    """Relative L2 of all outputs together."""
    return relative_l2(*(np.concatenate([of[name].ravel() for name in found]) for of in (found, call.outputs)))


def write_photos(folder: Path, side_px: int) -> Path:
    from skimage import data

    for number, name in enumerate(PHOTOS):
        pixels = cv2.resize(getattr(data, name)(), (side_px, side_px), interpolation=cv2.INTER_CUBIC)
        clip = simulate_live_photo(pixels, seed=number)
        for part, image in (("lr", clip.frame), ("ref", clip.photo), ("ref_lr", clip.photo_frame)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / part / f"{name}.png"), np.ascontiguousarray(image[..., ::-1]))
    return folder


def open_case(bundle: Bundle, work: Path) -> Case:
    """Photos of a tile and a bit more, and the calls of a restoration of another one."""
    (size,) = bundle.tile_sizes
    side_px = max(_LEAST_PX, round(size.width * 1.15))
    photos = write_photos(work / "photos", side_px)
    probe = simulate_live_photo(photograph(side_px, side_px), seed=9).map(Photo)
    calls: dict[Stage, list[Call]] = {}
    with open_photo_loss(bundle, [probe], parent=work) as loss:
        for stage in TRANSFORMERS:
            calls[stage] = [Call(_copied(call.inputs), _copied(call.outputs), call.point) for call in loss.calls(stage)]
    return Case(bundle, photos, calls, work / "calibration", size)


def _copied(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In memory: the files that large ones are mapped from go."""
    return {name: np.array(array) for name, array in arrays.items()}


def with_outliers(bundle: Bundle, place: Path) -> Bundle:
    """The same function, with four channels of every modulated norm larger and their weights as much smaller."""
    shutil.copytree(bundle.path, place)
    for stage in TRANSFORMERS:
        model = ir.load(next((place / str(stage)).glob("*.onnx")))
        chunks: dict[str, set[int]] = {}
        for linear in find_linears(model, str(stage)):
            if linear.table is not None and linear.scale_chunk is not None and linear.shift_chunk is not None:
                _edit(model, linear.id.weight, (list(PLANTED), slice(None)), 1 / OUTLIER)
                chunks.setdefault(linear.table, set()).update({linear.scale_chunk, linear.shift_chunk})
        for table, rows in chunks.items():
            for row in rows:
                _edit(model, table, (slice(None), row, list(PLANTED)), OUTLIER)
    return Bundle.open(place, verify_hashes=False)


def _edit(model: ir.Model, name: str, where: Any, factor: float) -> None:
    tensor = model.graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    shape = tuple(int(n) for n in tensor.shape.numpy())
    np.memmap(tensor.path, tensor.dtype.numpy(), "r+", tensor.offset or 0, shape)[where] *= factor


def compare_small(work: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Relative L2 of the worst step of each transformer, by case and variant."""
    source = Bundle.open(trained_bundle())
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, bundle in (
        ("small", source),
        ("small, planted outliers", with_outliers(source, Path(tempfile.mkdtemp(dir=work)) / "planted")),
    ):
        case = open_case(bundle, work / name.replace(", ", "-").replace(" ", "-"))
        table[name] = {}
        for variant, (base, changes) in VARIANTS.items():
            recipe = msgspec.structs.replace(load_recipe(base), **{"attention": False} | changes)
            stats = case.calibration(recipe).stats
            worst = {s: max(case.errors(s, recipe, stats, outputs_error)) for s in TRANSFORMERS}
            table[name][variant] = {str(stage): round(error, 4) for stage, error in worst.items()}
            print(f"{name:<26} {variant:<42} {table[name][variant]}", flush=True)
    return table


def compare_observers(work: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Relative L2 of the worst step of each transformer, by variant, observer, and who computed it."""
    case = open_case(Bundle.open(trained_bundle()), work / "small")
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for variant, (base, names, changes) in OBSERVED.items():
        table[variant] = {}
        for name in names:
            recipe = msgspec.structs.replace(load_recipe(base), observer=name, percentile=99.999, **changes)
            row = table[variant][name] = {}
            for who, observer in (("ours", None), ("modelopt", modelopt_observer(recipe))):
                stats = case.calibration(recipe, observer).stats
                for stage in TRANSFORMERS:
                    row[f"{stage}, {who}"] = round(max(case.errors(stage, recipe, stats, outputs_error)), 4)
            print(f"{variant:<24} {name:<12} {row}", flush=True)
    return table


def compare_mid(work: Path) -> dict[str, dict[str, Any]]:
    """Relative L2 of every step of RestorationNet, by variant."""
    from livemoments.export.pipeline import export_bundle
    from livemoments.reference.random_checkpoint import make_checkpoint

    folder = work / "mid"
    if not (folder / "checkpoint").exists():
        make_checkpoint(folder / "checkpoint", size="mid", seed=0)
    if not (folder / "fp32").exists():
        export_bundle(folder / "checkpoint", folder / "fp32", tiles=(Size(256, 256),), overlap=32, verify="none")
    case = open_case(Bundle.open(folder / "fp32"), folder)
    manifest = case.bundle.manifest
    plan = manifest.schedule.plans[str(manifest.schedule.default_steps)]
    along = dict(zip(plan, np.diff(sigmas(manifest.schedule, plan)), strict=True))
    rows: dict[str, dict[str, Any]] = {}

    def both(call: Call, found: dict[str, np.ndarray]) -> tuple[float, float]:
        velocities = [np.asarray(of["velocity"], np.float32) for of in (found, call.outputs)]
        latents = [call.inputs["latent"] + along[call.point or 0] * velocity for velocity in velocities]
        return relative_l2(*velocities), relative_l2(*latents)

    for name, (base, keep, changes) in MID_VARIANTS.items():
        recipe = msgspec.structs.replace(load_recipe(base), **changes)
        recipe = msgspec.structs.replace(recipe, keep=(*recipe.keep, *keep))
        errors = case.errors(Stage.RESTORATION, recipe, case.calibration(recipe).stats, both)
        velocity, latent = (max(column) for column in zip(*errors, strict=True))
        rows[name] = {
            "velocity_rel_l2": [round(error, 4) for error, _ in errors],
            "latent_rel_l2": [round(error, 5) for _, error in errors],
            "narrow_share_of_weights": round(narrow_share(case, recipe), 3),
            "holds": velocity <= BARS[recipe.action],
            "kept": list(recipe.keep),
        }
        print(f"{name:<72} {velocity:.4f} {latent:.5f} {rows[name]['narrow_share_of_weights']:.2f}", flush=True)
    return rows


def narrow_share(case: Case, recipe: Recipe) -> float:
    """Of RestorationNet's linears' weights, those in 8 bits."""
    linears = find_linears(load_graph(case.bundle, Stage.RESTORATION, case.size), str(Stage.RESTORATION))
    mix = recipe_mix(recipe, linears)
    narrow = sum(linear.parameters for linear in linears if mix[linear.id] is recipe.action)
    return narrow / sum(linear.parameters for linear in linears)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["small", "mid", "modelopt"])
    parser.add_argument("--work", type=Path, help="keep checkpoint, bundle and calibrations here")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="livemoments-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        if options.case == "mid":
            record: dict[str, Any] = {"mid": compare_mid(work)}
        elif options.case == "modelopt":
            record = {"observers": compare_observers(work)}
        else:
            record = {"planted_sqnr_db": planted(), "small": compare_small(work)}
    for name, row in record.get("planted_sqnr_db", {}).items():
        print(f"{name:<22} {row}")
    print(f"written to {write_record(f'eight-bit-{options.case}', record)}")


if __name__ == "__main__":
    main()
