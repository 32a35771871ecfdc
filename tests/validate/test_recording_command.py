"""record: arguments that cannot be used, and the command line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import error_of, run
from recording_support import write_set

from livemoments.cli import cli
from livemoments.cli import record as record_command
from livemoments.errors import CheckpointError, ImageError, OutputError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.types import Size
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.options import RecordOptions
from livemoments.validate.recording.pipeline import record

STEPS = 3
OPTIONS = {"tile": Size(128, 128), "overlap": 32, "steps": STEPS, "seed": 5}
SAME = 1e-6
"""Relative L2 of one network run twice on the same input, through a file."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("photos"), 2, truth=True)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": Size(120, 128)}, "tiles of 128x120"),
        ({"overlap": 128}, "overlap of 128"),
        ({"steps": 0}, "0 sampling steps"),
        ({"seed": -1}, "seed -1"),
        ({"policy": "frozen@3"}, "only 0 to 2"),
        ({"detail_steps": (3,)}, "step 3"),
        ({"detail_steps": ()}, "which steps"),
        ({"blocks": (4,)}, "no block 4"),
        ({"detail": "all"}, "no detail 'all'"),
        ({"dtype": "bfloat16"}, "'bfloat16'"),
        ({"device": "warp"}, "'warp'"),
        ({"detail_images": ("z",)}, "no photo 'z'"),
        ({"limit": 0}, "limit of 0"),
    ],
)
def test_arguments_that_cannot_be_used(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        record(tiny_checkpoint, photos, tmp_path / "r", **{**OPTIONS, **options})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_options_are_given_in_one_form(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="either RecordOptions or"):
        record(tiny_checkpoint, photos, tmp_path / "r", RecordOptions(), seed=3)
    with pytest.raises(UsageError, match="seed -1"):
        record(tiny_checkpoint, photos, tmp_path / "r", RecordOptions(seed=-1))
    chosen = RecordOptions(detail_images=("c", "a"), detail_tiles=None, detail_steps=(2, 0, 2)).selection(
        ("a", "b", "c")
    )
    assert (chosen.images, chosen.tiles, chosen.steps, chosen.blocks) == (("a", "c"), None, (0, 2), None)
    assert RecordOptions(detail_images=None).selection(("a", "b")).images is None


def test_photos_checkpoints_and_places_that_cannot_be_used(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(photos, bad)
    (bad / "ref" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="1 photos cannot be used; the first, 'b'"):
        record(tiny_checkpoint, bad, tmp_path / "r", **OPTIONS)
    with pytest.raises(CheckpointError):
        record(photos, photos, tmp_path / "r", **OPTIONS)
    live = LivePhoto(photos / "lr" / "a.png", photos / "ref" / "a.png", name="../a")
    with pytest.raises(UsageError, match="cannot be called"):
        record(tiny_checkpoint, live, tmp_path / "r", **OPTIONS)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        record(tiny_checkpoint, photos, tmp_path / "file", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "file"]


# --- the command


@pytest.fixture
def command() -> Iterator[None]:
    before = cli.commands.get("record")
    cli.add_command(record_command.command)
    yield
    if before is None:
        del cli.commands["record"]


@pytest.mark.usefixtures("command")
def test_the_command_line(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    import json

    place = tmp_path / "r"
    flags = ["--tile", "128", "--overlap", 32, "--steps", 2, "--detail", "blocks", "--detail-tiles", "0", "--seed", 3]
    result = run("record", tiny_checkpoint, "--dataset", photos, "-o", place, "--limit", 1, *flags, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    opened = open_recording(place)
    assert document["digest"] == opened.meta.digest
    assert document["images"] == [
        {"name": "a", "size": "128x128", "tiles": 1, "detail": "blocks", "tensors": len(opened.names("a"))}
    ]
    assert opened.meta.settings.seed == 3
    again = run("record", tiny_checkpoint, "--dataset", photos, "-o", place, "--json")
    assert again.exit_code == 2
    assert "exists already" in error_of(again)["message"]


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--frame", "f.png"),
        ("--dataset", "d", "--frame", "f.png", "--photo", "p.png"),
        ("--dataset", "d", "--detail-tiles", "1,x"),
        ("--dataset", "d", "--detail", "everything"),
    ],
)
def test_options_that_contradict(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run("record", tmp_path, *arguments, "-o", tmp_path / "r")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
