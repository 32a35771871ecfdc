"""``--profile`` and ``livemoments devices``: a profile's values are defaults, the command line wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import error_of, run, stand_in
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle
from livemoments.profiles.read import NAMES, load_profile
from livemoments.runtime.options import RestoreOptions
from livemoments.types import ReferencePolicy, Size


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("profile") / "bundle")


def options_of(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, *arguments: str) -> RestoreOptions:
    backend = stand_in(monkeypatch, "livemoments.runtime.restore:restore", ValueError("far enough"))
    run("restore", bundle.path, "--frame", "f.png", "--photo", "p.jpg", "-o", "x.png", *arguments)
    _, _, options = backend.positional
    assert isinstance(options, RestoreOptions)
    return options


def test_restore_takes_a_profile(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    found = options_of(monkeypatch, bundle, "--profile", "iphone-pro")
    wanted: dict[str, Any] = {
        "reference": ReferencePolicy("phase-split"),
        "residency": "phases",
        "kv_store": "disk",
        "kv_budget_bytes": 1_000_000_000,
        "flow": "dis",
        "provider": "gpu",
    }
    assert found == RestoreOptions(**wanted)
    assert options_of(monkeypatch, bundle) == RestoreOptions(), "a profile does not outlive its command"


def test_the_command_line_wins_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    given = ("--provider", "cpu", "--reference", "frozen", "--kv-store", "host")
    for arguments in ((*given, "--profile", "iphone-pro"), ("--profile", "iphone-pro", *given)):
        found = options_of(monkeypatch, bundle, *arguments)
        assert (found.provider, found.reference, found.kv_store) == ("cpu", "frozen", "host")
        assert found.residency == "phases"


def test_this_machines_profile(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    monkeypatch.setattr("livemoments.profiles.apply.default_profile", lambda: load_profile("rtx-4060-8gb"))
    assert options_of(monkeypatch, bundle, "--profile", "auto").provider == "cuda"


def test_export_takes_a_profile(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    backend = stand_in(monkeypatch, "livemoments.export.pipeline:export_bundle", bundle)
    assert run("export", "weights", "-o", "out", "--profile", "rtx-4060-8gb").exit_code == 0
    assert (backend.options["precision"], backend.options["tiles"]) == ("fp16", (Size(768, 768),))
    assert (
        run("export", "weights", "-o", "out", "--profile", "h20", "--tile", "64", "--precision", "fp32").exit_code == 0
    )
    assert (backend.options["precision"], backend.options["tiles"]) == ("fp32", (Size(64, 64),))
    assert run("export", "weights", "-o", "out", "--profile", "m2-16gb").exit_code == 0
    assert (backend.options["target"], backend.options["precision"]) == ("coreml", "fp16")


def test_quantize_takes_the_recipe(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    backend = stand_in(monkeypatch, "livemoments.quantize.pipeline:quantize", ValueError("far enough"))
    run("quantize", bundle.path, "-o", "out", "--profile", "cpu-amx")
    assert backend.positional[2].recipe == "int8"
    result = run("quantize", bundle.path, "-o", "out", "--profile", "h100", "--json")
    assert "missing option '--recipe'" in error_of(result)["message"].lower(), "h100 names no recipe"


def test_an_own_profile_with_a_mistake_ends_before_anything_else(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ntitle = "x"\nkind = "cpu"\n[tiles]\nsizes = [512]\n')
    result = run("restore", bundle.path, "--frame", "f", "--photo", "p", "-o", "x.png", "--profile", file, "--json")
    assert result.exit_code == 2
    assert "line 5, tiles.sizes[0]: expected `str`, got `int`" in error_of(result)["message"]


def test_devices_lists_every_profile() -> None:
    document = json.loads(run("devices", "--json").stdout)
    assert [profile["name"] for profile in document["profiles"]] == list(NAMES)
    assert document["default"] in NAMES
    assert document["devices"][0].keys() >= {"kind", "name", "memory_bytes", "provider", "profile"}
    text = run("devices").stdout
    assert all(name in text for name in NAMES)
    assert f"--profile auto): {document['default']}" in text


def test_devices_checks_and_shows_one(tmp_path: Path) -> None:
    text = run("devices", "h100").stdout
    assert "chip.fp16_tflops: 989.4  (https://" in text
    assert "restore.residency: all" in text
    measured = run("devices", "cpu-amx").stdout
    assert "precision.restoration: int8  (measured: benchmarks/results/quantize.json)" in measured
    assert json.loads(run("devices", "h100", "--json").stdout)["chip"]["fp16_tflops"] == 989.4
    assert run("devices", "h1000").exit_code == 2
