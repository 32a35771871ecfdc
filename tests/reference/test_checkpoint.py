"""Loading checkpoints: upstream's layout and configuration file, shards, types, and everything that can be wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from livemoments.errors import CheckpointError
from livemoments.reference.checkpoint import load_reference
from livemoments.reference.checkpoint_sizes import SIZES
from livemoments.reference.layout import locate
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.reference.stored import SafetensorsFolder

TRANSFORMER = Path("livemoments/transformer")
WEIGHTS = TRANSFORMER / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def change_weights(checkpoint: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    for key, value in change.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, checkpoint / WEIGHTS)


def test_a_folder_and_its_inference_config_name_the_same_files(tiny_checkpoint: Path) -> None:
    by_folder = locate(tiny_checkpoint)
    by_config = locate(tiny_checkpoint / "inference_config.yml")
    for name, path in by_folder.walk():
        assert dict(by_config.walk())[name].samefile(path)


def test_other_folder_names_are_found(checkpoint: Path) -> None:
    (checkpoint / "sd3").rename(checkpoint / "stable-diffusion-3-medium")
    (checkpoint / "livemoments").rename(checkpoint / "LiveMoments-v1")
    (checkpoint / "inference_config.yml").unlink()
    assert locate(checkpoint).transformer == checkpoint / "LiveMoments-v1" / "transformer"


def test_everything_missing_is_named_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate(tmp_path)
    for part in ("vae", "transformer", "motion_encoder", "raft", "pooled_prompt_embeds"):
        assert part in str(caught.value)


def test_a_config_that_names_a_missing_file_is_refused(checkpoint: Path) -> None:
    (checkpoint / "raft-sintel.pth").unlink()
    with pytest.raises(CheckpointError, match="raft"):
        locate(checkpoint / "inference_config.yml")


def test_missing_extra_and_misshapen_keys_are_named_in_one_error(checkpoint: Path) -> None:
    change_weights(
        checkpoint,
        {
            "proj_out.bias": None,
            "surprise.weight": torch.zeros(2),
            "transformer_blocks.1.attn.processor.point_proj.weight": torch.zeros(3, 3),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load_reference(checkpoint)
    message = str(caught.value)
    assert "missing: proj_out.bias" in message
    assert "unexpected: surprise.weight" in message
    assert "transformer_blocks.1.attn.processor.point_proj.weight is (3, 3)" in message


def test_nan_weights_are_named(checkpoint: Path) -> None:
    bias = load_file(checkpoint / WEIGHTS)["proj_out.bias"]
    bias[3] = float("nan")
    change_weights(checkpoint, {"proj_out.bias": bias})
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights in proj_out\.bias"):
        load_reference(checkpoint)


@pytest.mark.parametrize("name", [str(WEIGHTS), "motion_encoder.pt", "raft-sintel.pth", "prompt_embeds.pt"])
@pytest.mark.parametrize("keep", [0, 0.5], ids=["zero bytes", "truncated"])
def test_empty_and_truncated_files_are_named(checkpoint: Path, name: str, keep: float) -> None:
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError) as caught:
        load_reference(checkpoint)
    assert Path(name).name in str(caught.value)
    assert caught.value.fix


def test_a_pickle_that_runs_code_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Attack()}, checkpoint / "motion_encoder.pt")
    with pytest.raises(CheckpointError, match="motion_encoder"):
        load_reference(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_sd35_and_contradicting_sizes_are_refused(checkpoint: Path) -> None:
    path = checkpoint / TRANSFORMER / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"qk_norm": "rms_norm"}))
    with pytest.raises(CheckpointError, match=r"SD3\.5"):
        load_reference(checkpoint)
    path.write_text(json.dumps(config | {"num_layers": config["num_layers"] + 1}))
    with pytest.raises(CheckpointError, match="num_layers"):
        load_reference(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load_as_float32(checkpoint: Path, dtype: torch.dtype) -> None:
    full = load_file(checkpoint / WEIGHTS)
    save_file({key: value.to(dtype) for key, value in full.items()}, checkpoint / WEIGHTS)
    loaded = load_reference(checkpoint).restoration_net.transformer.state_dict()
    assert set(loaded) == set(full)
    for key, value in full.items():
        assert loaded[key].dtype == torch.float32
        torch.testing.assert_close(loaded[key], value.to(dtype).float(), rtol=0, atol=0)


def test_shards_are_read_and_a_missing_one_is_named(checkpoint: Path) -> None:
    folder = checkpoint / TRANSFORMER
    full = load_file(checkpoint / WEIGHTS)
    names = sorted(full)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (checkpoint / WEIGHTS).unlink()
    for file, keys in parts.items():
        save_file({key: full[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert {key: tuple(value.shape) for key, value in full.items()} == SafetensorsFolder(folder).shapes
    loaded = load_reference(checkpoint).restoration_net.transformer.state_dict()
    assert all(torch.equal(loaded[key], full[key]) for key in full)

    (folder / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing shards: model-2\.safetensors"):
        load_reference(checkpoint)


def test_prompts_of_another_width_are_refused(checkpoint: Path) -> None:
    torch.save(torch.zeros(13, 65), checkpoint / "prompt_embeds.pt")
    with pytest.raises(CheckpointError, match="last axis should be"):
        load_reference(checkpoint)


def test_prompts_without_a_batch_axis_are_read(checkpoint: Path) -> None:
    tokens = torch.load(checkpoint / "prompt_embeds.pt", weights_only=True)
    torch.save(tokens.reshape(tokens.shape[-2:]), checkpoint / "prompt_embeds.pt")
    assert load_reference(checkpoint).prompt.tokens.shape == (1, *tokens.shape[-2:])


def test_odd_sizes_load(tmp_path: Path) -> None:
    sizes = replace(SIZES["tiny"], num_layers=3)
    folder = make_checkpoint(tmp_path / "odd", size=sizes, seed=1)
    assert len(load_reference(folder).reference_net.transformer.transformer_blocks) == 3
