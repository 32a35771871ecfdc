"""``livemoments inspect CHECKPOINT``: what is there, what is not, what does not fit, and the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from cli_support import error_of, run
from safetensors.torch import load_file, save_file

from livemoments.checkpoints import copy_trained_checkpoint
from livemoments.errors import CheckpointError
from livemoments.reference.checkpoint import load_reference
from livemoments.reference.layout import CONFIG_NAME
from livemoments.weights.inspection import Inspection, Part, inspect_checkpoint

PARTS = [
    "vae",
    "scheduler",
    "transformer",
    "transformer_ref",
    "motion_encoder",
    "raft",
    "prompt_embeds",
    "pooled_prompt_embeds",
]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage, by links: files are replaced, never written into. Without its inference_config.yml."""
    place = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint", copy_function=os.link)
    (place / CONFIG_NAME).unlink()
    return place


def part(found: Inspection, name: str) -> Part:
    return next(part for part in found.parts if part.name == name)


def save(state: object, file: Path) -> None:
    file.unlink()
    torch.save(state, file)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    state = load_file(file)
    file.unlink()
    save_file(change(state), file)


def test_a_whole_checkpoint(checkpoint: Path) -> None:
    found = inspect_checkpoint(checkpoint)
    assert [part.name for part in found.parts] == PARTS
    assert {part.state for part in found.parts} == {"found"}
    assert found.exportable
    assert found.text_tokens == 13
    assert found.flow == "raft"
    vae = part(found, "vae")
    assert vae.dtypes == ("float32",)
    assert vae.path == checkpoint / "sd3" / "vae"
    assert vae.bytes == sum(file.stat().st_size for file in vae.path.iterdir())
    reference = load_reference(checkpoint)
    assert part(found, "motion_encoder").parameters == sum(p.numel() for p in reference.motion_encoder.parameters())
    assert part(found, "transformer").tensors == len(reference.restoration_net.transformer.state_dict())


def test_the_one_that_the_package_brings(tmp_path: Path) -> None:
    found = inspect_checkpoint(copy_trained_checkpoint(tmp_path / "small", "small"))
    assert found.exportable
    assert (found.flow, found.tile, found.overlap, found.text_tokens) == ("dis", 64, 16, 4)
    assert [part.name for part in found.parts] == [name for name in PARTS if name != "raft"]


def _drop_vae(root: Path) -> None:
    shutil.rmtree(root / "sd3" / "vae")


def _truncate_transformer(root: Path) -> None:
    file = root / "livemoments" / "transformer" / WEIGHTS
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


def _rename_a_key(root: Path) -> None:
    file = root / "livemoments" / "transformer_ref" / WEIGHTS
    rewrite(
        file, lambda state: {name.replace("blocks.0.attn.to_q", "blocks.0.attn.query"): state[name] for name in state}
    )


def _other_depth(root: Path) -> None:
    file = root / "livemoments" / "transformer_ref" / "config.json"
    config = json.loads(file.read_text()) | {"pos_embed_max_size": 32}
    file.unlink()
    file.write_text(json.dumps(config))


def _narrow_motion(root: Path) -> None:
    save({"blocks.0.0.weight": torch.rand(8, 2, 3, 3), "blocks.0.0.bias": torch.rand(8)}, root / "motion_encoder.pt")


def _few_strides(root: Path) -> None:
    file = root / "motion_encoder.pt"
    state = torch.load(file, weights_only=True)
    widths = [state[f"blocks.0.{i}.weight"].shape[0] for i in (0, 2, 4, 6)]
    first = {"blocks.0.0.weight": torch.rand(widths[-1], 2, 3, 3), "blocks.0.0.bias": torch.rand(widths[-1])}
    save(first | {name: value for name, value in state.items() if not name.startswith("blocks.0.")}, file)


def _small_raft(root: Path) -> None:
    save({"module.fnet.conv1.weight": torch.rand(32, 3, 7, 7)}, root / "raft-sintel.pth")


def _narrow_prompt(root: Path) -> None:
    save(torch.rand(1, 154, 60), root / "prompt_embeds.pt")


def _batch_of_pooled(root: Path) -> None:
    save(torch.rand(2, 32), root / "pooled_prompt_embeds.pt")


def _html_instead_of_scheduler(root: Path) -> None:
    file = root / "sd3" / "scheduler" / "scheduler_config.json"
    file.unlink()
    file.write_text("<html>Access to model is restricted</html>")


def _two_prompts(root: Path) -> None:
    (root / "prompt").mkdir()
    os.link(root / "prompt_embeds.pt", root / "prompt" / "prompt_embeds.pt")


@pytest.mark.parametrize(
    ("damage", "name", "state", "problem", "fix"),
    [
        (_drop_vae, "vae", "missing", "not there", "livemoments fetch {root} --only sd3"),
        (
            _truncate_transformer,
            "transformer",
            "damaged",
            "not a whole safetensors file",
            "livemoments fetch {root} --only livemoments",
        ),
        (
            _rename_a_key,
            "transformer_ref",
            "misshapen",
            "2 missing: transformer_blocks.0.attn.to_q",
            "livemoments fetch {root} --only livemoments",
        ),
        (
            _other_depth,
            "transformer_ref",
            "misshapen",
            "pos_embed is (1, 2304, 128), should be (1, 1024",
            "livemoments",
        ),
        (
            _narrow_motion,
            "motion_encoder",
            "misshapen",
            "is 8 wide, the transformer 128",
            "rm -r {root}/motion_encoder.pt",
        ),
        (_few_strides, "motion_encoder", "misshapen", "shrinks a flow by 2, one token covers 16 pixels", "livemoments"),
        (_small_raft, "raft", "misshapen", "misshapen: fnet.conv1.weight is (32, 3, 7, 7)", "--only raft"),
        (
            _narrow_prompt,
            "prompt_embeds",
            "misshapen",
            "(1, 154, 60), should be (T, 64)",
            "make-prompt {root}/sd3 -o {root}/prompt",
        ),
        (_batch_of_pooled, "pooled_prompt_embeds", "misshapen", "(2, 32), should be (32,)", "make-prompt"),
        (
            _html_instead_of_scheduler,
            "scheduler",
            "damaged",
            "not readable as JSON",
            "livemoments fetch {root} --only sd3",
        ),
        (_two_prompts, "prompt_embeds", "ambiguous", "prompt/prompt_embeds.pt", "keep one of them there"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_each_damage_is_named_with_its_remedy(
    checkpoint: Path, damage: Callable[[Path], None], name: str, state: str, problem: str, fix: str
) -> None:
    damage(checkpoint)
    found = inspect_checkpoint(checkpoint)
    broken = part(found, name)
    assert broken.state == state
    assert problem in broken.problem
    assert str(checkpoint) not in broken.problem  # the table says where it is
    assert fix.format(root=checkpoint) in broken.fix
    assert [other.name for other in found.parts if other.state != "found"] == [name]
    assert not found.exportable
    if damage is not _few_strides:  # which is for the runtime's graphs only: the export's plan refuses it, late
        with pytest.raises(CheckpointError):
            load_reference(checkpoint)


def test_parts_of_a_fetched_folder_are_replaced_by_fetch_itself(checkpoint: Path) -> None:
    """Where fetch puts things, it also replaces them; elsewhere they are moved out of its way first."""
    _truncate_transformer(checkpoint)
    assert not part(inspect_checkpoint(checkpoint), "transformer").fix.startswith("rm")
    (checkpoint / "livemoments").rename(checkpoint / "own")
    assert part(inspect_checkpoint(checkpoint), "transformer").fix == (
        f"rm -r {checkpoint}/own/transformer && livemoments fetch {checkpoint} --only livemoments"
    )


def test_the_encoders_are_fetched_where_they_are_not_there(checkpoint: Path) -> None:
    (checkpoint / "prompt_embeds.pt").unlink()
    make = f"livemoments make-prompt {checkpoint}/sd3 -o {checkpoint}/prompt"
    assert part(inspect_checkpoint(checkpoint), "prompt_embeds").fix == (
        f"livemoments fetch {checkpoint} --only text-encoders && {make}"
    )
    (checkpoint / "sd3" / "text_encoder").mkdir()
    assert part(inspect_checkpoint(checkpoint), "prompt_embeds").fix == make


def test_a_configuration_is_told_what_to_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((tiny_checkpoint / CONFIG_NAME).read_text())
    settings |= {"SD3_weight_path": str(tiny_checkpoint / "sd3"), "pretrained_weight_path": "/path/to/your/weights"}
    del settings["prompt_embeds_path"]
    config = tmp_path / "own.yml"
    config.write_text(yaml.safe_dump(settings))
    found = inspect_checkpoint(config)
    assert found.config == config
    assert part(found, "vae").state == "found"
    transformer = part(found, "transformer")
    assert transformer.problem == "pretrained_weight_path: /path/to/your/weights/transformer does not exist"
    assert transformer.fix.endswith(f"then let pretrained_weight_path name what is in {tmp_path}/livemoments")
    assert part(found, "prompt_embeds").problem == "own.yml names none"


@pytest.mark.parametrize("content", ["{", "[]", '{"latent_channels": [1]}', '{"block_out_channels": {}}', '"x"'])
@pytest.mark.parametrize("name", ["vae", "transformer"])
def test_no_configuration_is_a_crash(checkpoint: Path, content: str, name: str) -> None:
    (file,) = checkpoint.glob(f"*/{name}/config.json")
    whole = json.loads(file.read_text())
    file.unlink()
    own = json.loads(content) if content[0] == "{" and len(content) > 1 else None
    file.write_text(content if own is None else json.dumps(whole | own | {"attention_head_dim": True}))
    assert part(inspect_checkpoint(checkpoint), name).state in ("damaged", "misshapen")


def test_the_command(checkpoint: Path) -> None:
    done = run("inspect", checkpoint)
    assert done.exit_code == 0, done.output
    assert "T = 13" in done.stdout
    assert "every part is there" in done.stdout
    for name in PARTS:
        assert name in done.stdout

    _drop_vae(checkpoint)
    (checkpoint / "raft-sintel.pth").unlink()
    done = run("inspect", checkpoint)
    assert done.exit_code == 2
    assert "it cannot be exported as it is" in done.stdout
    assert f"fix: livemoments fetch {checkpoint} --only raft" in done.stdout


def test_the_json(checkpoint: Path) -> None:
    _drop_vae(checkpoint)
    done = run("inspect", checkpoint, "--json")
    assert done.exit_code == 2
    document = json.loads(done.stdout)
    assert document["exportable"] is False
    assert document["text_tokens"] == 13
    assert [part["name"] for part in document["parts"]] == PARTS
    vae, scheduler = document["parts"][:2]
    assert (vae["state"], vae["path"], vae["fix"]) == ("missing", None, f"livemoments fetch {checkpoint} --only sd3")
    assert (scheduler["state"], scheduler["note"], scheduler["problem"]) == ("found", "shift 3", "")


def test_what_is_neither_is_said_as_before(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "nothing", "--json")
    assert done.exit_code == 2
    assert "no such bundle" in error_of(done)["message"]


def test_an_export_names_inspect(checkpoint: Path, tmp_path: Path) -> None:
    _drop_vae(checkpoint)
    done = run("export", checkpoint, "-o", tmp_path / "bundle")
    assert done.exit_code == 2
    assert f"'livemoments inspect {checkpoint}'" in done.stderr


@pytest.mark.process
def test_the_command_imports_no_torch(checkpoint: Path) -> None:
    code = f"""
import sys
from livemoments.cli import main
assert main(["inspect", {str(checkpoint)!r}]) == 0
assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
