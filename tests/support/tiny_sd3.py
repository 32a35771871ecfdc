"""Stable Diffusion 3's text encoders and tokenizers with random weights, scaled down: the published folder's files and
configurations, of which only widths, depths and vocabularies are smaller."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["!", "a", "b", "!</w>", "a</w>", "b</w>", "ab</w>"]
CLIP_VOCABULARY = [*WORDS, START, END]
T5_VOCABULARY = ["<pad>", "</s>", "<unk>", "▁", "a", "b"]


def make_text_encoders(
    sd3: Path,
    *,
    seed: int = 0,
    widths: tuple[int, int, int] = (32, 40, 96),
    half: bool = False,
    shard: str | None = None,
) -> Path:
    """Write ``tokenizer*`` and ``text_encoder*`` into a folder.

    Args:
        sd3: the folder.
        seed: of the weights.
        widths: of the two CLIPs and of T5, multiples of 4, 5 and 6.
        half: store halves, under the names of the variant ``fp16``.
        shard: T5's files' size, as the library takes it; ``None`` is one file.
    """
    make_tokenizers(sd3)
    torch.manual_seed(seed)
    options = {"variant": "fp16"} if half else {}
    for suffix, width, heads, layers, activation in (
        ("", widths[0], 4, 3, "quick_gelu"),
        ("_2", widths[1], 5, 4, "gelu"),
    ):
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            vocab_size=len(CLIP_VOCABULARY),
            max_position_embeddings=77,
            hidden_act=activation,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
        _save(CLIPTextModelWithProjection(config), sd3 / f"text_encoder{suffix}", half, **options)
    t5 = T5Config(
        d_model=widths[2],
        d_ff=widths[2] * 5 // 2,
        d_kv=16,
        num_heads=6,
        num_layers=3,
        vocab_size=len(T5_VOCABULARY),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    _save(T5EncoderModel(t5), sd3 / "text_encoder_3", half, **options, **({"max_shard_size": shard} if shard else {}))
    return sd3


def make_tokenizers(sd3: Path) -> None:
    """Write the three tokenizers; the second CLIP's pads with another token than it ends with."""
    _clip_tokenizer(sd3 / "tokenizer", END)
    _clip_tokenizer(sd3 / "tokenizer_2", "!")
    _t5_tokenizer(sd3 / "tokenizer_3")


def _save(network: torch.nn.Module, folder: Path, half: bool, **options: str) -> None:
    with torch.no_grad():
        for weight in network.parameters():  # every one of some influence, norms' too
            weight.add_(0.1 * torch.randn(weight.shape))
    (network.half() if half else network).save_pretrained(folder, **options)


def _clip_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir(parents=True)
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    _write(folder / "vocab.json", {token: index for index, token in enumerate(CLIP_VOCABULARY)})
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True},
    )


def _t5_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(Unigram([(token, -float(index)) for index, token in enumerate(T5_VOCABULARY)], unk_id=2))
    tokenizer.add_special_tokens(T5_VOCABULARY[:3])
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", {**special, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"})


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))
