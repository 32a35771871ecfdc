"""The empty prompt through Stable Diffusion 3's three text encoders, as diffusers' ``encode_prompt`` computes it.

Two CLIP encoders give 77 tokens each, side by side and padded to T5's width; T5's tokens follow; the CLIPs' projections
are the pooled embedding (Esser et al., "Scaling Rectified Flow Transformers", 2024, section 4 and figure 2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from livemoments.errors import CheckpointError, OutputError, ResourceError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.store.errors import output_errors
from livemoments.store.folders import StagedFolder, check_destination, stage_folder
from livemoments.store.names import check_utf8
from livemoments.version import __version__
from livemoments.weights.digests import sha256_of
from livemoments.weights.text_encoders import Stored, clip_encoder, t5_encoder, t5_width, weight_files

TOKENS_FILE, POOLED_FILE = "prompt_embeds.pt", "pooled_prompt_embeds.pt"
"""As upstream's configuration names them; its code can read them."""
RECORD = "prompt.json"
T5_TOKENS = (77, 256)
"""What the T5 part may be long: as in diffusers' training scripts, and as its pipeline has it by default."""
_PROMPT = ""
_T5_WIDTH = 4096
"""Of the published T5, for a folder without even its configuration."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The prompt's embeddings.

    Attributes:
        tokens: (T, width of T5), float32.
        pooled: (both CLIPs' projections,), float32.
        encoders: by folder, what was read.
    """

    tokens: Tensor
    pooled: Tensor
    encoders: dict[str, Stored]


def make_prompt(
    sd3: str | Path,
    folder: str | Path,
    *,
    t5_tokens: int = 256,
    with_t5: bool = True,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Encode the empty prompt and write its embeddings, whole or not at all.

    Args:
        sd3: Stable Diffusion 3's folder: ``tokenizer``, ``text_encoder``, and the same with ``_2`` and ``_3``.
        folder: where to write.
        t5_tokens: how many tokens the T5 part has, 77 or 256; T is 77 more.
        with_t5: without it T5's tokens are zeros, as in diffusers.
        overwrite: replace an older prompt.
        progress: receives the progress.

    Returns:
        What ``prompt.json`` says: how the tensors were made, of which files, and their hashes.

    Raises:
        CheckpointError: a file is missing or damaged, or encoders that do not fit together.
        UsageError: another number of tokens.
        OutputError: the place holds something else, or cannot be written.
        ResourceError: memory or disk ran out.
    """
    if t5_tokens not in T5_TOKENS:
        raise UsageError(f"a T5 part of {t5_tokens} tokens", fix=f"use {' or '.join(map(str, T5_TOKENS))}")
    sd3 = Path(sd3)
    check_utf8(sd3, CheckpointError)
    target = check_destination(folder, is_ours=_is_prompt, kind="a prompt", overwrite=overwrite)
    if target.is_relative_to(sd3.absolute()):
        raise OutputError(folder, "lies in Stable Diffusion 3's folder", fix="write beside it")
    try:
        found = encode_empty_prompt(sd3, t5_tokens=t5_tokens, with_t5=with_t5, progress=progress)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"out of memory in a text encoder ({error})", fix="try --without-t5") from None
    with output_errors(target), stage_folder(target) as staged:
        for name, tensor in ((TOKENS_FILE, found.tokens), (POOLED_FILE, found.pooled)):
            torch.save(tensor, staged / name)
        record = _record(sd3, staged, found, t5_tokens if with_t5 else 0, progress)
        (staged / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        StagedFolder(target, staged, overwrite=overwrite, is_ours=_is_prompt).publish()
    return record


def encode_empty_prompt(
    sd3: Path, *, t5_tokens: int = 256, with_t5: bool = True, progress: Progress = SILENT
) -> Embeddings:
    """The embeddings alone; arguments and errors as :func:`make_prompt`'s. One encoder is loaded at a time."""
    with progress.task("encoding the empty prompt", total=3 if with_t5 else 2) as task, torch.inference_mode():
        _check_folders(sd3, with_t5=with_t5)
        stored: dict[str, Stored] = {}
        clips: list[Tensor] = []
        pooled: list[Tensor] = []
        max_tokens: int | None = None  # both CLIPs': that of the first, as in diffusers
        for suffix in ("", "_2"):
            tokenizer = _tokenizer(CLIPTokenizer, sd3 / f"tokenizer{suffix}")
            max_tokens = max_tokens or tokenizer.model_max_length
            encoder, stored[f"text_encoder{suffix}"] = clip_encoder(sd3 / f"text_encoder{suffix}")
            outputs = encoder(_ids(tokenizer, max_tokens), output_hidden_states=True)
            clips.append(outputs.hidden_states[-2])
            pooled.append(outputs.text_embeds)
            del encoder, outputs
            task.advance(note=f"text_encoder{suffix}")
        t5_folder = sd3 / "text_encoder_3"
        if with_t5:
            network, stored["text_encoder_3"] = t5_encoder(t5_folder)
            t5 = network(_ids(_tokenizer(T5TokenizerFast, sd3 / "tokenizer_3"), t5_tokens))[0]
            del network
            task.advance(note="text_encoder_3")
        else:
            width = t5_width(t5_folder) if (t5_folder / "config.json").is_file() else _T5_WIDTH
            t5 = torch.zeros(1, t5_tokens, width)
        side_by_side = torch.cat(clips, dim=-1)
        if side_by_side.shape[-1] > t5.shape[-1]:
            message = f"the CLIPs are {side_by_side.shape[-1]} wide together, T5 is {t5.shape[-1]}"
            raise CheckpointError(sd3, message, fix="name Stable Diffusion 3 medium's folder")
        padded = F.pad(side_by_side, (0, t5.shape[-1] - side_by_side.shape[-1]))
        tokens = torch.cat([padded, t5], dim=-2)[0].clone()
        embeddings = Embeddings(tokens, torch.cat(pooled, dim=-1)[0].clone(), stored)
    if not (torch.isfinite(embeddings.tokens).all() and torch.isfinite(embeddings.pooled).all()):
        raise CheckpointError(sd3, "the text encoders compute NaN or infinity", fix="compare the files' hashes")
    return embeddings


def _check_folders(sd3: Path, *, with_t5: bool) -> None:
    suffixes = ("", "_2", "_3") if with_t5 else ("", "_2")
    needed = [f"{kind}{suffix}" for suffix in suffixes for kind in ("tokenizer", "text_encoder")]
    if missing := [name for name in needed if not (sd3 / name).is_dir()]:
        fix = "bring them with 'livemoments fetch DIR --only text-encoders'"
        raise CheckpointError(sd3, f"lacks {', '.join(missing)}", fix=fix)
    for suffix in suffixes:  # before minutes of work
        weight_files(sd3 / f"text_encoder{suffix}")


def _tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises whatever a missing or damaged file provokes
        first = next(iter(str(error).splitlines()), type(error).__name__)
        fix = "bring it with 'livemoments fetch DIR --only text-encoders'"
        raise CheckpointError(folder, f"cannot be read as a tokenizer ({first})", fix=fix) from None


def _ids(tokenizer: Any, length: int) -> Tensor:
    """The empty prompt's token ids, padded, (1, length)."""
    found = tokenizer([_PROMPT], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


def _record(sd3: Path, staged: Path, found: Embeddings, t5_tokens: int, progress: Progress) -> dict[str, Any]:
    files = [file for stored in found.encoders.values() for file in stored.files]
    encoders = {}
    with progress.task("hashing the text encoders", total=sum(file.stat().st_size for file in files)) as task:
        for name, stored in found.encoders.items():
            hashes = {}
            for file in (*_small_files(sd3 / name), *_small_files(sd3 / name.replace("text_encoder", "tokenizer"))):
                hashes[file.relative_to(sd3).as_posix()] = sha256_of(file)
            for file in stored.files:
                hashes[file.relative_to(sd3).as_posix()] = sha256_of(file)
                task.advance(file.stat().st_size)
            encoders[name] = {"stored": stored.dtypes, "sha256": hashes}
    return {
        "prompt": _PROMPT,
        "tokens": found.tokens.shape[0],
        "t5_tokens": t5_tokens,
        "computed": "float32",
        "encoders": encoders,
        "tensors": {
            name: {"shape": list(tensor.shape), "sha256": sha256_of(staged / name)}
            for name, tensor in ((TOKENS_FILE, found.tokens), (POOLED_FILE, found.pooled))
        },
        "made_by": {
            "livemoments-deploy": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }


def _small_files(folder: Path) -> Sequence[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".safetensors")


def _is_prompt(folder: Path) -> bool:
    return (folder / RECORD).is_file()
