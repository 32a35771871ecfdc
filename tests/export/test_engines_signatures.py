"""Every call of the builder, compared with what the bindings say of themselves: recorded, and installed ones too.

The records (``tools/record_tensorrt_api.py``) are of TensorRT for RTX 1.7.1 and of the bindings of TensorRT 10.14 and
11.0, which cannot run here: what is compared is names and numbers of arguments.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
from collections.abc import Iterator
from typing import Any

import pytest
from engine_support import needs_rtx
from places import ROOT

from livemoments.export.tensorrt.options import BUILDER_FLAGS

RECORDS = sorted((ROOT / "tests" / "golden" / "tensorrt").glob("*.json"))
SOURCES = [
    ROOT / "src" / "livemoments" / "tensorrt" / "library.py",
    *(ROOT / "export" / "tensorrt" / f"{name}.py" for name in ("worker", "monitor", "options", "torch_network")),
]
KINDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "cache": "ITimingCache",
    "e": "ParserError",
}
"""What the builder's variables hold."""
RTX_ONLY = {"num_compute_capabilities", "set_compute_capability", "ComputeCapability"}


def trees() -> Iterator[ast.AST]:
    for path in SOURCES:
        yield from ast.walk(ast.parse(path.read_text("utf-8")))


def uses() -> list[tuple[str, str, int | None, bool]]:
    """Class, attribute, number of arguments (``None``: no call), and whether it is assigned."""
    calls = {id(node.func): len(node.args) for node in trees_once() if isinstance(node, ast.Call)}
    return [
        (KINDS[node.value.id], node.attr, calls.get(id(node)), isinstance(node.ctx, ast.Store))
        for node in trees_once()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in KINDS
    ]


_NODES: list[ast.AST] = []


def trees_once() -> list[ast.AST]:
    """The same nodes each time: they are told apart by identity."""
    if not _NODES:
        _NODES.extend(trees())
    return _NODES


def names_of_module() -> set[str]:
    """``X`` of every ``module.X`` and ``library.module.X``."""
    found = set()
    for node in trees_once():
        if isinstance(node, ast.Attribute):
            base = node.value
            of_module = isinstance(base, ast.Name) and base.id == "module"
            of_library = isinstance(base, ast.Attribute) and base.attr == "module"
            if of_module or of_library:
                found.add(node.attr)
    return found


def arguments(signature: str) -> tuple[int, int]:
    """Least and most arguments beside ``self``."""
    inner = signature[signature.index("(") + 1 : signature.rindex(")")]
    parameters = [part for part in re.split(r",\s*(?![^\[]*\])", inner) if part][1:]
    return sum("=" not in part for part in parameters), len(parameters)


def check(record: dict[str, Any], *, is_rtx: bool) -> None:
    classes, enumerations = record["classes"], record["enumerations"]
    found = uses()
    assert len(found) > 15
    for kind, attribute, count, is_assigned in found:
        known = classes[kind].get(attribute)
        if attribute in RTX_ONLY:
            assert (known is not None) == is_rtx, attribute
            continue
        assert known is not None, f"{record['version']}: {kind} has no {attribute}"
        if count is None:
            assert known in ("property", "read-only property"), f"{kind}.{attribute} is called nowhere: {known}"
            assert not is_assigned or known == "property", f"{kind}.{attribute} cannot be set"
        else:
            least, most = arguments(known)
            assert least <= count <= most, f"{kind}.{attribute} is called with {count}: {known}"
    names = names_of_module() - {"__version__"}
    assert {"Builder", "OnnxParser", "BuilderFlag", "IProgressMonitor", "ILogger"} <= names
    for name in names - ({"ComputeCapability"} if not is_rtx else set()):
        assert name in classes or name in enumerations, f"{record['version']} has no {name}"
    assert set(BUILDER_FLAGS.values()) <= set(enumerations["BuilderFlag"])
    assert "STRONGLY_TYPED" in enumerations["NetworkDefinitionCreationFlag"]
    assert "AMPERE_PLUS" in enumerations["HardwareCompatibilityLevel"]
    check_overridden(classes)


def check_overridden(classes: dict[str, dict[str, str]]) -> None:
    """Methods that the library calls take what it passes."""
    found = 0
    for node in trees_once():
        if not isinstance(node, ast.ClassDef):
            continue
        for base in node.bases:
            if isinstance(base, ast.Attribute) and base.attr in classes:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                        least, most = arguments(classes[base.attr][method.name])
                        assert least == most == len(method.args.args) - 1, f"{base.attr}.{method.name}"
                        found += 1
    assert found == 4  # three of the monitor, one of the logger


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_call_is_one_that_the_recorded_bindings_have(path: Any) -> None:
    check(json.loads(path.read_text()), is_rtx=path.stem.startswith("rtx"))


def test_both_libraries_and_two_major_versions_are_recorded() -> None:
    assert [path.stem for path in RECORDS] == ["rtx-1.7.1", "tensorrt-10.14.1", "tensorrt-11.0.0"]


def test_a_call_that_does_not_exist_is_found() -> None:
    record = json.loads(RECORDS[-1].read_text())
    record["classes"]["OnnxParser"]["parse"] = "parse(self: OnnxParser, model: Buffer) -> bool"
    with pytest.raises(AssertionError, match=r"OnnxParser\.parse is called with 2"):
        check(record, is_rtx=False)
    del record["classes"]["OnnxParser"]["parse"]
    with pytest.raises(AssertionError, match="OnnxParser has no parse"):
        check(record, is_rtx=False)


@needs_rtx
def test_every_call_is_one_that_the_installed_bindings_have() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "record_tensorrt_api.py"), run_name="record_tensorrt_api")
    check(tool["record"](importlib.import_module("tensorrt_rtx")), is_rtx=True)
