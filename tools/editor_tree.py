"""Lay the packages out under build/editor/ as they are imported, by links, for editors that do not see the mapping.

python tools/editor_tree.py
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "editor"


def main() -> None:
    """Make the links anew."""
    mapping: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "package-dir"
    ]
    shutil.rmtree(TREE, ignore_errors=True)
    top = TREE / "livemoments"
    top.mkdir(parents=True)
    for path in (ROOT / mapping["livemoments"]).iterdir():
        if path.name != "__pycache__":
            (top / path.name).symlink_to(path)
    for package, folder in mapping.items():
        if package != "livemoments":
            (top / package.removeprefix("livemoments.")).symlink_to(ROOT / folder)
    print(f"{TREE.relative_to(ROOT)}: name it to your editor, e.g. python.analysis.extraPaths")


if __name__ == "__main__":
    main()
