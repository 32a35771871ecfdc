"""Reading packages, and running them with the roundings, states and refusals that the interpreter promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

import torch
from coreml_programs import MODEL, build, changed, ct, interpret, mb, save, types

from livemoments.coreml.interpreter import Interpreter, States
from livemoments.coreml.package import Package, model_proto
from livemoments.coreml.program import ValueType
from livemoments.coreml.weight_file import WeightFile
from livemoments.errors import EngineError, FileError

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(name="rng")
def fixture_rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(name="linear", scope="module")
def fixture_linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a weight file: x (2, 16) times a weight (8, 16), halved."""
    weight = np.arange(128, dtype=np.float32).reshape(8, 16) / 64
    path = tmp_path_factory.mktemp("linear") / "linear.mlpackage"
    return save(lambda x: mb.mul(x=mb.linear(x=x, weight=weight), y=0.5), {"x": np.zeros((2, 16), np.float32)}, path)


# Precision


def test_every_result_is_rounded_to_its_declared_type(rng: np.random.Generator) -> None:
    """float16 products are summed in float32 and rounded once; a chain rounds after every operator."""
    x = rng.standard_normal((5, 64)).astype(np.float32)
    weight = rng.standard_normal((7, 64)).astype(np.float16)

    def body(x: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16")
        product = mb.linear(x=half, weight=weight)
        return product, mb.exp(x=mb.mul(x=product, y=np.float16(0.1))), mb.cast(x=product, dtype="fp32")

    product, chain, wide = interpret(body, {"x": x}, "declared")
    half = torch.from_numpy(x).half().float()
    want = (half @ torch.from_numpy(weight).float().T).half()
    scaled = (want.float() * torch.tensor(np.float16(0.1)).float()).half()
    assert product.dtype == np.float16
    np.testing.assert_array_equal(product, want.numpy())
    np.testing.assert_array_equal(chain, scaled.float().exp().half().numpy())
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, want.float().numpy())


def test_float16_overflows_as_it_is_declared_and_not_where_nothing_is_rounded(rng: np.random.Generator) -> None:
    x = rng.uniform(300, 400, 50).astype(np.float32)
    body = lambda x: mb.cast(x=mb.square(x=mb.cast(x=x, dtype="fp16")), dtype="fp32")  # noqa: E731
    assert np.isinf(interpret(body, {"x": x}, "declared")[0]).all()
    np.testing.assert_allclose(interpret(body, {"x": x}, "float32")[0], x**2, rtol=1e-6)


def test_observers_see_every_value_in_order(linear: Path) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []
    Interpreter(Package.open(linear)).run(
        {"x": np.ones((2, 16), np.float32)},
        observe=lambda operation, variable, value: seen.append((operation.kind, tuple(value.shape))),
    )
    assert seen == [("linear", (2, 8)), ("mul", (2, 8))]


# States and functions


def test_states_live_between_runs(rng: np.random.Generator) -> None:
    """A running sum: each run adds its input to what the last one left, and answers with it."""

    def body(x: Any, memory: Any) -> Any:
        total = mb.add(x=mb.read_state(input=memory), y=x)
        return mb.mul(x=mb.coreml_update_state(state=memory, value=total), y=np.float16(2))

    xs = rng.integers(-8, 8, (3, 4)).astype(np.float16)
    interpreter = Interpreter(build(body, {"x": xs[0]}, states={"memory": (4,)}))
    assert [state.name for state in interpreter.function.states] == ["memory"]
    states = States()
    for count in range(1, 4):
        (got,) = interpreter.run({"x": xs[count - 1]}, states=states).values()
        np.testing.assert_array_equal(got, 2 * xs[:count].sum(0))
    (alone,) = interpreter.run({"x": xs[2]}).values()
    np.testing.assert_array_equal(alone, 2 * xs[2])


def test_a_function_is_chosen_by_name(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3)).astype(np.float32)
    for name, factor in (("twice", 2.0), ("thrice", 3.0)):
        save(lambda x, factor=factor: mb.mul(x=x, y=factor), {"x": x}, tmp_path / f"{name}.mlpackage")
    both = ct.utils.MultiFunctionDescriptor()
    for name in ("twice", "thrice"):
        both.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    both.default_function_name = "twice"
    ct.utils.save_multifunction(both, str(tmp_path / "both.mlpackage"))
    package = Package.open(tmp_path / "both.mlpackage")
    for name, factor in ((None, 2), ("twice", 2), ("thrice", 3)):
        (got,) = Interpreter(package, name).run({"x": x}).values()
        np.testing.assert_array_equal(got, factor * x)
    with pytest.raises(EngineError, match="no function 'fourfold'; it has"):
        Interpreter(package, "fourfold")


# The weight file


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int16", "uint16", "int8", "uint8", "uint32"])
def test_the_weight_file_reads_what_coremltools_wrote(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    names = {"float32": "float", "float16": "fp16"}
    values = rng.integers(-100 if dtype[0] != "u" else 0, 100, (3, 37)).astype(dtype)
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"))
    write = getattr(writer, f"write_{names.get(dtype, dtype)}_data")
    write(np.zeros(5, dtype).view(np.uint16) if dtype == "float16" else np.zeros(5, dtype))
    offset = write(values.reshape(-1).view(np.uint16) if dtype == "float16" else values.reshape(-1))
    del writer
    got = WeightFile(tmp_path / "weight.bin").read(offset, ValueType(dtype, (3, 37)))
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("dtype", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4"])
def test_packed_elements_read_as_coremltools_reads_them(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Through a saved program, by the library's own loader, with lengths that fill no whole byte."""
    kind = types.string_to_builtin(dtype)
    bits, signed = kind.get_bitwidth(), not kind.is_unsigned()
    low = -(1 << (bits - 1)) if signed else 0
    values = rng.integers(low, low + (1 << bits), (7, 11)).astype(types.nptype_from_builtin(kind))

    def body(x: Any) -> Any:
        if signed:
            made = mb.constexpr_blockwise_shift_scale(data=values, scale=np.ones((1, 1), np.float32))
        else:
            lut = np.arange(1 << bits, dtype=np.float32).reshape(1, 1, -1, 1)
            made = mb.constexpr_lut_to_dense(indices=values, lut=lut)
        return mb.add(x=x, y=made)

    path = save(body, {"x": np.zeros((7, 11), np.float32)}, tmp_path / "packed.mlpackage")
    (got,) = Interpreter(Package.open(path)).run({"x": np.zeros((7, 11), np.float32)}).values()
    np.testing.assert_array_equal(got, values.astype(np.float32))


def test_decompressed_constants_are_kept_for_the_next_run(rng: np.random.Generator) -> None:
    data, scale = rng.integers(-128, 128, (4, 6)).astype(np.int8), rng.uniform(0.1, 1, (4, 1)).astype(np.float32)
    x = np.zeros((4, 6), np.float32)
    body = lambda x: mb.add(x=x, y=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))  # noqa: E731
    interpreter = Interpreter(build(body, {"x": x}))
    first, second = (next(iter(interpreter.run({"x": x}).values())) for _ in range(2))
    np.testing.assert_array_equal(first, data * scale)
    np.testing.assert_array_equal(second, first)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:40], "ends before the tensor"),
        (lambda data: b"\0" * 64 + data[64:], "no weight file of version 2"),
        (lambda data: data[:64] + b"\0" * 4 + data[68:], "there is no tensor at 64"),
        (
            lambda data: data[:68] + b"\x01" + data[69:],
            "the tensor at 64 is float16, 512 bytes; the program says float32",
        ),
        (lambda data: data[:-64], "ends within the tensor"),
    ],
)
def test_damaged_weight_files_are_refused(linear: Path, tmp_path: Path, damage: Any, words: str) -> None:
    shutil.copytree(linear, tmp_path / "copy")
    file = tmp_path / "copy" / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FileError, match=words):
        Interpreter(Package.open(tmp_path / "copy")).run({"x": np.ones((2, 16), np.float32)})


# What is refused


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "Manifest.json").unlink(), "Manifest.json: cannot be read"),
        (lambda folder: (folder / "Manifest.json").write_text("{}"), "is no manifest of an .mlpackage"),
        (lambda folder: (folder / MODEL).unlink(), "model.mlmodel: cannot be read"),
        (lambda folder: (folder / MODEL).write_bytes(b"\xff" * 30), "is damaged"),
        (lambda folder: (folder / MODEL).write_bytes(b""), "holds no ML Program"),
        (lambda folder: (folder / WEIGHTS).unlink(), "weight.bin: cannot be read"),
    ],
)
def test_damaged_packages_are_refused(linear: Path, tmp_path: Path, damage: Any, words: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(linear, folder)
    damage(folder)
    with pytest.raises(FileError, match=words):
        Package.open(folder)


def test_no_path_leaves_the_package(linear: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(linear, folder)
    manifest = json.loads((folder / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../elsewhere"
    (folder / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="leaves the package"):
        Package.open(folder)

    def away(block: Any) -> None:
        for operation in block.operations:
            for argument in operation.inputs.values():
                for item in argument.arguments:
                    if item.value.WhichOneof("value") == "blobFileValue":
                        item.value.blobFileValue.fileName = "@model_path/../../weights.bin"
            if operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
                operation.attributes["val"].blobFileValue.fileName = "@model_path/../../weights.bin"

    with pytest.raises(FileError, match="leaves the package"):
        Package.open(changed(linear, tmp_path / "away", away))


def last(block: Any) -> Any:
    return block.operations[-1]


def test_an_unknown_operator_is_named_with_what_it_makes(linear: Path, tmp_path: Path) -> None:
    package = changed(linear, tmp_path / "copy", lambda block: setattr(last(block), "type", "fourier_transform"))
    with pytest.raises(EngineError, match=r"operator 'fourier_transform' \(makes 'mul_0'\) is not interpreted"):
        Interpreter(Package.open(package))


def test_a_parameter_that_a_kernel_does_not_know_is_refused(linear: Path, tmp_path: Path) -> None:
    def add(block: Any) -> None:
        last(block).inputs["rounding"].CopyFrom(last(block).inputs["y"])

    interpreter = Interpreter(Package.open(changed(linear, tmp_path / "copy", add)))
    with pytest.raises(EngineError, match=r"'mul' \(makes 'mul_0'\): has parameters that are not known: rounding"):
        interpreter.run({"x": np.ones((2, 16), np.float32)})


def test_shapes_and_kinds_are_held_to_the_programs_types(linear: Path, tmp_path: Path) -> None:
    def other_shape(block: Any) -> None:
        last(block).outputs[0].type.tensorType.dimensions[1].constant.size = 9

    def other_kind(block: Any) -> None:
        last(block).outputs[0].type.tensorType.dataType = 23  # int32

    x = {"x": np.ones((2, 16), np.float32)}
    with pytest.raises(EngineError, match=r"makes the shape \(2, 8\), the program says float32 \(2, 9\)"):
        Interpreter(Package.open(changed(linear, tmp_path / "shape", other_shape))).run(x)
    with pytest.raises(EngineError, match=r"makes torch.float32, the program says int32"):
        Interpreter(Package.open(changed(linear, tmp_path / "kind", other_kind))).run(x)


def test_names_that_nothing_makes_are_refused(linear: Path, tmp_path: Path) -> None:
    def rename(block: Any) -> None:
        last(block).inputs["x"].arguments[0].name = "nothing"

    with pytest.raises(EngineError, match=r"'mul' \(makes 'mul_0'\) reads 'nothing', which nothing makes"):
        Interpreter(Package.open(changed(linear, tmp_path / "copy", rename)))
    lost = changed(linear, tmp_path / "lost", lambda block: block.outputs.__setitem__(0, "gone"))
    with pytest.raises(EngineError, match="nothing makes the output 'gone'"):
        Interpreter(Package.open(lost))


def test_programs_for_other_systems_are_refused(linear: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(linear, folder)
    spec = model_proto().FromString((folder / MODEL).read_bytes())
    spec.mlProgram.functions["main"].opset = "CoreML6"
    (folder / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(EngineError, match="written for CoreML6, only CoreML8"):
        Package.open(folder)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "inputs are x, got"),
        ({"x": np.ones((2, 15), np.float32)}, r"input 'x' is float32 \(2, 16\), got float32 \(2, 15\)"),
        ({"x": np.ones((2, 16), np.int32)}, "got int32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(linear: Path, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        Interpreter(Package.open(linear)).run(inputs)


def test_integers_that_do_not_fit_and_indices_out_of_range_are_refused(rng: np.random.Generator) -> None:
    table = rng.standard_normal((4, 3)).astype(np.float32)
    interpreter = Interpreter(build(lambda i: mb.gather(x=table, indices=i), {"i": np.zeros(2, np.int32)}))
    with pytest.raises(EngineError, match="holds numbers that are no int32"):
        interpreter.run({"i": np.array([0, 1 << 40])})
    for wrong in (4, -1):
        with pytest.raises(EngineError, match=r"'gather' \(makes 'gather_0'\): indices from"):
            interpreter.run({"i": np.array([1, wrong])})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x: mb.concat(values=[x, x], axis=0, interleave=True), "interleaving is not interpreted"),
        (lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.5), "a factor of 1.5 is not"),
        (
            lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True),
            "rounding up the output's size",
        ),
        (lambda x: mb.real_div(x=mb.cast(x=x, dtype="int32"), y=2), "dividing integers"),
        (
            lambda x: mb.resample(
                x=x,
                coordinates=np.zeros((1, 2, 2, 2), np.float32),
                sampling_mode="bilinear",
                align_corners=True,
                padding_mode="symmetric",
                padding_value=0.0,
                coordinates_mode="unnormalized",
            ),
            "padding_mode is 'symmetric'; known are constant, border, reflection",
        ),
    ],
)
def test_forms_that_are_not_interpreted_are_named(body: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        interpret(body, {"x": np.ones((1, 4, 4, 6), np.float32)})
