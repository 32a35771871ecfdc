"""Type-check the package with mypy.

Type checkers do not see setuptools' package-dir mapping, so the tree is laid out under build/typecheck/ as it is
imported (copies, not symlinks: checkers skip what is behind a symlink) and checked there; messages name the sources.

    python tools/typecheck.py [MYPY OPTIONS]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "typecheck"
_SUFFIXES = {".py", ".pyi", ".typed"}
_CACHE = ".mypy_cache"


def package_folders(pyproject: Path) -> dict[str, Path]:
    """The packages that pyproject.toml lists and the folder of each, relative to the repository.

    The longest entry of ``package-dir`` that is a prefix decides, as in setuptools.
    """
    settings = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["setuptools"]
    mapping: dict[str, str] = settings["package-dir"]
    folders = {}
    for package in settings["packages"]:
        parts = package.split(".")
        for length in range(len(parts), 0, -1):
            prefix = ".".join(parts[:length])
            if prefix in mapping:
                folders[package] = Path(mapping[prefix], *parts[length:])
                break
        else:
            raise SystemExit(f"pyproject.toml: package '{package}' has no folder in package-dir")
    return folders


def lay_out(root: Path, tree: Path) -> dict[str, str]:
    """Copy every module to where its import name says, below ``tree``.

    Files that did not change keep their time, so that mypy's cache serves; what has no source any more is removed.

    Returns:
        For each copied file its source, both relative and with forward slashes.
    """
    sources = dict(_files(root))
    for copy in tree.rglob("*"):
        name = copy.relative_to(tree).as_posix()
        if copy.is_file() and _CACHE not in copy.parts and name not in sources:
            copy.unlink()
    for name, source in sources.items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != (root / source).read_bytes():
            shutil.copy2(root / source, target)
    return sources


def _files(root: Path) -> Iterator[tuple[str, str]]:
    for package, folder in package_folders(root / "pyproject.toml").items():
        place = Path(*package.split("."))
        for file in sorted((root / folder).iterdir()):
            if file.is_file() and file.suffix in _SUFFIXES:
                yield (place / file.name).as_posix(), (folder / file.name).as_posix()


def with_sources(line: str, sources: dict[str, str]) -> str:
    """A line of mypy's output with the source's path in place of the copy's."""
    match = re.match(r"([^:\s]+\.pyi?)(?=:)", line)
    if not match:
        return line
    name = match[1].replace("\\", "/")
    return sources.get(name, name) + line[match.end() :]


def main(options: list[str]) -> int:
    """Lay out, run mypy, print; mypy's exit code."""
    sources = lay_out(ROOT, TREE)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", _CACHE, "--package", "livemoments", *options]
    run = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False)
    for line in run.stdout.splitlines():
        print(with_sources(line, sources))
    sys.stderr.write(run.stderr)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
