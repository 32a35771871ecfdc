"""How a photo is restored: one set of options for ``restore``, the command line, reports, journals and workers."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from livemoments.bundle import Bundle
from livemoments.errors import MissingExtraError, UsageError
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.backends.ort_providers import DeviceLimits
from livemoments.runtime.flow import KINDS, FlowKind, resolve_flow
from livemoments.runtime.image_files.encode import DEEP_FORMATS, format_of
from livemoments.runtime.keys_values.codecs import find_codec
from livemoments.runtime.schedule import plan_steps
from livemoments.types import VAE_STAGES, ReferencePolicy, Size

KV_BUDGET_BYTES = 4 << 30
"""Default for phase-split's keys and values: one full-size 1024-pixel tile in float16, six steps (3.7 GiB)."""
KV_CACHE_BUDGET_BYTES = 64 << 30
"""Default for the folder of a cache: twelve such tiles take 44 GiB, with the policy ``frozen`` 7 GiB."""
_BUDGETS = ("kv_budget_bytes", "kv_cache_budget_bytes")
_NO_RESULT = (
    *("threads", "gpu_memory_bytes", "cuda_graphs", "residency"),
    *("kv_store", "kv_cache", *_BUDGETS, "bit_depth", "quality"),
)
Residency = Literal["all", "phases", "mapped", "streamed"]
RESIDENCIES: tuple[Residency, ...] = get_args(Residency)
"""In the order of the memory that they take, the most first."""


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """The options of :func:`livemoments.runtime.restore.restore`.

    Attributes:
        seed: of the noise, which is drawn from the seed and the tile's corner: the same seed gives the same picture for
            any order of tiles and any batch.
        steps: sampling steps; ``None``: the bundle's.
        reference: when ReferenceNet runs; ``None``: the bundle's policy.
        flow: ``engine`` (RAFT) or ``dis`` (OpenCV); ``None``: the engine of a bundle whose checkpoint has RAFT, and
            ``dis`` with all others.
        compat: ``upstream`` reproduces upstream's tiling, grey border and 8-bit colour fix, and ignores profiles.
        tile_plan: ``balanced``, or ``upstream``'s padding to whole strides; ``None``: as ``compat`` says.
        tile: tile size of the bundle to use, also as ``WxH``; ``None``: the best for each photo.
        vae_tile: pixels that the VAE sees at once, also as ``WxH``, blended where a tile is larger: less memory,
            another picture (:mod:`livemoments.runtime.tiles.vae`); ``None``: whole tiles.
        batch: tiles computed at once.
        pad_small: reflect photos that are smaller than every tile.
        residency: which engines are loaded at once: ``all`` keeps those that are still needed, ``phases`` only those of
            the phase at work (:data:`livemoments.runtime.engine_pool.PHASES`), opened anew for every group of tiles:
            the same picture with less memory, whatever the policy. ``mapped`` is that with the transformers' weights
            left in their files, on the CPU (rounding of float32's last digits differs); ``streamed`` is that with one
            block of a transformer at a time, loaded for every run.
        no_pcr: cut every reference tile at its tile's own place: an ablation of PCR.
        pcr_grid: pixels of a grid to which PCR's reference corners are moved, so that the frames of a Live Photo share
            reference tiles, and ``kv_cache`` finds their keys and values; 1: PCR as it is. It moves a reference by up
            to half of that.
        kv_store: where ``phase-split`` and ``phases`` keep keys and values.
        kv_dtype: how stored keys and values are kept: ``native``, ``float16``, ``int8`` or ``fp8``.
        kv_budget_bytes: how much of them may be stored at once.
        provider: what runs the graphs (:class:`livemoments.runtime.backends.ort.OrtBackend`), or ``native-tensorrt`` or
            ``native-rtx`` for the engines built from them (:class:`livemoments.tensorrt.backend.TensorRtBackend`).
        gpu_memory_bytes: the most that an engine may take of a GPU's memory, where the provider knows a limit
            (:class:`livemoments.runtime.backends.ort_providers.DeviceLimits`).
        cuda_graphs: record the kernels of a run once and replay them, on NVIDIA's GPUs.
        threads: within an operator; ``None``: ``OMP_NUM_THREADS``, else one per core.
        kv_cache: a folder in which keys and values outlive the run, found again by content.
        kv_cache_budget_bytes: what the folder may hold; the least recently used entries go first.
        bit_depth: 8 or 16 bits per channel of the result; ``None``: the photo's.
        quality: the quality of a JPEG, WebP or HEIC file, 1 to 100.
    """

    seed: int = 0
    steps: int | None = None
    reference: str | None = None
    flow: FlowKind | None = None
    compat: Literal["upstream"] | None = None
    tile_plan: Literal["balanced", "upstream"] | None = None
    tile: Size | None = None
    vae_tile: Size | None = None
    batch: int = 1
    pad_small: bool = False
    no_pcr: bool = False
    pcr_grid: int = 1
    residency: Residency = "all"
    kv_store: Literal["host", "disk"] = "host"
    kv_dtype: str = "native"
    kv_budget_bytes: int = KV_BUDGET_BYTES
    provider: str = "cpu"
    gpu_memory_bytes: int | None = None
    cuda_graphs: bool = False
    threads: int | None = None
    kv_cache: str | os.PathLike[str] | None = None
    kv_cache_budget_bytes: int = KV_CACHE_BUDGET_BYTES
    bit_depth: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        """Take policies and tile sizes as text or as what they are."""
        if self.reference is not None:
            object.__setattr__(self, "reference", str(self.reference))
        for name, size in self._sizes():
            if isinstance(size, str):
                object.__setattr__(self, name, Size.parse(size))

    def to_json(self) -> dict[str, str | int | bool | None]:
        """Every option by name: what the report says under ``settings``."""
        cache = None if self.kv_cache is None else os.fspath(self.kv_cache)
        sizes = {name: None if size is None else str(size) for name, size in self._sizes()}
        return {option.name: getattr(self, option.name) for option in fields(self)} | sizes | {"kv_cache": cache}

    def _sizes(self) -> tuple[tuple[str, Size | None], ...]:
        return ("tile", self.tile), ("vae_tile", self.vae_tile)

    def key(self) -> dict[str, str | int | bool | None]:
        """The options that can change what is computed."""
        return {name: value for name, value in self.to_json().items() if name not in _NO_RESULT}

    def arguments(self) -> list[str]:
        """The same as arguments of ``livemoments restore``; those that are as by default are left out."""
        usual, arguments = RestoreOptions().to_json(), []
        for name, value in self.to_json().items():
            option = f"--{name.removesuffix('_bytes').replace('_', '-')}"
            if value != usual[name]:
                arguments += [option] if value is True else [option, str(value)]
        return arguments

    def policy(self, bundle: Bundle) -> ReferencePolicy:
        """When ReferenceNet runs.

        Raises:
            UsageError: there is no such policy.
        """
        return ReferencePolicy.parse(self.reference or bundle.manifest.reference_policy)

    def check(self, output: str | os.PathLike[str] | None = None) -> None:
        """Refuse what would fail later, after the work.

        Args:
            output: the file that will be written.

        Raises:
            UsageError: a number is out of range, or two options exclude each other.
        """
        if self.compat not in (None, "upstream"):
            raise UsageError(f"'{self.compat}' is no compatibility mode", fix="use upstream, or leave it out")
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative", fix="use 0 or more")
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch} tiles cannot be computed", fix="pass --batch 1 or more")
        for budget in (self.kv_budget_bytes, self.kv_cache_budget_bytes):
            if budget < 1:
                raise UsageError(f"a budget of {budget} bytes holds no keys and values")
        if self.pcr_grid < 1:
            raise UsageError(f"{self.pcr_grid} px are no grid for references", fix="use 1 (none) or more")
        if self.gpu_memory_bytes is not None and self.gpu_memory_bytes < 1:
            raise UsageError(f"{self.gpu_memory_bytes} bytes of a GPU's memory hold no engine")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"{self.quality} is no quality", fix="use 1 to 100")
        if self.bit_depth not in (None, 8, 16):
            raise UsageError(f"{self.bit_depth} bits per channel cannot be written", fix="use 8 or 16")
        deep = self.bit_depth == 16
        if self.compat and deep:
            raise UsageError("upstream's colour fix has 8 bits; a 16-bit result holds no more", fix="leave one out")
        if output is not None and deep and format_of(output) not in DEEP_FORMATS:
            raise UsageError(f"{os.fspath(output)}: {format_of(output)} has no 16-bit RGB", fix="use 8, or PNG or TIFF")

    def for_bundle(self, bundle: Bundle) -> RestoreOptions:
        """These options with what estimates the flow named, as journals and reports have it.

        Raises:
            UsageError: an option cannot be used, alone or with this bundle.
        """
        self.check_for(bundle)
        return replace(self, flow=resolve_flow(self.flow, bundle))

    def check_for(self, bundle: Bundle) -> None:
        """Refuse what would fail on every photo, before the first.

        Raises:
            UsageError: an option cannot be used, alone or with this bundle.
        """
        self.check()
        self.policy(bundle).source_steps(len(plan_steps(bundle.manifest.schedule, self.steps)))
        find_codec(self.kv_dtype)
        for name, value, known in (
            ("flow", self.flow, (None, *KINDS)),
            ("tile plan", self.tile_plan, (None, "balanced", "upstream")),
            ("store for keys and values", self.kv_store, ("host", "disk")),
            ("residency", self.residency, RESIDENCIES),
        ):
            if value not in known:
                raise UsageError(f"'{value}' is no {name}", fix=f"use {' or '.join(filter(None, known))}")
        resolve_flow(self.flow, bundle)
        if self.tile is not None and self.tile not in bundle.tile_sizes:
            have = ", ".join(map(str, bundle.tile_sizes))
            raise UsageError(
                f"the bundle has no graphs for {self.tile} tiles; it has {have}",
                fix=f"export again with --tile {self.tile}, or leave --tile out",
            )
        if self.vae_tile is not None and self.vae_tile not in vae_sizes(bundle):
            have = ", ".join(map(str, vae_sizes(bundle)))
            raise UsageError(
                f"the bundle's VAE has no graphs for {self.vae_tile}; it has {have}",
                fix=f"export again with --vae-tile {self.vae_tile}, or leave --vae-tile out",
            )

    def open_backend(self, bundle: Bundle | None = None) -> Backend:
        """The back-end that these options name, for the bundle's kind of graphs; without one, for ONNX graphs.

        Raises:
            UsageError: the installed onnxruntime or PyTorch, or this system, has no such provider; it does not do the
                residency, or knows no such limits.
            MissingExtraError: PyTorch or TensorRT is not installed, and the bundle or the provider needs it; streaming
                needs the extra ``plan``.
            EngineError: the provider is there and does not load.
        """
        if bundle is not None and not bundle.has_onnx_graphs and self.residency not in ("all", "phases"):
            problem = f"networks of the target '{bundle.manifest.target}' are not {self.residency}"
            raise UsageError(problem, fix="use --residency all or phases")
        limits = DeviceLimits(self.gpu_memory_bytes, self.cuda_graphs)
        if limits.any_is_set and (self._is_native or (bundle is not None and not bundle.has_onnx_graphs)):
            raise UsageError("--gpu-memory and --cuda-graphs are for graphs in onnxruntime", fix="leave them out")
        if bundle is not None and bundle.manifest.target == "coreml":
            from livemoments.coreml.backend import CoreMlBackend

            return CoreMlBackend(self.provider)
        if bundle is not None and bundle.manifest.target == "coreai":
            from livemoments.coreai.backend import CoreAiBackend

            return CoreAiBackend(self.provider)
        if bundle is not None and bundle.manifest.target == "torch":
            from livemoments.pytorch.opening import open_torch_backend

            return open_torch_backend(self.provider, self.threads)
        if self._is_native:
            if self.residency not in ("all", "phases"):
                raise UsageError(f"TensorRT's engines are not {self.residency}", fix="use --residency all or phases")
            from livemoments.tensorrt.backend import TensorRtBackend

            return TensorRtBackend(self.provider, self.batch)
        if self.residency == "streamed":
            try:
                from livemoments.chains.streamed import StreamedBackend
            except ModuleNotFoundError as error:
                raise MissingExtraError("streaming networks", "plan", missing=error.name) from None
            return StreamedBackend(self.provider, self.threads, limits=limits)
        from livemoments.runtime.backends.ort import OrtBackend

        return OrtBackend(self.provider, self.threads, limits=limits, mapped=self.residency == "mapped")

    @property
    def _is_native(self) -> bool:
        """Whether a bundle's engines are run in place of its graphs."""
        return self.provider.startswith("native-")

    def can_stream(self, bundle: Bundle) -> bool:
        """Whether ``residency="streamed"`` is possible here: with ONNX graphs, and with onnx to cut them."""
        return bundle.has_onnx_graphs and not self._is_native and importlib.util.find_spec("onnx") is not None


def vae_sizes(bundle: Bundle) -> tuple[Size, ...]:
    """The sizes for which both halves of the VAE have a graph: the tiles', and those that were exported for them alone.

    Raises:
        BundleError: the bundle has no VAE.
    """
    encoder, decoder = ({g.size for g in bundle.stage(stage).graphs} for stage in VAE_STAGES)
    sizes = (Size.parse(text) for text in encoder & decoder if text != "any")
    return tuple(sorted(sizes, key=lambda size: (size.height * size.width, size.height)))
