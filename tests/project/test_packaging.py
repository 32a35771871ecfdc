"""The package's shape: what is shipped, what may import what, what is public, and the tools that watch over it."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from places import ROOT

import livemoments
import livemoments.errors
from livemoments.cli.extras import OPTIONAL_MODULES

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
# The folders that hold packages; the root package is in src/.
PACKAGE_FOLDERS = [
    "checkpoints",
    "export",
    "profiles",
    "quantize",
    "reference",
    "runtime",
    "src/livemoments",
    "validate",
]
NOT_SOURCES = {".git", ".venv", ".venv-torch-tensorrt", "build", "dist", "node_modules"}
# Distributions of the extras, and what they are imported as.
MODULES = {
    "DISTS-pytorch": "DISTS_pytorch",
    "av": "av",
    "coreai-core": "coreai",
    "coreai-opt": "coreai_opt",
    "coreai-torch": "coreai_torch",
    "cuda-bindings": "cuda",
    "coremltools": "coremltools",
    "diffusers": "diffusers",
    "huggingface_hub": "huggingface_hub",
    "jinja2": "jinja2",
    "lief": "lief",
    "lpips": "lpips",
    "matplotlib": "matplotlib",
    "nvidia-ml-py": "pynvml",
    "nvidia-modelopt": "modelopt",
    "onnx": "onnx",
    "onnx-graphsurgeon": "onnx_graphsurgeon",
    "onnx-ir": "onnx_ir",
    "onnxscript": "onnxscript",
    "onnxslim": "onnxslim",
    "pillow-heif": "pillow_heif",
    "piq": "piq",
    "pyiqa": "pyiqa",
    "pyyaml": "yaml",
    "ray": "ray",
    "safetensors": "safetensors",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "torch": "torch",
    "torch-tensorrt": "torch_tensorrt",
    "torch-tensorrt-rtx": "torch_tensorrt",
    "transformers": "transformers",
}


def folder_of(package: str) -> Path:
    """Where setuptools finds a package: the longest prefix in package-dir decides."""
    parts = package.split(".")
    for length in range(len(parts), 0, -1):
        if folder := SETUPTOOLS["package-dir"].get(".".join(parts[:length])):
            return Path(folder, *parts[length:])
    raise AssertionError(f"{package} is in no folder of package-dir")


def shipped() -> set[str]:
    """Every file that an installed package must have, as its path in site-packages."""
    files = set()
    for package in SETUPTOOLS["packages"]:
        place = package.replace(".", "/")
        for pattern in ["*.py", *SETUPTOOLS["package-data"].get(package, [])]:
            folder = ROOT / folder_of(package)
            paths = [path for path in folder.glob(pattern) if path.is_file()]
            found = [f"{place}/{path.relative_to(folder).as_posix()}" for path in paths]
            assert found, f"nothing matches {pattern} in {package}"
            files.update(found)
    return files


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not NOT_SOURCES.intersection(path.relative_to(ROOT).parts):
                yield path


def imports(path: Path, *, inside_functions: bool) -> set[str]:
    """Top-level names of the modules that a file imports; without ``TYPE_CHECKING`` blocks."""
    found = set()
    queue: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue.extend(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        queue.extend(ast.iter_child_nodes(node))
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


# What is shipped


def test_every_folder_with_modules_is_a_listed_package() -> None:
    on_disk = {path.parent.relative_to(ROOT) for path in python_files(*PACKAGE_FOLDERS)}
    listed = [folder_of(package) for package in SETUPTOOLS["packages"]]
    assert sorted(on_disk) == sorted(listed)
    for folder in listed:
        assert (ROOT / folder / "__init__.py").is_file()


def test_package_data_exists() -> None:
    weights = "livemoments/checkpoints/small/livemoments/transformer/diffusion_pytorch_model.safetensors"
    assert {"livemoments/py.typed", "livemoments/validate/limits.toml", weights} <= shipped()


@pytest.mark.slow
def test_sdist_and_wheel_hold_every_module(tmp_path: Path) -> None:
    """Built from a copy: a build/ folder left by an earlier build would be packed as well."""
    sources = tmp_path / "sources"
    hidden = shutil.ignore_patterns(*NOT_SOURCES, "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, sources, ignore=hidden)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(sources)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {name.split(".dist-info/")[1] for name in archive.namelist() if ".dist-info/" in name}
    assert names == shipped()
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= info
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "runtime/restore.py", "src/livemoments/py.typed"} <= members


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def test_version_agrees_with_the_changelog() -> None:
    newest = re.search(r"^##\s+\[?v?(\d+\.\d+\.\d+\S*?)\]?(?=\s|$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == livemoments.__version__


# What may import what


def test_runtime_never_imports_what_an_extra_brings() -> None:
    for path in python_files("runtime"):
        inside = path.parent != ROOT / "runtime" / "video"  # which is about PyAV; nothing imports it without
        found = roots(imports(path, inside_functions=inside)) & OPTIONAL_MODULES
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_the_root_package_imports_extras_only_at_the_edges() -> None:
    for path in python_files("src"):
        at_edge = path.parent.name == "livemoments" and path.name.startswith("demo")
        about = {"chains", "coreai", "coreml", "graphs", "pytorch", "tensorrt", "weights"}
        if about & {*path.parts}:  # optional packages are what they are about
            continue
        found = roots(imports(path, inside_functions=not at_edge)) & OPTIONAL_MODULES
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_dependencies_point_one_way() -> None:
    """types, errors, store <- bundle <- runtime <- graphs <- quantize, validate; reference <- export <- quantize."""
    forbidden = {
        "src/livemoments/store": {"bundle", "runtime", "graphs", "reference", "export", "quantize", "validate", "cli"},
        "src/livemoments/chains": {
            *("coreml", "graphs", "reference", "export", "quantize", "validate", "profiles", "cli")
        },
        "src/livemoments/coreml": {"graphs", "reference", "export", "quantize", "validate", "profiles", "cli"},
        "src/livemoments/tensorrt": {
            *("coreai", "coreml", "graphs", "reference", "export", "quantize", "validate", "profiles", "cli")
        },
        "src/livemoments/coreai": {"graphs", "reference", "export", "quantize", "validate", "profiles", "cli"},
        "src/livemoments/graphs": {"coreml", "reference", "export", "quantize", "validate", "profiles", "cli"},
        "runtime": {"graphs", "reference", "export", "quantize", "validate", "profiles", "cli"},
        "reference": {"runtime", "export", "quantize", "validate", "profiles", "cli"},
        "export": {"quantize", "profiles", "cli"},
        "quantize": {"validate", "profiles", "cli"},
        "validate": {"quantize", "cli"},
        "profiles": {"cli"},
    }
    for folder, names in forbidden.items():
        banned = {f"livemoments.{name}" for name in names}
        for path in python_files(folder):
            for name in imports(path, inside_functions=True):
                assert ".".join(name.split(".")[:2]) not in banned, f"{path.relative_to(ROOT)} imports {name}"


def test_no_imports_go_in_circles() -> None:
    """Over every module of the package, imports inside functions included, those for types alone not."""
    modules = {module_name(path): path for folder in PACKAGE_FOLDERS for path in python_files(folder)}
    edges = {
        name: {target for target in runtime_imports(path, modules) if target in modules and target != name}
        for name, path in modules.items()
    }
    done: set[str] = set()
    for start in modules:
        stack, way = [(start, iter(sorted(edges[start])))], [start]
        while stack and start not in done:
            name, targets = stack[-1]
            target = next((found for found in targets if found not in done), None)
            if target is None:
                done.add(name)
                stack.pop()
                way.pop()
                continue
            assert target not in way, " -> ".join([*way[way.index(target) :], target])
            stack.append((target, iter(sorted(edges[target]))))
            way.append(target)


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT)
    parts = relative.parts[2:] if relative.parts[0] == "src" else relative.parts
    return ".".join(["livemoments", *parts]).removesuffix(".py").removesuffix(".__init__")


def runtime_imports(path: Path, modules: Collection[str]) -> Iterator[str]:
    """Modules that a file imports when it runs: ``from package import module`` counts as the module."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names)


def test_no_torchvision_anywhere() -> None:
    for path in python_files("."):
        assert "torchvision" not in roots(imports(path, inside_functions=True)), path
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    for line in [*project["dependencies"], *extras, *pinned]:
        assert Requirement(line).name != "torchvision"


def test_optional_modules_are_those_of_the_extras() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = {Requirement(line).name for extra in set(extras) - {"dev"} for line in extras[extra]}
    assert {MODULES[name] for name in names - {"livemoments-deploy"}} == OPTIONAL_MODULES


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("tests/x.py", "import runtime", "TID251"),
        ("export/x.py", "from reference.mmdit import f", "TID251"),
        ("reference/x.py", "import torchvision", "TID251"),
        ("runtime/x.py", "import torch", "TID253"),
        ("src/livemoments/x.py", "from diffusers import f", "TID253"),
        ("runtime/x.py", "import livemoments.runtime", None),
        ("reference/x.py", "import torch", None),
    ],
)
def test_the_linter_holds_the_architecture(file: str, line: str, rule: str | None) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "--stdin-filename", file, "-"]
    found = subprocess.run(command, input=line + "\n", capture_output=True, text=True, cwd=ROOT, check=False)
    rules = {message["code"] for message in json.loads(found.stdout)}
    assert rules & {"TID251", "TID253"} == ({rule} if rule else set())


# What is public


def test_the_public_surface_is_pinned() -> None:
    names = ["export_bundle", "open_bundle", "quantize_bundle", "restore", "validate_bundle"]
    assert livemoments.__all__ == ["__version__", *names]
    for name in livemoments.__all__:
        getattr(livemoments, name)
        assert name == "__version__" or callable(getattr(livemoments, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        livemoments.nothing  # noqa: B018


MOST_PARAMETERS = 12


def test_no_public_function_has_more_parameters_than_a_reader_can_hold() -> None:
    count_of = {}
    for file in (path for folder in PACKAGE_FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                given, name = function.args, f"{file.stem}.{function.name}"
                count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
                count_of[name] = max(count, count_of.get(name, 0))
    assert len(count_of) > 500
    long = {name for name, count in count_of.items() if count > MOST_PARAMETERS}
    assert not long, "give them an options type, as RestoreOptions"


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    classes = [
        value
        for value in vars(livemoments.errors).values()
        if inspect.isclass(value) and value.__module__ == "livemoments.errors"
    ]
    for value in classes:
        assert issubclass(value, livemoments.errors.LiveMomentsError)
        assert re.search(rf"\b{value.__name__}\b", livemoments.errors.__doc__ or "")
    assert len(classes) == 13


# The tools


def test_typecheck_lays_the_tree_out_as_it_is_imported(tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "typecheck.py"))
    stale = tmp_path / "livemoments" / "runtime" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    sources: dict[str, str] = tool["lay_out"](ROOT, tmp_path)
    laid_out = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert laid_out == set(sources)
    assert {name for name in shipped() if name.endswith((".py", ".typed"))} == laid_out
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    with_sources = tool["with_sources"]
    line = "livemoments/runtime/tiles/plan.py:3: error: no  [misc]"
    assert with_sources(line, sources) == "runtime/tiles/plan.py:3: error: no  [misc]"
    assert (
        with_sources("livemoments/cli/output.py:1:2: note: x", sources) == "src/livemoments/cli/output.py:1:2: note: x"
    )
    assert with_sources("Found 1 error", sources) == "Found 1 error"


def readme_commands() -> dict[str, Any]:
    sys.modules.pop("readme_commands", None)
    return runpy.run_path(str(ROOT / "tools" / "readme_commands.py"), run_name="readme_commands")


def test_readme_commands_run_in_one_folder_until_one_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nexit 9\n```\n<!-- tested -->\n```sh\n$ echo one > made\nlivemoments --version\n```\n"
        "<!-- tested: repository -->\n```bash\ntest -f pyproject.toml\n```\n"
        "- a list\n  <!-- tested -->\n  ```sh\n  if true; then\n    cat made\n  fi\n  ```\n"
    )
    main = readme_commands()["main"]
    assert main([str(page)]) == 0
    output = capfd.readouterr().out
    assert f"livemoments {livemoments.__version__}" in output
    assert output.count("exit 0") == 3
    page.write_text(
        page.read_text() + "<!-- tested -->\n```sh\nfalse | true\n```\n<!-- tested -->\n```sh\necho on\n```\n"
    )
    assert main([str(page)]) == 1
    assert "\non\n" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```sh\ntrue\n```\n", "no block is marked"),
        ("<!-- tested -->\n\n```sh\ntrue\n```\n", "line 1: the mark is not followed"),
        ("<!-- tested -->\n```python\nprint()\n```\n", "line 1: the mark is not followed"),
        ("<!-- tested: moon -->\n```sh\ntrue\n```\n", "'tested: moon' is not known"),
        ("<!-- tested -->\n```sh\ntrue\n", "line 2: the block is not closed"),
    ],
)
def test_readme_commands_cannot_pass_by_testing_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert readme_commands()["main"]([str(page)]) == 1
    assert words in capsys.readouterr().err


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile.replace("\\\n", ""), re.MULTILINE)
    # The tests may themselves run under make, which would add lines of its own
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    assert {line.split()[1] for line in shown.splitlines()} == set(phony.split())
