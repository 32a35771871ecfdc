"""The Swift package: its recorded tensors are the runtime's, and its own tests pass where a toolchain is."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

PACKAGE = ROOT / "swift"


def is_swift(program: str | None) -> bool:
    """Whether it is the language's: OpenStack has a command of that name, too."""
    if program is None:
        return False
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=120, check=False)
    return "Swift version" in said.stdout


def assert_alike(got: Any, want: Any, where: str) -> None:
    """Equal, numbers as nearly as float32 is; pictures to one level."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for name in want:
            assert_alike(got[name], want[name], f"{where}.{name}")
    elif isinstance(want, list) and want and isinstance(want[0], float):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=where)
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for index, (own, other) in enumerate(zip(got, want, strict=True)):
            assert_alike(own, other, f"{where}[{index}]")
    elif where.endswith(".result"):
        levels = [np.frombuffer(base64.b64decode(text), np.uint8).astype(int) for text in (got, want)]
        assert np.abs(levels[0] - levels[1]).max() <= 1, where
    elif not where.endswith(".manifest"):  # which has hashes, of files that onnx writes
        assert got == want, where


def test_the_recorded_tensors_are_the_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the runtime's arithmetic must reach the Swift package: record anew, and see its tests fail."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import swift_fixtures

    file = swift_fixtures.OUTPUT
    assert file.stat().st_size < 200_000
    recorded = json.loads(file.read_text())
    assert_alike(swift_fixtures.record(), recorded, "")
    manifest = json.loads(recorded["manifest"])
    assert (manifest["schema_version"], manifest["kv_layout"]) == (1, "per-block")
    sys.modules.pop("swift_fixtures")


@pytest.mark.slow
@pytest.mark.process
def test_the_package_passes_its_own_tests(tmp_path: Path) -> None:
    program = shutil.which("swift")
    if not is_swift(program):
        pytest.skip("no Swift toolchain is installed")
    copy = shutil.copytree(PACKAGE, tmp_path / "swift", ignore=shutil.ignore_patterns(".build"))
    ended = subprocess.run([str(program), "test"], cwd=copy, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
