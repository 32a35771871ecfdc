"""What the documents for newcomers name is there."""

from __future__ import annotations

import re

import pytest
import yaml
from places import ROOT

BASES = (ROOT, ROOT / "src" / "livemoments", ROOT / "validate", ROOT / "quantize", ROOT / "docs")
_PLACE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
_TARGET = re.compile(r"`make ([a-z-]+)|^make ([a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md", "docs/writing_passes.md"])
def test_places_and_targets_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    places = set(_PLACE.findall(text)) - {"build/editor/"}
    assert places
    assert sorted(p for p in places if not any((base / p).exists() for base in BASES)) == []
    targets = {target for pair in _TARGET.findall(text) for target in pair if target}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_links_between_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_room_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rooms = ["runtime", "reference", "export", "quantize", "validate", "checkpoints"]
    rooms += ["src/livemoments/store", "src/livemoments/graphs", "src/livemoments/weights"]
    rooms += ["src/livemoments/coreml", "src/livemoments/coreai"]
    assert [room for room in rooms if f"`{room}/`" not in text] == []


def test_the_example_of_hosted_ci_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "examples" / "ci.yml").read_text("utf-8"))
    commands = [step.get("run") for step in workflow["jobs"]["ci"]["steps"]]
    assert "bash .ci/run" in commands
    assert (ROOT / ".ci" / "run").is_file()
