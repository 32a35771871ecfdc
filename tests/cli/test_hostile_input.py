"""What files and names bring that nobody asked for: each ends in one clear error, and reaches no further."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_bundle import make_fake_bundle
from PIL import Image

from livemoments.checkpoints import trained_checkpoint
from livemoments.cli import main
from livemoments.cli.output import printable, shortened
from livemoments.errors import CheckpointError, ImageError
from livemoments.reference.weights import read_pickled, read_pickled_tensor
from livemoments.runtime.image_files import xmp_packet
from livemoments.runtime.image_files.photo import read_photo

pytestmark = pytest.mark.process

ESCAPES = "\x1b]0;owned\x07\x1b[31mred"
LONG = "n" * 300


def run(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    found = capfd.readouterr()
    return code, found.out, found.err


@pytest.mark.parametrize(
    "args",
    [
        ("restore", "bundle", "--frame", LONG, "--photo", "p.png", "-o", "o.png"),
        ("restore", "bundle", "--frame", "f.png", "--photo", "p.png", "-o", LONG + ".png"),
        ("export", LONG, "-o", "bundle"),
        ("make-checkpoint", LONG, "--size", "tiny"),
        ("fetch", LONG),
        ("fetch", "checkpoint", "--raft", LONG),
        ("make-prompt", "sd3", "-o", LONG),
        ("inspect", LONG),
        ("verify", ""),
        ("inspect", "a\0b"),
    ],
)
def test_names_that_the_system_refuses(args: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "fix: " in err
    assert len(err) < 400
    assert "Traceback" not in err


def test_a_path_that_fails_later_names_itself(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Below a name that can be looked up lies one that cannot be made."""
    (tmp_path / "a").touch()
    code, _, err = run(capfd, "make-checkpoint", tmp_path / "a" / "b", "--size", "small")
    assert code == 2
    assert "a file is in the way" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_text_of_a_file_is_shown_and_not_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle")
    file = bundle.path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"producer": ESCAPES}))
    code, out, _ = run(capfd, "inspect", bundle.path)
    assert code == 0
    assert "\\x1b]0;owned\\x07" in out
    assert "\x1b" not in out
    manifest["files"][ESCAPES] = {"sha256": "0" * 64, "bytes": 1}
    file.write_text(json.dumps(manifest))
    code, out, err = run(capfd, "inspect", bundle.path)
    assert code == 2
    assert "not a file name" in err
    assert not {"\x1b", "\x07"} & set(out + err)


def test_printable_and_shortened() -> None:
    assert printable("a\x1b[31mb\u202ec\n") == "a\\x1b[31mb\\u202ec\n"
    assert printable("größe 画 ✓") == "größe 画 ✓"
    assert shortened("short") == "short"
    assert len(shortened("x" * 5000)) < 80


@pytest.mark.parametrize(
    "kind", ["EPS", "ICNS", "PCX", "TGA", "SGI", "IM", "MSP", "SPIDER", "GIF", "BMP", "DDS", "PPM"]
)
def test_only_the_documented_formats_are_opened(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((128, 128, 3), np.uint8))
    image = image.convert({"MSP": "1", "SPIDER": "F"}.get(kind, "RGB"))
    stream = io.BytesIO()
    image.save(stream, kind)
    file = tmp_path / "in.png"
    file.write_bytes(stream.getvalue())
    with pytest.raises(ImageError, match="not an image that can be read"):
        read_photo(file)


@pytest.mark.parametrize(
    "body",
    [
        "<a>" * 3000 + "</a>" * 3000,
        "<é>" * 3000 + "</é>" * 3000,
        '<a b="/>">' * 3000 + "</a>" * 3000,
        "<a b='1'/>" * 100_000,
        "<a>" + "x" * (2 << 20) + "</a>",
    ],
    ids=["deep", "deep-accented", "deep-quoted", "many", "long"],
)
def test_metadata_that_never_ends_is_left_out(body: str) -> None:
    packet = f"<x:xmpmeta xmlns:x='adobe:ns:meta/' MotionPhoto='1' Orientation='6'>{body}</x:xmpmeta>".encode()
    assert xmp_packet.make_still(packet) is None
    assert xmp_packet.make_upright(packet) is None


def test_a_cameras_metadata_is_within_the_bounds() -> None:
    description = "<rdf:Description xmlns:c='http://ns.google.com/photos/1.0/camera/' c:MotionPhoto='1'/>"
    items = "<rdf:li><a><b><c>text</c></b></a></rdf:li>" * 200
    packet = (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        f"{description}<rdf:Seq>{items}</rdf:Seq></rdf:RDF></x:xmpmeta>"
    )
    still = xmp_packet.make_still(packet.encode())
    assert still is not None
    assert b"MotionPhoto" not in still
    assert still.count(b"<rdf:li>") == 200


ODD: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(4, 32).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4, 32), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(4, 32, device="meta"),
    "bytes": lambda: torch.ones(1).expand(1 << 40),
    "complex64": lambda: torch.ones(4, 32, dtype=torch.complex64),
    "int64": lambda: torch.ones(4, 32, dtype=torch.int64),
    "bool": lambda: torch.ones(4, 32, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_dense_numbers(kind: str, tmp_path: Path) -> None:
    torch.save(ODD[kind](), tmp_path / "one.pt")
    torch.save({"blocks.0.weight": ODD[kind]()}, tmp_path / "state.pt")
    for name, read in (("one.pt", read_pickled_tensor), ("state.pt", read_pickled)):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path / name)
        assert name in caught.value.message
        assert len(caught.value.message) < 500


def test_a_batch_norms_counter_is_an_integer(tmp_path: Path) -> None:
    state = {"module.norm.weight": torch.ones(3), "module.norm.num_batches_tracked": torch.tensor(5)}
    torch.save(state, tmp_path / "state.pt")
    assert set(read_pickled(tmp_path / "state.pt")) == {"norm.weight", "norm.num_batches_tracked"}


@pytest.mark.parametrize("encoding", ["latin-1", "cp437", "cp1252", "ascii"])
@pytest.mark.parametrize("command", ["export", "restore", "quantize", "validate"])
def test_help_in_an_encoding_that_lacks_its_characters(command: str, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "livemoments", command, "--help"], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert b"Usage:" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="closes a stream with a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_the_caller_closed(closed: str, tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle")
    command = f"{shlex.quote(sys.executable)} -m livemoments inspect {shlex.quote(str(bundle.path))} {closed}"
    done = subprocess.run(["sh", "-c", command], timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("option", ["--frame", "--photo", "-o"])
def test_a_files_name_does_not_end_like_a_folders(
    option: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = {"--frame": "f.png", "--photo": "p.png", "-o": "o.png"} | {option: "x.png/"}
    arguments = [part for pair in given.items() for part in pair]
    code, _, err = run(capfd, "restore", tmp_path, *arguments)
    assert code == 2
    assert "'x.png/' cannot be used (it ends like a folder's name" in err


@pytest.mark.parametrize("output", ["report.json/", "there/"])
def test_a_report_that_is_a_file_does_not_end_like_a_folder(
    output: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "there").touch()
    code, _, err = run(capfd, "validate", tmp_path, "-o", f"{tmp_path}/{output}")
    assert code == 2
    assert "it ends like a folder's name, and a file is meant" in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_image_and_no_part_of_a_bundle(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is a pipe or a device"):
        read_photo(tmp_path / "pipe.png")
    bundle = make_fake_bundle(tmp_path / "bundle")
    file = next(path for path in bundle.path.rglob("*") if path.suffix == ".onnx")
    file.unlink()
    os.mkfifo(file)
    code, _, err = run(capfd, "inspect", bundle.path)
    assert code == 2
    assert file.name in err


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a folder in use cannot be removed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("make-checkpoint", "c", "--size", "tiny"),
        ("demo",),
        ("inspect", "b"),
        ("export", str(trained_checkpoint()), "-o", "b"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_working_folder_that_is_gone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from livemoments.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=gone, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the working folder is gone\n  fix: ")
