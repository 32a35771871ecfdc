"""Headers of weight files, read without torch, against what torch and safetensors say of the same files."""

from __future__ import annotations

import argparse
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from livemoments.errors import CheckpointError
from livemoments.reference.weights import read_state
from livemoments.weights.headers import file_header, folder_header

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMATS = ["zip", "old", "safetensors"]


def random_state(rng: random.Random) -> dict[str, torch.Tensor]:
    state = {
        f"blocks.{index}.weight": torch.rand([rng.randint(1, 5) for _ in range(rng.randint(0, 4))]).to(
            rng.choice(TYPES)
        )
        for index in range(rng.randint(1, 6))
    }
    return state | {"norm.num_batches_tracked": torch.tensor(rng.randint(0, 9))}


def write(place: Path, state: object, form: str) -> Path:
    if form == "safetensors":
        save_file(state, place.with_suffix(".safetensors"))
        return place.with_suffix(".safetensors")
    torch.save(state, place.with_suffix(".pt"), _use_new_zipfile_serialization=form == "zip")
    return place.with_suffix(".pt")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_names_shapes_and_types_are_torchs(tmp_path: Path, form: str, seed: int) -> None:
    file = write(tmp_path / "weights", random_state(random.Random(seed)), form)
    found = file_header(file).tensors
    expected = read_state(file)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: tuple(t.shape) for n, t in expected.items()}
    assert {name: f"torch.{tensor.dtype}" for name, tensor in found.items() if "num" not in name} == {
        name: str(tensor.dtype) for name, tensor in expected.items() if "num" not in name
    }


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_lone_tensor_and_parameters_and_data_parallel_names(tmp_path: Path, form: str) -> None:
    lone = file_header(write(tmp_path / "lone", torch.rand(1, 7, 5).half(), form))
    assert lone.shapes == {"": (1, 7, 5)}
    assert lone.dtypes == ("float16",)
    parallel = {"module.a.weight": torch.nn.Parameter(torch.rand(3, 2)), "module.b": torch.rand(4)[1:3]}
    assert file_header(write(tmp_path / "parallel", parallel, form)).shapes == {"a.weight": (3, 2), "b": (2,)}


def test_dtypes_come_with_the_most_elements_first_and_without_counters(tmp_path: Path) -> None:
    state = {"a": torch.rand(2).half(), "b": torch.rand(30), "num_batches_tracked": torch.tensor(1)}
    header = file_header(write(tmp_path / "weights", state, "zip"))
    assert header.dtypes == ("float32", "float16")
    assert header.parameters == 33


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_is_noticed(tmp_path: Path, form: str) -> None:
    """Also one in the values, which no header mentions: the storages' sizes are compared with the file's."""
    file = write(tmp_path / "weights", {"a": torch.rand(64, 64), "b": torch.rand(8)}, form)
    whole = file.read_bytes()
    assert file_header(file).shapes == {"a": (64, 64), "b": (8,)}
    for share in (0.0, 0.02, 0.3, 0.7, 0.99):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match=r"weights|safetensors|empty|cut off|lacks a part"):
            file_header(file)


class Touch:
    """A pickle that would make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.place), "w")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.rand(3, 3).to_sparse()}, "_rebuild_sparse"),
        ({"a": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)}, r"torch\.(_utils|QInt8)"),
        ({"a": torch.arange(3)}, "a is of type int64; weights are dense floating-point"),
        ({"a": torch.zeros(1).expand(9)}, r"shape \(9,\) lies over 1 elements"),
        ({"a": torch.rand(3), "args": argparse.Namespace()}, "argparse.Namespace"),
        ([torch.rand(2)], "no state dict"),
        ({"a": 3}, "no state dict"),
    ],
    ids=["sparse", "quantized", "integers", "stride 0", "a namespace", "a list", "a number"],
)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_what_is_no_weights_is_refused(tmp_path: Path, content: object, said: str, form: str) -> None:
    file = write(tmp_path / "weights", content, form)
    with pytest.raises(CheckpointError, match=said):
        file_header(file)
    with pytest.raises(CheckpointError):  # and the export would refuse it as well
        read_state(file)


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
def test_nothing_that_a_pickle_names_is_called(tmp_path: Path, form: str) -> None:
    trap = {"a": Touch(tmp_path / "touched")}
    if form == "plain":
        file = tmp_path / "weights.pt"
        file.write_bytes(pickle.dumps(trap))
    else:
        file = write(tmp_path / "weights", trap, form)
    with pytest.raises(CheckpointError):
        file_header(file)
    assert not (tmp_path / "touched").exists()


def test_shards_count_as_one_folder(tmp_path: Path) -> None:
    save_file({"a": torch.rand(2, 3)}, tmp_path / "m-1.safetensors")
    save_file({"b": torch.rand(4).half()}, tmp_path / "m-2.safetensors")
    index = '{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}'
    (tmp_path / "m.safetensors.index.json").write_text(index)
    assert folder_header(tmp_path).shapes == {"a": (2, 3), "b": (4,)}
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing shards: m-2"):
        folder_header(tmp_path)


@pytest.mark.process
def test_headers_need_no_torch(tmp_path: Path) -> None:
    file = write(tmp_path / "weights", {"a": torch.rand(2)}, "zip")
    code = f"""
import sys
from pathlib import Path
from livemoments.weights import inspection
from livemoments.weights.headers import file_header
assert file_header(Path({str(file)!r})).shapes == {{"a": (2,)}}
assert "torch" not in sys.modules and "diffusers" not in sys.modules, "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
