"""A bundle of two small files that are no graphs: for tests of the folder, not of what runs."""

from __future__ import annotations

from pathlib import Path

from livemoments.bundle import BundleWriter, write_bundle
from livemoments.manifest import SCHEMA_VERSION, Graph, Manifest, Model, Source, StageEntry
from livemoments.schedule import build_schedule
from livemoments.types import TensorSpec

GRAPH, WEIGHTS = "flow/any.onnx", "flow/weights.data"


def manifest_for(writer: BundleWriter) -> Manifest:
    image = TensorSpec("image", "float32", ("batch", 3, 64, 64))
    graph = Graph(path=GRAPH, size="any", weights=(WEIGHTS,), inputs=(image,), outputs=(image,))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        producer="tests",
        target="onnx",
        precision="fp32",
        source=Source(name="none", files={}),
        model=Model(
            num_blocks=1,
            num_heads=1,
            head_dim=8,
            patch_size=2,
            text_tokens=0,
            latent_channels=16,
            vae_scale=8,
            latent_shift=0.0,
            latent_scaling=1.0,
        ),
        schedule=build_schedule((1, 6)),
        tiles=("64x96",),
        overlap=16,
        reference_policy="per-step",
        kv_layout="per-block",
        stages={"flow": StageEntry(precision="fp32", graphs=(graph,), parity=(), parameters=1, parameters_before=1)},
        toolchain={},
        files=writer.hash_files(),
    )


def write_small_bundle(folder: Path, *, content: bytes = b"graph", overwrite: bool = False) -> Path:
    with write_bundle(folder, overwrite=overwrite) as writer:
        (writer.folder / "flow").mkdir()
        (writer.folder / GRAPH).write_bytes(content)
        (writer.folder / WEIGHTS).write_bytes(content * 1000)
        writer.commit(manifest_for(writer))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
