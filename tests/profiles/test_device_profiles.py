"""Device profiles: the shipped ones hold what they claim, and a user's own is checked by line and key."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest
from places import ROOT

from livemoments.errors import FileError, UsageError
from livemoments.export.options import TARGETS
from livemoments.profiles.apply import option_defaults
from livemoments.profiles.lines import line_of
from livemoments.profiles.machine import find_devices, match_profile
from livemoments.profiles.read import NAMES, load_profile, value_at
from livemoments.profiles.schema import Chip, Engine
from livemoments.types import Stage

MINE = """\
name = "mine"
title = "My device"
kind = "cuda"

[memory]
capacity_gb = 8.0

[precision]
reference = "int8-weights"
restoration = "int8-weights"

[tiles]
sizes = ["512x512"]

[restore]
reference = "every-2"

[chip]
fp32_tflops = 10.0

[[chip.sources]]
of = ["fp32_tflops"]
url = "https://example.org/a"
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text)
    return file


# What ships


def test_the_names_are_the_files() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in (ROOT / "profiles").glob("*.toml"))
    assert get_args(get_type_hints(Engine)["target"]) == TARGETS


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_is_whole(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.devices if profile.kind != "cpu" else profile.instructions
    assert profile.measured or "measured" in profile.note, "a profile says so where nothing was measured"
    for entry in profile.measured:
        record = json.loads((ROOT / entry.record).read_text())
        assert record["date"]
        assert record["machine"]
    assert {stage for stage in Stage if value_at(profile, f"precision.{stage}") is not None} == set(Stage)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_number_has_a_source(name: str) -> None:
    chip = load_profile(name).chip
    given = {key for key in Chip.__struct_fields__ if isinstance(getattr(chip, key), float)}
    assert given <= {key for source in chip.sources for key in source.of}


def test_the_records_say_what_the_profiles_say() -> None:
    policies = json.loads((ROOT / "benchmarks/results/policies-fp32.json").read_text())
    rate, avx2 = load_profile("cpu-avx2").measured
    assert str(policies["variants"]["per-step"]["times_as_fast_as_upstream"]) in avx2.says
    assert f"{policies['variants']['per-step']['tile_s']['min']:.3f} s" in rate.says
    quantize = json.loads((ROOT / "benchmarks/results/quantize.json").read_text())
    ratio = quantize["recipes"]["int8"]["times_as_fast_as_fp32_engine"]["median"]
    rate, recipe = load_profile("cpu-amx").measured
    assert f"{ratio:.2f} times" in recipe.says
    assert f"{quantize['baselines']['fp32']['step_ms']['min']:.0f} ms with fp32" in rate.says
    assert f"int8 {quantize['recipes']['int8']['step_ms']['min']} ms" in rate.says


# A user's own


def test_an_own_profile_is_read(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINE))
    assert (profile.recipe, profile.base_precision, profile.budget_bytes) == ("int8-weights", "fp32", 7_200_000_000)
    assert msgspec.convert(tomllib.loads(MINE), type(profile)) == profile


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("kind =", "sort =", 3, "sort: there is no such key"),
        ('kind = "cuda"', 'kind = "tpu"', 3, "kind: invalid enum value 'tpu'"),
        ('kind = "cuda"\n', "", 1, "kind: it is missing"),
        ("capacity_gb = 8.0", "capacity_gb = -8.0", 6, "memory.capacity_gb: expected `float` > 0"),
        ("capacity_gb = 8.0", "capacity_gb = 8.0\nbudget_gb = 9.0", 7, "memory.budget_gb: more than the 8.0 GB"),
        ("capacity_gb = 8.0", "capacity = 8.0", 6, "memory.capacity: there is no such key"),
        ("capacity_gb = 8.0", "capacity_gb = 8.0\nunified = 1", 7, "memory.unified: expected `bool`, got `int`"),
        ('reference = "int8-weights"', 'reference = "int7"', 9, "precision.reference: there is no recipe 'int7'"),
        ('reference = "int8-weights"', 'reference = "int8"', 9, "a recipe is for both transformers"),
        ("[precision]", '[precision]\nmotion = "fp16"', 9, "precision.motion: a bundle has one precision"),
        ("[precision]", '[precision]\nflow = "fp16"', 9, "precision.flow: invalid enum value 'fp16'"),
        ('["512x512"]', '["512x512", "9x"]', 13, "tiles.sizes[1]: '9x' is not a size"),
        ('["512x512"]', "[]", 13, "tiles.sizes: expected `array` of length >= 1"),
        ('"every-2"', '"sometimes"', 16, "restore.reference: 'sometimes' is not a reference policy"),
        ('"every-2"', '"every-2"\nsteps = 0', 17, "restore.steps: expected `int` >= 1"),
        ("fp32_tflops = 10.0", "fp32_tflops = 10.0\nfp16_tflops = 20.0", 20, "chip.fp16_tflops: no source gives it"),
        ('of = ["fp32_tflops"]', 'of = ["fp33"]', 22, "chip.sources[0].of: the chip has no number 'fp33'"),
        ('"https://example.org/a"', '"somewhere"', 23, "chip.sources[0].url: expected `str` matching regex"),
        ('["512x512"]', '["512x512"', 15, "not TOML"),
    ],
)
def test_errors_name_the_line_and_the_key(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert MINE.count(old) == 1
    file = write(tmp_path, MINE.replace(old, new))
    with pytest.raises(FileError) as caught:
        load_profile(file)
    assert caught.value.message.startswith(f"{file}: line {line}"), caught.value.message
    assert words.lower() in caught.value.message.lower()
    assert caught.value.fix


def test_measured_keys_must_exist(tmp_path: Path) -> None:
    entry = '\n[[measured]]\nof = ["restore.sleep"]\nrecord = "benchmarks/results/policies-fp32.json"\nsays = "x"\n'
    with pytest.raises(FileError, match=r"line 26, measured\[0\].of: the profile has no value 'restore.sleep'"):
        load_profile(write(tmp_path, MINE + entry))


def test_what_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no profile 'h1000'"):
        load_profile("h1000")
    with pytest.raises(FileError, match="cannot be read"):
        load_profile(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b'name = "a"\ntitle = "\xff"\n')
    with pytest.raises(FileError, match="line 2: not UTF-8"):
        load_profile(tmp_path / "bytes.toml")


def test_lines_of_second_tables_and_quoted_keys() -> None:
    text = '[[a.b]]\nc = 1\n[[a.b]]\n"c" = 2  # [x]\n[a]\nd.e = 3\n'
    assert [line_of(text, path) for path in ("$.a.b[0].c", "$.a.b[1].c", "$.a.b[1].z", "$.a.d.e", "$.q")] == [
        2,
        4,
        3,
        6,
        1,
    ]


# Which profile a device takes


@pytest.mark.parametrize(
    ("kind", "name", "memory_gb", "expected"),
    [
        ("cuda", "NVIDIA H100 80GB HBM3", 85.5, "h100"),
        ("cuda", "NVIDIA GeForce RTX 4060", 8.59, "rtx-4060-8gb"),
        ("cuda", "NVIDIA GeForce RTX 3060", 12.88, "rtx-3060-12gb"),
        ("cuda", "NVIDIA GeForce RTX 3060 Ti", 8.59, None),
        ("cuda", "NVIDIA A100-SXM4-40GB", 42.9, None),
        ("cuda", "NVIDIA L4", 24.0, None),
        ("coreml", "Apple M2", 17.2, "m2-16gb"),
        ("coreml", "Apple M2", 8.6, None),
        ("coreml", "Apple M4 Max", 51.5, "m4-max"),
    ],
)
def test_devices_find_their_profile(kind: str, name: str, memory_gb: float, expected: str | None) -> None:
    assert match_profile(kind, name, int(memory_gb * 1e9)) == expected


def test_a_processor_takes_the_profile_with_most_of_its_instructions() -> None:
    amx = ("AVX2", "AVX512", "AVX512-VNNI", "AMX-INT8")
    assert match_profile("cpu", "any", None, amx) == "cpu-amx"
    assert match_profile("cpu", "any", None, amx[:-1]) == "cpu-avx2"
    assert match_profile("cpu", "any", None, ("NEON",)) is None


def test_this_machine_has_a_processor() -> None:
    devices = find_devices()
    (cpu,) = [device for device in devices if device.kind == "cpu"]
    assert cpu.usable
    assert cpu.memory_bytes is not None
    assert cpu.memory_bytes > 1 << 28


@pytest.mark.parametrize("name", NAMES)
def test_profiles_give_options_that_the_commands_have(name: str) -> None:
    from livemoments.cli import cli

    for command in ("export", "quantize", "restore", "validate"):
        known = {parameter.name for parameter in cli.commands[command].params}
        assert option_defaults(load_profile(name), command).keys() <= known


@pytest.mark.parametrize("name", [name for name in NAMES if load_profile(name).kind == "coreml"])
def test_apples_profiles_choose_compute_units_of_their_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from livemoments.coreml import backend

    monkeypatch.setattr(backend.platform, "system", lambda: "Darwin")
    target, provider = (option_defaults(load_profile(name), command) for command in ("export", "restore"))
    assert target["target"] == backend.TARGET
    assert backend.UNITS[backend.CoreMlBackend(provider["provider"]).provider] == "CPU_AND_GPU"
