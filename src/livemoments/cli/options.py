"""Options and value types that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from livemoments.cli.output import shortened
from livemoments.cli.progress import reporter
from livemoments.errors import UsageError
from livemoments.progress import Progress
from livemoments.types import ReferencePolicy, Size, Stage

Function = TypeVar("Function", bound=Callable[..., Any])

_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


class BadValue(click.BadParameter):
    """A value that an option refuses, with the fix."""

    def __init__(self, message: str, *, fix: str, param: click.Parameter | None, ctx: click.Context | None) -> None:
        super().__init__(message, ctx=ctx, param=param)
        self.fix = fix


class SizeType(click.ParamType):
    """``WIDTHxHEIGHT`` in pixels, or one number for a square."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """Parse the text of a size."""
        if isinstance(value, Size):
            return value
        try:
            return Size.parse(value)
        except UsageError as error:
            raise BadValue(error.message, fix=error.fix or "", param=param, ctx=ctx) from None


class PolicyType(click.ParamType):
    """The name of a reference policy."""

    name = "POLICY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ReferencePolicy:
        """Parse the name of a policy."""
        if isinstance(value, ReferencePolicy):
            return value
        try:
            return ReferencePolicy.parse(value)
        except UsageError as error:
            raise BadValue(error.message, fix=error.fix or "", param=param, ctx=ctx) from None


class CountsType(click.ParamType):
    """Whole numbers from 1 on with commas between them; each once, in ascending order."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the counts: each once, ascending."""
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"\s*[1-9]\d{0,3}\s*(,\s*[1-9]\d{0,3}\s*)*", value):
            fix = "write whole numbers with commas between them, e.g. 1,2,4,6"
            raise BadValue(f"'{value}' is not a list of counts", fix=fix, param=param, ctx=ctx)
        return tuple(sorted({int(part) for part in value.split(",")}))


class StagesType(click.ParamType):
    """Names of stages with commas between them, in any order."""

    name = "STAGE,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Stage, ...]:
        """Parse the stages' names: in the order of the work."""
        if isinstance(value, tuple):
            return value
        known = {stage.value: stage for stage in Stage}
        names = [part.strip() for part in value.split(",")]
        for name in names:
            if name not in known:
                fix = f"use {', '.join(known)}"
                raise BadValue(f"'{name}' is not a stage", fix=fix, param=param, ctx=ctx)
        return tuple(stage for stage in Stage if stage.value in names)


class BytesType(click.ParamType):
    """A number of bytes, with K, M, G (powers of 1000) or KiB, MiB, GiB (powers of 1024)."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a number with its unit."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]I?|)B?\s*", value.upper())
        count = int(float(match[1]) * _BYTES[match[2]]) if match else 0
        if count <= 0:
            fix = "write e.g. 4GiB, 500M or 4294967296"
            raise BadValue(f"'{value}' is not a positive number of bytes", fix=fix, param=param, ctx=ctx)
        return count


class PathType(click.ParamType):
    """A path that the system can look up; whether anything is there is for the command to say.

    Args:
        is_file: a file is meant, so that a slash at the end, which Python's paths drop, is a mistake.
        file_suffix: a file is meant if the name ends so.
    """

    name = "path"

    def __init__(self, *, is_file: bool = False, file_suffix: str | None = None) -> None:
        self._is_file = is_file
        self._file_suffix = file_suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check that the system could look the path up."""
        if isinstance(value, Path):
            return value
        try:
            if not value.strip():
                raise ValueError("an empty name")
            if value.endswith(("/", os.sep)) and self._means_file(value):
                raise ValueError("it ends like a folder's name, and a file is meant")
            os.lstat(value)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            fix = "check the path and its permissions"
            raise BadValue(f"'{shortened(value)}' cannot be used ({reason})", fix=fix, param=param, ctx=ctx) from None
        return Path(value)

    def _means_file(self, value: str) -> bool:
        return self._is_file or os.path.isfile(Path(value)) or Path(value).suffix == self._file_suffix  # noqa: PTH113


SIZE = SizeType()
POLICY = PolicyType()
COUNTS = CountsType()
STAGES = StagesType()
BYTES = BytesType()
PATH = PathType()
FILE = PathType(is_file=True)
FOLDER_OR_JSON = PathType(file_suffix=".json")


def result_options(function: Function) -> Function:
    """``--json`` (passed as ``as_json``) and ``--quiet`` (passed on as ``progress``, the reporter to use)."""

    def to_progress(_context: click.Context, _parameter: click.Parameter, quiet: bool) -> Progress:
        return reporter(quiet=quiet)

    quiet = click.option(
        "--quiet", "-q", "progress", is_flag=True, callback=to_progress, help="Show no progress on stderr."
    )
    return json_option(quiet(function))


def json_option(function: Function) -> Function:
    """``--json`` (passed as ``as_json``)."""
    text = "Print one JSON document on stdout instead of text; errors too."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def overwrite_option(function: Function) -> Function:
    """``--overwrite``."""
    text = "Replace what is there; without it, an existing output is an error."
    return click.option("--overwrite", is_flag=True, help=text)(function)


def provider_option(function: Function) -> Function:
    """``--provider``: where onnxruntime runs the graphs."""
    return click.option(
        "--provider",
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="onnxruntime's execution provider: cpu, cuda, tensorrt, rtx (a plugin), coreml, … One that is not there "
        "is an error, never a silent fall back to the CPU, and nodes left to the CPU are named. Only cpu was "
        "measured so far. native-tensorrt, native-rtx: the bundle's engines, without onnxruntime. Of bundles of Core "
        "ML packages: interpreter, and on a Mac gpu, ane, all, cpu-only. Of PyTorch networks: a device "
        "and words, as in cuda+fp8-linears+compile.",
    )(function)


def threads_option(function: Function) -> Function:
    """``--threads``: how many threads onnxruntime uses within an operator."""
    text = "CPU threads.  [default: OMP_NUM_THREADS, else one per core]"
    return click.option("--threads", type=click.IntRange(min=1), metavar="N", help=text)(function)
