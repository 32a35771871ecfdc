"""Make a folder with all that a GPU machine without a network needs: sources, wheels, a thinned onnxruntime.

    python tools/gpu/prepare_kit.py --output kit

On a machine with a network. The folder stays under 64 MiB; ``payload/manifest.json`` in it names every file with its
SHA-256 and the wheel it came from. Copied to the GPU machine, the whole plan is then one command there, with PyTorch
alone installed:

    python kit/tools/gpu/run_kit.py --output results --commit COMMIT
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from thin_fatbin import is_launched, thin

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 64 << 20
FOLDERS = ("src", "runtime", "reference", "export", "validate", "profiles", "quantize", "tools/gpu")
TOOLS = ("diffusers==0.42.1", "importlib-metadata", "zipp", "msgspec", "simplejpeg")
"""What the project imports and a machine for PyTorch often lacks."""
ONNXRUNTIME = "onnxruntime-gpu==1.31.1"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
_LEFT_OUT = (
    "/tools/",
    "/transformers/",
    "/quantization/",
    "/datasets/",
    "/backend/",
    "providers_tensorrt",
    "/libonnxruntime.so",
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: the folder is complete and small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sm", default="9.0", help="the GPU's compute capability (default: 9.0, H20 to H200)")
    parser.add_argument("--python", default="3.12", help="of the GPU machine (default: 3.12)")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels that are here already; nothing is downloaded"
    )
    parser.add_argument("--without-onnxruntime", action="store_true", help="PyTorch's part of the plan only")
    arguments = parser.parse_args(argv)
    if arguments.output.exists():
        leave(f"{arguments.output} exists; name a new folder")
    with tempfile.TemporaryDirectory() as name:
        partial = Path(name) / "kit"
        copy_sources(partial)
        wanted = {"tools": list(TOOLS)} | ({} if arguments.without_onnxruntime else {"onnxruntime": [ONNXRUNTIME]})
        origins = {}
        for payload, packages in wanted.items():
            wheels = find_wheels(packages, arguments.wheels, Path(name) / payload, arguments.python)
            origins |= {wheel.name: digest(wheel) for wheel in wheels}
            folder = partial / "payload" / payload
            folder.mkdir(parents=True)
            for wheel in wheels:
                if payload == "tools":
                    shutil.copyfile(wheel, folder / wheel.name)
                else:
                    pack_onnxruntime(wheel, folder / "onnxruntime.tar.xz", arguments.sm)
        manifest = describe(partial, origins, arguments)
        (partial / "payload" / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        check_size(partial)
        shutil.move(partial, arguments.output)
    size = f"{manifest['bytes'] / 1e6:.1f} MB of {LIMIT_BYTES / 1e6:.1f} MB"
    print(f"{arguments.output}: {size}, commit {manifest['commit']}")
    return 0


def leave(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    sys.stderr.write(f"{message}\n")
    sys.exit(2)


def copy_sources(target: Path) -> None:
    """The tracked sources, as they lie in the working tree."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--", *FOLDERS], capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    if not names:
        leave(f"{ROOT} is no checkout with its history, from which the sources are taken")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def find_wheels(packages: Sequence[str], given: Path | None, folder: Path, python: str) -> list[Path]:
    """One wheel for each package: from a folder, or downloaded for the GPU machine's Python."""
    folder.mkdir()
    if given is None:
        platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", *platforms, "-d", str(folder), *packages]
        if subprocess.run(command, check=False).returncode:
            leave(f"pip could not download {', '.join(packages)}")
    found = []
    for package in packages:
        start = package.partition("==")[0].replace("-", "_") + "-"
        wheels = [file for file in sorted((given or folder).glob("*.whl")) if file.name.lower().startswith(start)]
        if len(wheels) != 1:
            leave(f"{given or folder} has {len(wheels)} wheels of {package}; one is needed")
        found += wheels
    return found


def pack_onnxruntime(wheel: Path, target: Path, sm: str) -> None:
    """The parts of onnxruntime-gpu that run float16 networks on one kind of GPU, as one archive."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME}]
    with (
        zipfile.ZipFile(wheel) as source,
        lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=filters) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for item in source.infolist():
            if item.is_dir() or any(part in item.filename for part in _LEFT_OUT):
                continue
            data = bytearray(source.read(item))
            if item.filename == _PROVIDER:
                try:
                    done = thin(data, round(10 * float(sm)), is_wanted=is_launched)
                except ModuleNotFoundError as error:
                    leave(f"thinning needs the package '{error.name}': pip install {error.name}")
                except ValueError as error:
                    leave(str(error))
                print(f"device code: kept {done.kept / 1e6:.1f} MB, blanked {done.never_launched / 1e6:.1f} MB of it")
            entry = tarfile.TarInfo(item.filename)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))


def describe(folder: Path, origins: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """What is in the folder and where it came from."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    payload = [path for path in files if path.is_relative_to(folder / "payload")]
    git = ["git", "-C", str(ROOT)]
    commit, changes = (
        subprocess.run([*git, *command], capture_output=True, text=True, check=False).stdout.strip()
        for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    return {
        "schema_version": 1,
        "commit": commit + ("+changes" if changes else ""),
        "sm": arguments.sm,
        "python": arguments.python,
        "bytes": sum(path.stat().st_size for path in files),
        "limit_bytes": LIMIT_BYTES,
        "wheels_sha256": origins,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in payload
        },
    }


def check_size(folder: Path) -> None:
    """Leave with a message where the folder is too large to travel at once."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > LIMIT_BYTES:
        leave(f"the kit would be {total / 1e6:.1f} MB, more than {LIMIT_BYTES / 1e6:.1f} MB travel at once")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
