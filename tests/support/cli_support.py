"""What the tests of the command line share: running it in-process, and stand-ins for its back-ends."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import pytest
from click.testing import CliRunner, Result

from livemoments.cli import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


class Backend:
    """Stands for a back-end's function: records how it was called, and answers or raises."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.positional: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *positional: Any, **options: Any) -> Any:
        self.positional, self.options = positional, options
        print("a library's chatter")
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Report:
    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "psnr_db": 61.5}

    def to_text(self) -> str:
        return f"photo 61.5 dB {'ok' if self.passed else 'FAILED'}"


def stand_in(monkeypatch: pytest.MonkeyPatch, target: str, answer: Any) -> Backend:
    """Put a recording function in place of ``module:function``."""
    name, function = target.split(":")
    backend = Backend(answer)
    module = types.ModuleType(name)
    setattr(module, function, backend)
    monkeypatch.setitem(sys.modules, name, module)
    return backend


def error_of(result: Result) -> dict[str, Any]:
    """The error that ``--json`` printed: the only document on stdout."""
    document = json.loads(result.stdout)
    assert list(document) == ["error"]
    return document["error"]
