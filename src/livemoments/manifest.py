"""The manifest of a bundle: what is in it, where it came from, and how good it was measured to be.

Everything here is data (msgspec structs, JSON on disk); ``bundle.py`` reads and writes it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from livemoments.types import FlowNetwork, Size, Stage, TensorSpec, whole_bundle

SCHEMA_VERSION = 1

# Bounds of what a manifest may say: far beyond every real one, near enough that nothing made from it hangs.
Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
Elements = Annotated[int, Meta(ge=0, le=1 << 50)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Error = Annotated[float, Meta(ge=0, le=1e12)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
EngineLibrary = Literal["tensorrt", "rtx"]
EngineVia = Literal["onnx", "torch-tensorrt"]
APPLE_TARGETS = ("coreml", "coreai")
"""Targets whose stages are packages for Apple's systems: run as a whole, for images of their own sizes only."""
MAX_FILES = 20_000
MAX_GRAPHS = 1_000
MAX_POINTS = 10_000
_NEVER_SMOOTHED = ("int8-dynamic", "int8-weights", "int4-weights", "fp8", "fp16")
"""Recipes of releases that did not write ``smoothed``."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the manifest's structs: immutable, strict."""


class FileEntry(_Entry):
    """Size and SHA-256 of one file."""

    sha256: Digest
    bytes: Bytes


class Source(_Entry):
    """The checkpoint a bundle was made from: each file, by its path relative to the checkpoint."""

    name: str
    files: Annotated[dict[str, FileEntry], Meta(max_length=MAX_FILES)]


class Model(_Entry, omit_defaults=True):
    """What the runtime must know of the networks.

    ``latent = (posterior_sample - latent_shift) * latent_scaling``; ``vae_scale`` is image pixels per latent pixel.
    ``flow`` is ``dis`` where the checkpoint brings no RAFT, so that by design the bundle has no stage ``flow``; the
    manifests of all others do not mention it, and read as before it was there.
    """

    num_blocks: Count
    num_heads: Count
    head_dim: Count
    patch_size: Count
    text_tokens: Annotated[int, Meta(ge=0, le=1 << 20)]
    latent_channels: Count
    vae_scale: Count
    latent_shift: Annotated[float, Meta(ge=-1e6, le=1e6)]
    latent_scaling: Positive
    flow: FlowNetwork = "raft"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a whole bundle, in the order in which a tile passes through them."""
        return whole_bundle(self.flow)


class SchedulePoint(_Entry):
    """One entry of the step tables: the network sees ``timestep`` (= 1000 sigma), the sampler ``sigma``."""

    timestep: Annotated[float, Meta(ge=0, le=1e6)]
    sigma: Annotated[float, Meta(ge=0, le=1)]


class Schedule(_Entry, omit_defaults=True):
    """The timesteps folded into the graphs, and which of them each step count uses.

    ``points`` are in descending sigma; the graphs' ``step`` input indexes them. ``plans["6"]`` lists the points
    of six-step sampling. ``noise_level`` is 0.2: ``z_t = (1 - noise_level) z_lr + noise_level * noise``. ``indices``
    are the points' places in the training schedule; bundles that were exported before they were kept have none.
    """

    points: Annotated[tuple[SchedulePoint, ...], Meta(min_length=1, max_length=MAX_POINTS)]
    plans: Annotated[dict[str, tuple[int, ...]], Meta(min_length=1, max_length=MAX_POINTS)]
    default_steps: Count
    noise_level: Annotated[float, Meta(ge=0, le=1)]
    indices: Annotated[tuple[Count, ...], Meta(max_length=MAX_POINTS)] = ()


class EngineFile(_Entry, omit_defaults=True):
    """A file that a vendor's compiler made of a graph, with everything that decides whether it may be opened.

    ``library`` is ``tensorrt`` or ``rtx`` (TensorRT for RTX), ``version`` that library's. ``size`` (``WxH``) and
    ``batch`` are fixed in it. ``sm`` are the compute capabilities that it was built for, ``graph_sha256`` is
    :meth:`Bundle.graph_digest` of the graph at that time. ``flags`` are the options of ``livemoments build`` that
    differ from their defaults, without the dashes. ``gpu`` and ``driver`` are those of the building machine, where the
    library built for what it found there.

    ``via`` is the road by which the network came to the library: its own parser, from the graph, or torch-tensorrt,
    from the checkpoint that the graph was exported from. ``layers`` counts that network's; 0: a release that did not
    write it.
    """

    path: str
    library: EngineLibrary
    version: str
    size: str
    batch: Count
    sm: Annotated[tuple[Annotated[str, Meta(pattern=r"^\d{1,2}\.\d$")], ...], Meta(min_length=1, max_length=32)]
    graph_sha256: Digest
    flags: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    gpu: str | None = None
    driver: str | None = None
    via: EngineVia = "onnx"
    layers: Elements = 0

    @property
    def place(self) -> tuple[str, str, int, str]:
        """Library, size, batch and road: of each there is one engine of a graph."""
        return self.library, self.size, self.batch, self.via


class Graph(_Entry, omit_defaults=True):
    """One graph file of a stage.

    ``size`` is the tile it was traced for as ``WxH``, or ``any`` when height and width are free axes.
    Paths are relative to the bundle. ``weights`` are the external data files that the graph refers to; ``engines`` were
    built from it (manifests of bundles without any read as before these were there).
    """

    path: str
    size: str
    weights: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engines: Annotated[tuple[EngineFile, ...], Meta(max_length=MAX_GRAPHS)] = ()

    @property
    def identity(self) -> tuple[str, str]:
        """Path and size, which tell it from the bundle's others: packages of several functions share a path."""
        return self.path, self.size

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that belongs to it: the graph, its weights, its engines."""
        return self.path, *self.weights, *(engine.path for engine in self.engines)


class StageParity(_Entry):
    """Parity measured at export: relative L2 error of the worst output against the float32 reference; of a stage that
    was quantized, against the source bundle's engine.

    ``points`` are the schedule's points that were compared, for the stages that take a step.
    """

    size: str
    rel_l2: Error
    limit: Positive
    output: str
    points: tuple[int, ...] = ()


class StageEntry(_Entry):
    """One stage: its precision, its graphs (one per tile size, sharing weights) and its measured parity.

    ``parameters`` counts stored elements after folding, ``parameters_before`` those of the checkpoint's network.
    """

    precision: str
    graphs: Annotated[tuple[Graph, ...], Meta(min_length=1, max_length=MAX_GRAPHS)]
    parity: Annotated[tuple[StageParity, ...], Meta(max_length=MAX_GRAPHS)]
    parameters: Elements
    parameters_before: Elements

    def graph(self, size: Size) -> Graph | None:
        """The graph for tiles of this size: an exact match, else one with free axes, else None."""
        exact = [g for g in self.graphs if g.size == str(size)]
        free = [g for g in self.graphs if g.size == "any"]
        return next(iter(exact + free), None)


class Manifest(_Entry):
    """``manifest.json``. ``tiles`` are the sizes (``WxH``) for which every tile stage has a graph.

    ``kv_layout`` is ``per-block`` (one tensor per block for keys and one for values) or ``stacked`` (one
    ``reference_kv`` tensor (L,2,B,S,D)). ``recipe`` names the quantization recipe, ``None`` when there is none;
    ``smoothed`` says whether it moved scales from norms into weights (SmoothQuant); the manifests of exports, and those
    of releases that did not say it, lack it.
    """

    schema_version: int
    producer: str
    target: str
    precision: str
    source: Source
    model: Model
    schedule: Schedule
    tiles: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_GRAPHS)]
    overlap: Annotated[int, Meta(ge=0, le=1 << 20)]
    reference_policy: str
    kv_layout: str
    stages: dict[str, StageEntry]
    toolchain: dict[str, str]
    files: Annotated[dict[str, FileEntry], Meta(max_length=MAX_FILES)]
    recipe: str | None = None
    calibration_sha256: str | None = None
    calibration_seed: int | None = None
    gpu_architecture: str | None = None
    smoothed: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def may_be_smoothed(self) -> bool:
        """Whether scales may have been moved from norms into weights.

        Where the manifest does not say it, the recipe's name decides; a user's own recipe may have moved them.
        """
        if self.smoothed is not msgspec.UNSET:
            return self.smoothed
        return self.recipe is not None and self.recipe not in _NEVER_SMOOTHED
