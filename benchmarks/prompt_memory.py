"""Memory and time of `livemoments make-prompt` with text encoders of the published sizes and random weights.

    python benchmarks/prompt_memory.py [--work DIR] [--dtype float16|float32]

Method. The three encoders are written with the published configurations (T5 v1.1 XXL's encoder has 4.76 billion
parameters) and random values; 11 GB as halves. `make-prompt` then runs as a fresh process, once as it comes and once
with `--without-t5`. Peak resident memory is what the operating system gives; of it, the peak that is not mapped from
the weights' files (RssAnon, read twenty times a second) is what must be there: mapped pages are dropped when others
need the room.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import write_record
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from livemoments.reference.shards import write_sharded
from livemoments.store.safetensors_file import ITEM_BYTES
from livemoments.validate.cost.fresh_process import measure_process

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from tiny_sd3 import make_tokenizers

EVERY_S = 0.05
SHARD_BYTES = 5_000_000_000
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
SPREAD = 0.02
"""Of the random weights: every activation stays finite."""


def write_encoders(sd3: Path, dtype: str) -> dict[str, int]:
    """Write the encoders and return their parameters by folder."""
    make_tokenizers(sd3)
    with torch.device("meta"):
        networks = {
            "text_encoder": CLIPTextModelWithProjection(
                CLIPTextConfig(**CLIP_L, **CLIP, projection_dim=768, hidden_act="quick_gelu")
            ),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**CLIP_G, **CLIP, projection_dim=1280, hidden_act="gelu")
            ),
            "text_encoder_3": T5EncoderModel(
                T5Config(**T5_XXL, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
            ),
        }
    pool = (SPREAD * np.random.default_rng(0).standard_normal(1 << 24)).astype(dtype)

    def pieces(elements: int) -> Iterator[bytes]:
        for start in range(0, elements, pool.size):
            yield pool[: min(pool.size, elements - start)].tobytes()

    counts = {}
    for name, network in networks.items():
        folder = sd3 / name
        folder.mkdir()
        network.config.save_pretrained(folder)
        shapes = {key: tuple(weight.shape) for key, weight in network.state_dict().items()}
        shapes.pop("encoder.embed_tokens.weight", None)  # the other name of T5's table
        write_sharded(
            folder, "model", shapes, dtype, lambda key, shapes=shapes: pieces(math.prod(shapes[key])), SHARD_BYTES
        )
        counts[name] = sum(math.prod(shape) for shape in shapes.values())
    return counts


class Anonymous:
    """Watches the launcher's child: the peak of the memory that no file backs, bytes."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    @contextlib.contextmanager
    def __call__(self, launcher: int) -> Iterator[None]:
        """Watch while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(launcher, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, launcher: int, done: threading.Event) -> None:
        while not done.wait(EVERY_S):
            with contextlib.suppress(OSError, LookupError, TypeError):
                child = int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[0])
                found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text())
                self.peak_bytes = max(self.peak_bytes, int(found[1]) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the weights (default: temporary)")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="livemoments-prompt-", dir=options.work) as name:
        work = Path(name)
        counts = write_encoders(work / "sd3", options.dtype)
        rows = {}
        for title, extra in (("with T5, T = 333", []), ("without T5", ["--without-t5"])):
            anonymous = Anonymous()
            arguments = ["make-prompt", str(work / "sd3"), "-o", str(work / title.split()[0]), *extra]
            cost = measure_process([sys.executable, "-m", "livemoments", *arguments], watch=anonymous)
            if cost.returncode:
                raise SystemExit(f"{title} failed:\n{cost.stderr}")
            rows[title] = {
                "command": "livemoments " + " ".join(argument.replace(name, "WORK") for argument in arguments),
                "wall_s": round(cost.wall_s, 1),
                "peak_rss_gib": round(cost.peak_rss_bytes / 2**30, 2),
                "peak_not_mapped_gib": round(anonymous.peak_bytes / 2**30, 2),
            }
            print(title, json.dumps(rows[title]), flush=True)
        stored = {part: round(count * ITEM_BYTES[options.dtype] / 1e9, 2) for part, count in counts.items()}
        record = {"stored": options.dtype, "parameters": counts, "stored_gb": stored, "runs": rows}
        print(write_record("prompt-memory", record))


if __name__ == "__main__":
    main()
