"""``docs/examples/gate.yml``: as much of it as can be checked without a hosted runner."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from report_samples import sample_report

from livemoments.validate.report.junit import junit_xml

pytestmark = pytest.mark.process

FILE = ROOT / "docs" / "examples" / "gate.yml"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key 'on' as true.
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}
    found: list[dict[str, Any]] = workflow["jobs"]["gate"]["steps"]
    return found


def step(steps: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(step for step in steps if step.get("name") == name)


def test_every_step_runs_or_uses_something(steps: list[dict[str, Any]]) -> None:
    for one in steps:
        assert ("run" in one) != ("uses" in one), one
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", one.get("uses", "actions/x@v1"))
    order = [one["name"] for one in steps if "name" in one]
    assert order.index("Export") < order.index("Baseline") < order.index("Gate") < order.index("Report")


def test_the_report_is_kept_whatever_the_gate_says(steps: list[dict[str, Any]]) -> None:
    for name in ("Summary", "Annotations", "Report"):
        assert step(steps, name)["if"] == "always()"
    # What the baseline's step asks for is what the last one keeps.
    kept = step(steps, "Report")["with"]["name"]
    assert f"--name {kept} " in step(steps, "Baseline")["run"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_shell_scripts_are_shell_scripts(steps: list[dict[str, Any]]) -> None:
    scripts = [one["run"] for one in steps if "run" in one and one.get("shell") != "python"]
    assert len(scripts) >= 6
    for script in scripts:
        subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("there", [False, True])
def test_the_baseline_is_used_where_there_is_one(steps: list[dict[str, Any]], tmp_path: Path, there: bool) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "livemoments"
    command.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    command.chmod(0o755)
    if there:
        (tmp_path / "baseline").mkdir()
        (tmp_path / "baseline" / "report.json").write_text("{}")
    script = step(steps, "Gate")["run"]
    path = f"{command.parent}:/usr/bin:/bin"
    # As GitHub runs a step: it ends with the first command that fails.
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 1
    wanted = "validate bundle --checkpoint checkpoint --dataset photos -o report --gate"
    assert done.stdout.strip() == wanted + (" --baseline baseline/report.json" if there else "")


def test_its_commands_and_options_exist(steps: list[dict[str, Any]]) -> None:
    group = importlib.import_module("livemoments.cli").cli
    used = set()
    for one in steps:
        for line in re.findall(r"livemoments .*|options\+=.*", one.get("run", "")):
            name = line.split()[1] if line.startswith("livemoments") else "validate"
            known = {option for parameter in group.commands[name].params for option in parameter.opts}
            options = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)
            assert set(options) <= known, (name, set(options) - known)
            used |= set(options)
    assert {"--gate", "--baseline", "--dataset"} <= used


def test_the_data_set_is_written(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    subprocess.run([sys.executable, "-c", step(steps, "Data set")["run"]], cwd=tmp_path, check=True)
    assert {path.name for path in (tmp_path / "photos").iterdir()} == {"lr", "ref", "ref_lr", "gt"}


def test_failures_become_annotations(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    def run() -> list[str]:
        script = step(steps, "Annotations")["run"]
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert run() == []  # the gate's step failed before it wrote a report
    (tmp_path / "report").mkdir()
    report = sample_report(3, faulty=True, failed=(1,))
    (tmp_path / "report" / "junit.xml").write_bytes(junit_xml(report))
    lines = run()
    assert all(line.startswith("::error title=") for line in lines)
    assert len([line for line in lines if "title=images%3A " in line]) == 1
    assert lines[0].startswith("::error title=gate%3A verdict::")
    assert "%0A" in lines[0]
    (tmp_path / "report" / "junit.xml").write_bytes(junit_xml(sample_report(3)))
    assert run() == []
