"""A device profile as data: the TOML files beside this module, and a user's own, are read into :class:`Profile`.

Units are in the names: decimal GB, GB/s, TFLOPS of dense products (2 operations a multiply-add).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

TRANSFORMERS = ("reference", "restoration")
"""The stages that recipes quantize."""
BASES = ("fp32", "fp16")
"""What a bundle is exported in."""

Gigabytes = Annotated[float, Meta(gt=0, le=100_000)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1 << 16)]
Text = Annotated[str, Meta(min_length=1, max_length=500)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a profile's tables: immutable, strict."""


class Memory(_Table):
    """The memory in which engines and tensors lie.

    Attributes:
        capacity_gb: what the device has; ``None``: the machine's own, whatever that is.
        budget_gb: what a restoration may take of it; the rest is the system's, the driver's and other programs'.
            ``None``: nine tenths.
        unified: the processor and the accelerator share it, so that nothing is copied between them.
    """

    capacity_gb: Gigabytes | None = None
    budget_gb: Gigabytes | None = None
    unified: bool = False


class Engine(_Table):
    """What runs the graphs: the export's ``target``, onnxruntime's ``provider`` or Core ML's compute unit; threads."""

    target: Literal["onnx", "tensorrt", "coreml", "coreai", "torch"] = "onnx"
    provider: Annotated[str, Meta(min_length=1, max_length=100)] = "cpu"
    threads: Count | None = None


class Precision(_Table):
    """Each stage's precision: ``fp32``, ``fp16``, or for the transformers a recipe of ``livemoments quantize``."""

    flow: Literal["fp32"] = "fp32"
    vae_encoder: Literal["fp32", "fp16"] = "fp32"
    motion: Literal["fp32", "fp16"] = "fp32"
    reference: str = "fp32"
    restoration: str = "fp32"
    vae_decoder: Literal["fp32", "fp16"] = "fp32"


class Tiles(_Table):
    """Tile sizes to export (``WxH``), how they are laid over a photo, and how many are computed at once."""

    sizes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
    plan: Literal["balanced", "upstream"] = "balanced"
    batch: Count = 1


class Restore(_Table):
    """How a photo is restored: :class:`livemoments.runtime.options.RestoreOptions` has the words.

    ``steps`` and ``flow`` left out are the bundle's own; without ``tile`` each photo gets the best size of the bundle.
    """

    reference: str = "per-step"
    steps: Count | None = None
    tile: str | None = None
    vae_tile: str | None = None
    pcr_grid: Count = 1
    residency: Literal["all", "phases", "mapped", "streamed"] = "all"
    kv_dtype: Literal["native", "float16", "int8", "fp8"] = "native"
    kv_store: Literal["host", "disk"] = "host"
    kv_budget_gb: Gigabytes = 4.0
    flow: Literal["engine", "dis"] | None = None


class Source(_Table):
    """Where public numbers come from: the keys of ``[chip]`` and ``[memory]`` that it gives, its address, a remark."""

    of: Annotated[tuple[str, ...], Meta(min_length=1)]
    url: Annotated[str, Meta(pattern="^https?://")]
    note: str = ""


class Chip(_Table):
    """Public peak rates. What no source was found for is left out.

    Attributes:
        fp32_tflops: products in float32, vector units.
        tf32_tflops: products of float32 inputs rounded to TF32, matrix units.
        fp16_tflops: products in float16, matrix units where there are any, added up in float32 where the source tells.
        int8_tops: products in 8-bit integers.
        fp8_tflops: products in E4M3.
        bandwidth_gb_s: of its memory.
        link_gb_s: from the host's memory, one direction; ``None`` with unified memory.
        sources: for each of these numbers one.
    """

    fp32_tflops: Rate | None = None
    tf32_tflops: Rate | None = None
    fp16_tflops: Rate | None = None
    int8_tops: Rate | None = None
    fp8_tflops: Rate | None = None
    bandwidth_gb_s: Rate | None = None
    link_gb_s: Rate | None = None
    sources: tuple[Source, ...] = ()


class Efficiency(_Table):
    """The share of the peak rates that an engine is taken to reach: an assumption until something was measured.

    Attributes:
        matrix: of the products' rate.
        memory: of the bandwidth.
        link: of the link from the host.
    """

    matrix: Share = 0.5
    memory: Share = 0.7
    link: Share = 0.8


class Achieved(_Table):
    """Rates that a record shows; they replace peak rate times efficiency.

    Attributes:
        cores: of a CPU, on which they were reached; more cores are taken to be faster in proportion.
        fp32_tflops: of products in float32, everything else that a network does counted in.
        fp16_tflops: likewise in float16.
        int8_tops: likewise in int8.
        bandwidth_gb_s: of memory.
    """

    cores: Count | None = None
    fp32_tflops: Rate | None = None
    fp16_tflops: Rate | None = None
    int8_tops: Rate | None = None
    bandwidth_gb_s: Rate | None = None


class Measured(_Table):
    """Numbers of this profile that were measured: their keys (``restore.reference``), and the record that has them."""

    of: Annotated[tuple[str, ...], Meta(min_length=1)]
    record: Annotated[str, Meta(pattern=r"^benchmarks/results/[\w.-]+\.json$")]
    says: Text


class Profile(_Table, kw_only=True):
    """One device and how photos are restored on it.

    Attributes:
        name: what ``--profile`` calls it.
        title: for people.
        kind: what computes: ``cpu``, an NVIDIA GPU (``cuda``), or Apple's GPU and Neural Engine (``coreml``).
        devices: beginnings of the device's name, as the driver or the system gives it; the longest that fits decides.
        instructions: of a CPU, by the names that ``livemoments devices`` shows; the machine must have all of them.
        note: anything else to know.
    """

    name: Name
    title: Text
    kind: Literal["cpu", "cuda", "coreml"]
    devices: tuple[Text, ...] = ()
    instructions: tuple[Text, ...] = ()
    note: str = ""
    memory: Memory = Memory()
    engine: Engine = Engine()
    precision: Precision = Precision()
    tiles: Tiles
    restore: Restore = Restore()
    chip: Chip = Chip()
    efficiency: Efficiency = Efficiency()
    achieved: Achieved = Achieved()
    measured: tuple[Measured, ...] = ()

    @property
    def base_precision(self) -> str:
        """What the bundle is exported in: ``fp32`` or ``fp16``."""
        return self.precision.vae_encoder

    @property
    def recipe(self) -> str | None:
        """The recipe that the exported bundle is quantized with; ``None``: it stays as it is."""
        return None if self.precision.restoration in BASES else self.precision.restoration

    @property
    def budget_bytes(self) -> int | None:
        """What a restoration may take; ``None`` where the capacity is the machine's."""
        if self.memory.budget_gb is not None:
            return int(self.memory.budget_gb * 1e9)
        return None if self.memory.capacity_gb is None else int(self.memory.capacity_gb * 0.9e9)
