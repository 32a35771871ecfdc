"""``livemoments make-prompt``: equal to diffusers' ``encode_prompt``, whole or not at all, and its mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_support import error_of, run
from safetensors.torch import load_file, save_file
from tiny_sd3 import make_text_encoders
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from livemoments.errors import CheckpointError, OutputError, UsageError
from livemoments.reference.weights import read_tensor
from livemoments.weights.digests import sha256_of
from livemoments.weights.prompt import RECORD, encode_empty_prompt, make_prompt
from livemoments.weights.text_encoders import clip_encoder, t5_encoder

LIMIT = 1e-6
"""Relative to the largest value: both compute in float32."""
WIDTHS = (32, 40, 96)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoders(tmp_path_factory.mktemp("sd3"), seed=torch.seed() % 1000)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: halves under the names of the variant fp16, T5 in shards."""
    return make_text_encoders(tmp_path_factory.mktemp("sd3"), seed=torch.seed() % 1000, half=True, shard="100KB")


def by_diffusers(sd3: Path, variant: str | None, t5_tokens: int, with_t5: bool) -> tuple[torch.Tensor, torch.Tensor]:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    def encoder(kind: type, name: str) -> torch.nn.Module:
        return kind.from_pretrained(sd3 / name, variant=variant, dtype=torch.float32)

    transformer = SD3Transformer2DModel(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=WIDTHS[2],
        caption_projection_dim=16,
        pooled_projection_dim=WIDTHS[0] + WIDTHS[1],
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=None,
        vae=None,
        text_encoder=encoder(CLIPTextModelWithProjection, "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(sd3 / "tokenizer"),
        text_encoder_2=encoder(CLIPTextModelWithProjection, "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(sd3 / "tokenizer_2"),
        text_encoder_3=encoder(T5EncoderModel, "text_encoder_3") if with_t5 else None,
        tokenizer_3=T5TokenizerFast.from_pretrained(sd3 / "tokenizer_3") if with_t5 else None,
    )
    with torch.inference_mode():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            "", "", "", device="cpu", do_classifier_free_guidance=False, max_sequence_length=t5_tokens
        )
    return tokens[0], pooled[0]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("with_t5", [True, False], ids=["T5", "without T5"])
@pytest.mark.parametrize("t5_tokens", [77, 256])
@pytest.mark.parametrize("stored", ["whole", "halves"])
def test_equal_to_diffusers(request: pytest.FixtureRequest, stored: str, t5_tokens: int, with_t5: bool) -> None:
    sd3 = request.getfixturevalue(stored)
    found = encode_empty_prompt(sd3, t5_tokens=t5_tokens, with_t5=with_t5)
    tokens, pooled = by_diffusers(sd3, "fp16" if stored == "halves" else None, t5_tokens, with_t5)
    assert found.tokens.shape == (77 + t5_tokens, WIDTHS[2])
    assert found.pooled.shape == (WIDTHS[0] + WIDTHS[1],)
    assert distance(found.tokens, tokens) <= LIMIT
    assert distance(found.pooled, pooled) <= LIMIT
    assert bool(found.tokens[77:].any()) == with_t5
    assert float(found.tokens[:77].std()) > 0.1
    assert not found.tokens[:77, WIDTHS[0] + WIDTHS[1] :].any()


def test_halves_are_computed_with_as_floats(halves: Path) -> None:
    """Computed with as halves they would be off by far more than the limit."""
    network, stored = t5_encoder(halves / "text_encoder_3")
    ids = torch.tensor([[1, 3, 4, 5, 0]])
    with torch.inference_mode():
        ours = network(ids)[0]
        plain = T5EncoderModel.from_pretrained(halves / "text_encoder_3", variant="fp16", dtype=torch.float16)(ids)[0]
    assert ours.dtype == torch.float32
    assert distance(plain.float(), ours) > 100 * LIMIT
    assert stored.dtypes == ["float16"]


def test_between_two_uses_only_the_mapped_halves_are_there(halves: Path) -> None:
    for network in (clip_encoder(halves / "text_encoder")[0], t5_encoder(halves / "text_encoder_3")[0]):
        weights = list(network.parameters())
        with torch.inference_mode():
            first = network(torch.tensor([[1, 3, 4]]))[0].clone()
            assert {weight.dtype for weight in weights} == {torch.float16}
            torch.testing.assert_close(network(torch.tensor([[1, 3, 4]]))[0], first, rtol=0, atol=0)
        with pytest.raises((IndexError, RuntimeError)), torch.inference_mode():
            network(torch.tensor([[1, 999]]))  # a layer that fails gives its floats back, too
        assert {weight.dtype for weight in network.parameters()} == {torch.float16}


def test_t5s_table_under_either_name(whole: Path, tmp_path: Path) -> None:
    """Some files hold it as shared.weight, some as encoder.embed_tokens.weight, some twice."""
    expected = t5_encoder(whole / "text_encoder_3")[0].shared.weight
    state = load_file(whole / "text_encoder_3" / "model.safetensors")
    table = state.pop("shared.weight")
    for names in (["shared.weight"], ["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        shutil.copy(whole / "text_encoder_3" / "config.json", folder)
        save_file(state | {name: table.clone() for name in names}, folder / "model.safetensors")
        network = t5_encoder(folder)[0]
        assert torch.equal(network.shared.weight, expected)
        assert network.encoder.get_input_embeddings().weight is network.shared.weight


def test_positions_in_old_files_of_clip_are_ignored(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "text_encoder", tmp_path / "text_encoder")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "model.safetensors")
    clip_encoder(folder)


def test_what_is_written(halves: Path, tmp_path: Path) -> None:
    record = make_prompt(halves, tmp_path / "prompt", t5_tokens=77)
    assert sorted(path.name for path in (tmp_path / "prompt").iterdir()) == [
        "pooled_prompt_embeds.pt",
        "prompt.json",
        "prompt_embeds.pt",
    ]
    found = encode_empty_prompt(halves, t5_tokens=77)
    assert torch.equal(read_tensor(tmp_path / "prompt" / "prompt_embeds.pt"), found.tokens)
    assert torch.equal(read_tensor(tmp_path / "prompt" / "pooled_prompt_embeds.pt"), found.pooled)
    assert json.loads((tmp_path / "prompt" / RECORD).read_text()) == record
    assert (record["prompt"], record["tokens"], record["t5_tokens"]) == ("", 154, 77)
    t5 = record["encoders"]["text_encoder_3"]
    assert t5["stored"] == ["float16"]
    assert len([name for name in t5["sha256"] if name.endswith(".safetensors")]) > 1
    for encoder in record["encoders"].values():
        for name, digest in encoder["sha256"].items():
            assert sha256_of(halves / name) == digest
    for name, entry in record["tensors"].items():
        assert sha256_of(tmp_path / "prompt" / name) == entry["sha256"]


def test_an_older_prompt_is_replaced_only_when_asked(whole: Path, tmp_path: Path) -> None:
    make_prompt(whole, tmp_path / "prompt", t5_tokens=77)
    with pytest.raises(OutputError, match=r"exists already\n  fix: pass --overwrite"):
        make_prompt(whole, tmp_path / "prompt")
    assert make_prompt(whole, tmp_path / "prompt", overwrite=True)["tokens"] == 333
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a prompt"):
        make_prompt(whole, tmp_path / "other", overwrite=True)
    with pytest.raises(OutputError, match="lies in Stable Diffusion 3's folder"):
        make_prompt(whole, whole / "prompt")


def test_mistakes_are_named_and_leave_nothing(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"512 tokens\n  fix: use 77 or 256"):
        make_prompt(whole, tmp_path / "prompt", t5_tokens=512)
    sd3 = shutil.copytree(whole, tmp_path / "sd3")
    (sd3 / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder_2: holds no model\.safetensors.*\n  fix: .*text-encoders"):
        make_prompt(sd3, tmp_path / "prompt")
    shutil.rmtree(sd3 / "text_encoder_2")
    with pytest.raises(CheckpointError, match="lacks text_encoder_2"):
        make_prompt(sd3, tmp_path / "prompt")
    shutil.copytree(whole / "text_encoder", sd3 / "text_encoder_2")
    (sd3 / "text_encoder_2" / "config.json").write_bytes((whole / "text_encoder_2" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="the weights do not fit the configuration"):
        make_prompt(sd3, tmp_path / "prompt")
    shutil.copytree(whole / "text_encoder_2", sd3 / "text_encoder_2", dirs_exist_ok=True)
    (sd3 / "tokenizer_3" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        make_prompt(sd3, tmp_path / "prompt")
    state = load_file(sd3 / "text_encoder" / "model.safetensors")
    state["text_model.encoder.layers.1.mlp.fc1.bias"][3] = torch.nan
    save_file(state, sd3 / "text_encoder" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights in mlp\.fc1\.bias"):
        make_prompt(sd3, tmp_path / "prompt")
    assert not (tmp_path / "prompt").exists()


def test_without_t5_its_files_need_not_be_there(whole: Path, tmp_path: Path) -> None:
    sd3 = shutil.copytree(whole, tmp_path / "sd3", ignore=shutil.ignore_patterns("*_3"))
    assert encode_empty_prompt(sd3, with_t5=False).tokens.shape == (333, 4096)
    with pytest.raises(CheckpointError, match="lacks tokenizer_3, text_encoder_3"):
        encode_empty_prompt(sd3)


def test_the_command(whole: Path, tmp_path: Path) -> None:
    done = run("make-prompt", whole, "-o", tmp_path / "prompt", "--tokens", "77", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["folder"], document["tokens"]) == (str(tmp_path / "prompt"), 154)
    done = run("make-prompt", whole, "-o", tmp_path / "prompt", "--without-t5", "--overwrite")
    assert "the empty prompt, T = 333, zeros in place of T5" in done.stdout
    done = run("make-prompt", tmp_path / "nothing", "-o", tmp_path / "other", "--json")
    assert done.exit_code == 2
    assert "lacks tokenizer, text_encoder" in error_of(done)["message"]
