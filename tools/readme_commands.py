"""Run the commands of a Markdown file that are marked for it, so that the documentation stays true.

A block is marked by a comment on the line before its fence::

    <!-- tested -->
    ```sh
    livemoments make-checkpoint checkpoint
    ```

The marked blocks of a file run in order in one empty folder that is removed at the end, each by bash with -eu and
pipefail, with the environment of this Python first on PATH. ``<!-- tested: repository -->`` runs a block in the
repository's root instead. The first command that fails ends the run with exit code 1, and so does a file
without a marked block.

    python tools/readme_commands.py README.md [FILE …]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MARK = re.compile(r"\s*<!--\s*tested(?::\s*(?P<where>[a-z]+))?\s*-->\s*")
_FENCE = re.compile(r"(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<language>\w*)\s*")
_SHELLS = ("sh", "bash", "shell", "console")
# A command that waits for ever must not stop a whole test run.
_TIMEOUT_S = 900


@dataclass(frozen=True)
class Block:
    """A marked block: its commands, the line where it starts, and whether it runs in the repository's root."""

    line: int
    commands: str
    in_repository: bool


def marked_blocks(text: str) -> list[Block]:
    """The marked shell blocks of a Markdown text, in order.

    Raises:
        ValueError: a mark that is not followed by a shell block, or a word that means nothing here.
    """
    blocks = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        mark = _MARK.fullmatch(lines[at])
        at += 1
        if not mark:
            continue
        if mark["where"] not in (None, "repository"):
            raise ValueError(f"line {at}: 'tested: {mark['where']}' is not known; use 'tested' or 'tested: repository'")
        fence = _FENCE.fullmatch(lines[at]) if at < len(lines) else None
        if not fence or fence["language"] not in _SHELLS:
            raise ValueError(f"line {at}: the mark is not followed by a block of sh or bash")
        start = at + 1
        end = start
        while end < len(lines) and lines[end].strip() != fence["fence"]:
            end += 1
        if end == len(lines):
            raise ValueError(f"line {at + 1}: the block is not closed")
        indent = len(fence["indent"])
        body = [line[indent:] if not line[:indent].strip() else line for line in lines[start:end]]
        commands = "\n".join(line.removeprefix("$ ") for line in body)
        blocks.append(Block(start + 1, commands, mark["where"] == "repository"))
        at = end + 1
    return blocks


def run_file(path: Path) -> bool:
    """Run a file's marked blocks; whether all succeeded."""
    try:
        blocks = marked_blocks(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return False
    if not blocks:
        print(f"{path}: no block is marked with <!-- tested -->", file=sys.stderr)
        return False
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])}
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        for block in blocks:
            print(f"-- {path}:{block.line}\n{block.commands}", flush=True)
            started = time.perf_counter()
            code = _run(block.commands, ROOT if block.in_repository else Path(folder), environment)
            print(f"-- exit {code} after {time.perf_counter() - started:.1f} s", flush=True)
            if code:
                return False
    return True


def _run(commands: str, folder: Path, environment: dict[str, str]) -> int:
    bash = ["bash", "-eu", "-o", "pipefail", "-c", commands]
    try:
        return subprocess.run(
            bash, cwd=folder, env=environment, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"not done after {_TIMEOUT_S} s", file=sys.stderr)
        return 1


def main(arguments: list[str]) -> int:
    """0 if every marked block of every file succeeded, else 1."""
    parser = argparse.ArgumentParser(description="Run the commands of Markdown files that are marked <!-- tested -->.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    return 0 if all(run_file(path) for path in options.files) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
