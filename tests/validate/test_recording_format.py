"""Recordings on disk: written in pieces, read without torch, refused when damaged, taken up again when killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import GOLDEN, SUPPORT
from recording_support import small_meta, small_recording, small_tensors, write_image
from safetensors.numpy import load_file

from livemoments.errors import EngineError, FileError, OutputError, ResourceError, UsageError
from livemoments.types import Stage
from livemoments.validate.recording import writer as writer_module
from livemoments.validate.recording.cases import recorded_case, schedule_point
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.schema import META_NAME, RecordingSettings
from livemoments.validate.recording.tensor_file import HALF_REL_L2, TensorWriter, read_tensor, tensor_names
from livemoments.validate.recording.writer import write_recording


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recording(tmp_path_factory.mktemp("pristine") / "recording")


@pytest.fixture
def recording(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "recording"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- writing and reading


def test_everything_that_was_written_is_read_back(recording: Path) -> None:
    opened = open_recording(recording)
    assert opened.images == ("a", "b")
    for number, image in enumerate(opened.images):
        wanted = small_tensors(number)
        assert sorted(opened.names(image)) == sorted(wanted)
        for name, value in wanted.items():
            found = opened.read(image, name)
            assert found.dtype == value.dtype, name
            np.testing.assert_array_equal(found, value, err_msg=name)
    path = opened.image_path("a", "lr")
    assert path is not None
    assert path.read_text() == "any bytes"
    assert opened.image_path("a", "gt") is None


def test_large_and_small_tensors_have_files_of_their_own(recording: Path) -> None:
    files = {path.name: sorted(load_file(path)) for path in (recording / "tensors" / "a").iterdir()}
    assert files == {
        "photo.safetensors": ["photo.before_color_fix", "photo.flow_lr", "photo.stitched", "ref_patch_coords"],
        "tile0.motion.safetensors": ["tile0.motion_bias"],
        "tile0.safetensors": ["tile0.decoded", "tile0.flow", "tile0.step0.velocity"],
        "tile0.step0.blocks.safetensors": ["tile0.step0.reference.block0.hidden"],
        "tile0.step0.kv.safetensors": ["tile0.step0.kv.transformer_blocks.0.attn.to_k"],
        "tile0.step1.kv.safetensors": ["tile0.step1.kv.transformer_blocks.0.attn.to_k"],
        "tile0.step1.modules.safetensors": ["tile0.step1.restoration.module.transformer_blocks.0.ff.net.0"],
        "tile1.safetensors": ["tile1.flow"],
    }


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 7)])
def test_tensors_of_any_shape_and_type(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng()
    values = {
        "float": rng.standard_normal(shape).astype(np.float32),
        "strided": np.asfortranarray(rng.standard_normal((*shape, 2)).astype(np.float32)),
        "int": rng.integers(-9, 9, shape),
        "byte": rng.integers(0, 255, shape, dtype=np.uint8),
    }
    file = TensorWriter(tmp_path / "file.safetensors", "float32")
    for name, value in values.items():
        file.add(name, value)
    entry = file.close()
    assert entry.bytes == (tmp_path / "file.safetensors").stat().st_size
    names = tensor_names(tmp_path / "file.safetensors")
    assert sorted(names) == sorted(values)
    assert 0 in shape or names == tuple(values)  # empty ones have no place in the order
    for name, value in values.items():
        found = read_tensor(tmp_path / "file.safetensors", name)
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(found, value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]  # nothing hidden stays


def test_half_precision_halves_and_rounds(tmp_path: Path) -> None:
    exact = np.random.default_rng().standard_normal((64, 64)).astype(np.float32)
    sizes = {}
    for dtype in ("float32", "float16"):
        file = TensorWriter(tmp_path / dtype, dtype)
        file.add("x", exact)
        sizes[dtype] = file.close().bytes
    assert abs(sizes["float16"] / sizes["float32"] - 0.5) < 0.01
    found = read_tensor(tmp_path / "float16", "x")
    assert found.dtype == np.float16
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 0 < error < HALF_REL_L2


def test_half_precision_keeps_what_is_too_small_for_it_and_refuses_what_is_too_large(tmp_path: Path) -> None:
    file = TensorWriter(tmp_path / "file", "float16")
    tiny = np.random.default_rng().uniform(1e-7, 3e-7, (4, 4)).astype(np.float32)  # a posterior's standard deviation
    file.add("std", tiny)
    file.add("edge", np.float32([65504, -65504]))
    file.add("zero", np.zeros(3, np.float32))
    with pytest.raises(UsageError, match=r"'tile0\.z' reaches 6.56e\+04") as caught:
        file.add("tile0.z", np.float32([1, -65552]))
    assert caught.value.fix == "record with --dtype float32"
    file.close()
    np.testing.assert_array_equal(read_tensor(tmp_path / "file", "std"), tiny)
    assert read_tensor(tmp_path / "file", "edge").dtype == read_tensor(tmp_path / "file", "zero").dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_recorded(tmp_path: Path, value: float) -> None:
    with pytest.raises(EngineError, match="'x' is not finite"):
        TensorWriter(tmp_path / "file", "float32").add("x", np.float32([0, value]))


def test_a_tensor_is_recorded_once(tmp_path: Path) -> None:
    file = TensorWriter(tmp_path / "file", "float32")
    file.add("x", np.zeros(1, np.float32))
    with pytest.raises(UsageError, match="twice"):
        file.add("x", np.zeros(1, np.float32))
    file.close()
    with pytest.raises(FileExistsError):
        TensorWriter(tmp_path / "file", "float32")


def test_reading_needs_no_torch(recording: Path) -> None:
    code = """
import sys
for name in ("torch", "diffusers", "onnx", "yaml"):
    sys.modules[name] = None  # importing it now raises
from livemoments.types import Stage
from livemoments.validate.recording.cases import recorded_case
from livemoments.validate.recording.opening import open_recording
for path in sys.argv[1:]:
    recording = open_recording(path)
    for image in recording.images:
        for name in recording.names(image):
            recording.read(image, name)
case = recorded_case(open_recording(sys.argv[1]), "a", 0, Stage.MOTION)
print(case.outputs["motion_bias"].shape)
"""
    command = [sys.executable, "-c", code, str(recording), str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(2, 1, 4, 8)\n"), done.stderr


def test_two_recordings_of_the_same_are_the_same_bytes(tmp_path: Path) -> None:
    one, other = (small_recording(tmp_path / name) for name in ("one", "other"))
    assert contents(one) == contents(other)
    assert open_recording(one).meta.digest == open_recording(other).meta.digest
    third = small_recording(tmp_path / "third", images=("b", "a"))
    assert open_recording(third).meta.digest != open_recording(one).meta.digest


# --- what is refused


def edit_meta(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / META_NAME).read_text())
        change(found)
        (folder / META_NAME).write_text(json.dumps(found))

    return damage


def edit_tensors(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        change(folder / "tensors" / "a" / "tile0.safetensors")

    return damage


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def rename_file(meta: dict[str, Any], name: str) -> None:
    meta["files"][name] = meta["files"].pop("images/lr/a.txt")
    meta["images"]["a"]["files"]["lr"] = name


DAMAGES = {
    "no folder": (shutil.rmtree, "no such recording"),
    "not a recording": (lambda folder: (folder / META_NAME).unlink(), "not a recording"),
    "not JSON": (lambda folder: (folder / META_NAME).write_text("{"), "not valid JSON"),
    "not an object": (lambda folder: (folder / META_NAME).write_text("[1]"), "schema None is not known"),
    "newer": (edit_meta(lambda m: m.update(schema="livemoments/recording/2")), "recording/2' is not known"),
    "extra field": (edit_meta(lambda m: m.update(more=1)), "malformed: .*more"),
    "bad size": (edit_meta(lambda m: m["settings"].update(tile="big")), "malformed: 'big' is not a size"),
    "bad policy": (edit_meta(lambda m: m["settings"].update(policy="often")), "malformed: 'often'"),
    "short schedule": (edit_meta(lambda m: m["settings"].update(steps=3)), "3 steps, but a schedule of 2"),
    "no hash": (edit_meta(lambda m: m["files"].pop("images/lr/a.txt")), "no hash is listed"),
    "leaves": (edit_meta(lambda m: rename_file(m, "../a.txt")), r"names '\.\./a.txt', which leaves"),
    "absolute": (edit_meta(lambda m: rename_file(m, "/etc/passwd")), "which leaves"),
    "backslash": (edit_meta(lambda m: rename_file(m, "..\\a.txt")), "which leaves"),
    "NUL": (edit_meta(lambda m: rename_file(m, "a\0b")), "which is not a file name"),
    "missing": (edit_tensors(Path.unlink), "missing"),
    "cut short": (edit_tensors(lambda file: file.write_bytes(file.read_bytes()[:-1])), "bytes long"),
    "changed": (edit_tensors(flip_last_byte), "SHA-256"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_recording_is_one_clear_error(recording: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    open_recording(recording)
    damage(recording)
    with pytest.raises(FileError, match=message) as caught:
        open_recording(recording)
    assert caught.value.fix


def test_names_that_cannot_be_shown_are_names(recording: Path) -> None:
    """A screenshot of macOS has a narrow no-break space before "PM"."""
    name = "images/lr/at 9.41\u202fPM.txt"
    (recording / "images" / "lr" / "a.txt").rename(recording / name)
    edit_meta(lambda meta: rename_file(meta, name))(recording)
    assert open_recording(recording).image_path("a", "lr") == recording / name


def test_a_link_that_leaves_the_folder_is_refused(recording: Path, tmp_path: Path) -> None:
    file = recording / "images" / "lr" / "a.txt"
    file.unlink()
    (tmp_path / "a.txt").write_text("any bytes")  # the same
    file.symlink_to(tmp_path / "a.txt")
    with pytest.raises(FileError, match="leaves"):
        open_recording(recording)


def test_without_hashes_damage_shows_when_it_is_read(recording: Path) -> None:
    file = recording / "tensors" / "a" / "tile0.safetensors"
    data = bytearray(file.read_bytes())
    data[:8] = b"\xff" * 8
    file.write_bytes(data)
    opened = open_recording(recording, verify_hashes=False)
    with pytest.raises(FileError, match=r"tile0\.safetensors: cannot be read"):
        opened.names("a")
    assert opened.read("b", "tile0.flow").shape == (1, 2, 16, 16)


def test_what_was_not_recorded_is_named(recording: Path) -> None:
    opened = open_recording(recording)
    with pytest.raises(FileError, match=r"'tile9\.flow' of 'a' was not recorded"):
        opened.read("a", "tile9.flow")
    with pytest.raises(FileError, match="no photo 'z'"):
        opened.names("z")
    with pytest.raises(FileError, match=r"keys and values of tile1\.step0 of 'a' were not recorded"):
        recorded_case(opened, "a", 1, Stage.REFERENCE)


# --- the conditions


@pytest.mark.parametrize(
    ("policy", "steps", "recorded", "sources"),
    [
        ("per-step", 3, (0, 1, 2), (0, 1, 2)),
        ("phase-split", 2, (0, 1), (0, 1)),
        ("every-2", 5, (0, 0, 2, 2, 4), (0, 0, 2, 2, 4)),
        ("frozen", 3, (0, 0, 0), (0, 0, 0)),
        ("frozen@2", 3, (0, 0, 0), (2, 2, 2)),
    ],
)
def test_whose_keys_and_values_a_step_uses(
    policy: str, steps: int, recorded: tuple[int, ...], sources: tuple[int, ...]
) -> None:
    settings = RecordingSettings(
        tile="64x64", overlap=0, steps=steps, policy=policy, schedule=(), noise_level=0.2, seed=None
    )
    assert settings.kv_steps() == recorded
    assert settings.kv_sources() == sources


def test_a_timestep_is_found_in_a_bundles_schedule() -> None:
    from livemoments.schedule import build_schedule

    schedule = build_schedule((3, 6), default_steps=3)
    for index, point in enumerate(schedule.points):
        assert schedule_point(schedule, point.timestep) == index
    assert schedule_point(schedule, schedule.points[0].timestep + 1) is None


def test_a_golden_recording_is_read_the_same_way() -> None:
    opened = open_recording(GOLDEN)
    assert (opened.images, opened.meta.settings.upstream, opened.meta.settings.seed) == (("photo",), True, None)
    with np.load(GOLDEN / "expected.npz") as arrays:
        assert set(opened.names("photo")) == set(arrays.files)
        for name in arrays.files:
            np.testing.assert_array_equal(opened.read("photo", name), arrays[name])
        coordinates = [(t.ref_y, t.ref_x) for t in opened.entry("photo").tiles]
        np.testing.assert_array_equal(coordinates, arrays["ref_patch_coords"])
    for role in ("lr", "ref", "ref_lr"):
        path = opened.image_path("photo", role)
        assert path is not None
        assert path.is_file()


# --- places, and being killed


def test_what_is_there_is_kept_unless_overwriting_a_recording(recording: Path, tmp_path: Path) -> None:
    before = contents(recording)
    with pytest.raises(OutputError, match="exists already") as caught, write_recording(recording):
        pass
    assert caught.value.fix == "pass --overwrite to replace it"
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").touch()
    with pytest.raises(OutputError, match="not a recording"), write_recording(tmp_path / "letters", overwrite=True):
        pass
    assert contents(recording) == before
    with write_recording(recording, overwrite=True) as writer:
        write_image(writer, tmp_path, "c", 7)
        writer.commit(small_meta())
    assert open_recording(recording).images == ("c",)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_error_before_the_first_photo_is_finished_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with write_recording(tmp_path / "r") as writer, writer.image("a", "float32") as image:
            image.add("tile0.flow", np.zeros(3, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="disk"),
        write_recording(tmp_path / "r") as writer,
        writer.image("a", "float32"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_recording(tmp_path: Path) -> None:
    with write_recording(tmp_path / "r") as writer:
        write_image(writer, tmp_path, "a", 0)
        with pytest.raises(OutputError, match="another process"), write_recording(tmp_path / "r"):
            pass
        writer.commit(small_meta())
    open_recording(tmp_path / "r")


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from recording_support import small_meta, small_tensors, write_image
from livemoments.validate.recording.writer import write_recording
place = Path(sys.argv[1])
with write_recording(place) as writer:
    write_image(writer, place.parent, "a", 0)
    with writer.image("b", "float32") as image:
        image.add("tile0.flow", small_tensors(5)["tile0.flow"])
        image.add("tile1.flow", small_tensors(5)["tile1.flow"])
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_outright_nothing_looks_finished_and_the_finished_photos_are_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "recording"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(place), str(SUPPORT)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not place.exists()
    with pytest.raises(FileError):
        open_recording(tmp_path / ".recording.unfinished" / "recording")
    with write_recording(place) as writer:
        assert writer.take_over({"a": "key of a", "b": "key of b"}) == ("a",)
        write_image(writer, tmp_path, "b", 1)
        writer.commit(small_meta())
    assert contents(place) == contents(small_recording(tmp_path / "at once"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "at once", "b.txt", "recording"]


@pytest.mark.parametrize("change", ["other conditions", "damaged", "gone"])
def test_what_does_not_fit_any_more_is_made_again(tmp_path: Path, change: str) -> None:
    keys = {"a": "key of a", "b": "key of b"}
    with write_recording(tmp_path / "r") as writer:  # left without a commit
        write_image(writer, tmp_path, "a", 0)
        write_image(writer, tmp_path, "b", 1)
    tensors = tmp_path / ".r.unfinished" / "recording" / "tensors" / "a" / "tile0.safetensors"
    if change == "other conditions":
        keys["a"] = "another seed"
    elif change == "damaged":
        flip_last_byte(tensors)
    else:
        del keys["a"]
    with write_recording(tmp_path / "r") as writer:
        assert writer.take_over(keys) == ("b",)
        assert not tensors.parent.exists()
        writer.commit(small_meta())
    assert open_recording(tmp_path / "r").images == ("b",)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file/recording", "x" * 300):
        with pytest.raises(OutputError) as caught, write_recording(tmp_path / place):
            pass
        assert caught.value.fix
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 - hidden ones too


def test_memory_does_not_grow_with_what_a_file_holds(tmp_path: Path) -> None:
    """What is written goes to the disk at once: the writer keeps names and places only."""
    file = TensorWriter(tmp_path / "file", "float32")
    for number in range(20):
        file.add(f"x{number}", np.full((256, 256), number, np.float32))
        assert (tmp_path / ".file.data").stat().st_size >= number * 256 * 256 * 4
    assert not [value for value in vars(file).values() if isinstance(value, np.ndarray)]
    file.close()
    assert writer_module.condition_key([1]) != writer_module.condition_key([2])


def test_what_stayed_of_a_recording_that_was_published_goes_with_the_next_command(tmp_path: Path) -> None:
    small_recording(tmp_path / "r")
    left = tmp_path / ".r.unfinished" / "finished"
    left.mkdir(parents=True)  # the process was killed when its folder 'recording' had just been moved
    (left / "a.json").write_text("{}")
    with pytest.raises(OutputError, match="exists already"), write_recording(tmp_path / "r"):
        pass
    assert not (tmp_path / ".r.unfinished").exists()
    open_recording(tmp_path / "r")
