"""The plan of a GPU run: four calls of steps, each step a process of its own with its share of the call's time.

The order is that of worth: whatever a call does not reach is what would be missed least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CALLS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Step:
    """One process.

    Attributes:
        name: unique; its results lie in ``NAME.json``.
        call: in which of the calls it runs.
        share: of the call's time.
        command: script and arguments; ``{output}`` is where its results go, ``{work}`` a folder that the steps share,
            ``{budget}`` the seconds that it has.
        payload: what must have been brought for it, by the name of its folder; ``None``: nothing but PyTorch.
        makes: a path below ``{work}`` that the step is for: where it is there already, the step is not needed.
        has_results: whether it writes ``{output}``.
    """

    name: str
    call: int
    share: int
    command: tuple[str, ...]
    payload: str | None = None
    makes: str | None = None
    has_results: bool = True


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: full size on a GPU, tiny on a CPU for a dry run."""

    device: str
    size: str
    tile_px: int
    photo: str
    half: bool

    @property
    def bench(self) -> tuple[str, ...]:
        """Arguments of ``bench_torch.py``."""
        return () if self.device == "cuda" else ("--dry-run",)


FULL = Sizes("cuda", "sd3-medium", 1024, "4032x3024", half=True)
DRY = Sizes("cpu", "tiny", 128, "192x128", half=False)


def steps(sizes: Sizes, *, call: int | None = None) -> list[Step]:
    """The steps, of all calls or of one."""
    planned = [*_tiles(sizes), *_photos(sizes), *_onnxruntime(sizes)]
    return [step for step in planned if call is None or step.call == call]


def _tiles(sizes: Sizes) -> list[Step]:
    def bench(name: str, call: int, *groups: str) -> Step:
        chosen = [word for group in groups for word in ("--group", group)]
        options = ("--budget-s", "{budget}", "--output", "{output}", "--commit", "{commit}")
        return Step(name, call, 100, ("bench_torch.py", *sizes.bench, *chosen, *options))

    return [
        bench("tiles-eager", 1, "eager", "correctness", "attention", "parts", "micro", "graphs"),
        # upstream's way again: only numbers of one run are compared
        bench(
            "tiles-compiled", 2, "eager", "attention", "compile+graphs", "linears", "phases", "compile", "second-dtype"
        ),
    ]


def _photos(sizes: Sizes) -> list[Step]:
    gpu = sizes.device == "cuda"
    plain = sizes.device
    fast = f"{plain}+compile+graphs" if gpu else plain
    planned = [
        ("photo-frozen", fast, "frozen", "engine", 30),
        ("photo-per-step", fast, "per-step", "engine", 25),
        ("photo-frozen-fp8", f"{plain}+fp8-linears" + fast.removeprefix(plain), "frozen", "engine", 25),
        ("photo-frozen-dis", fast, "frozen", "dis", 20),
    ]
    return [
        Step(
            name,
            3,
            share,
            (
                *("whole_photo.py", "--provider", provider, "--policy", policy, "--flow", flow),
                *("--size", sizes.size, "--tile", str(sizes.tile_px), "--photo", sizes.photo),
                *("--dtype", "float16" if sizes.half else "float32", "--repeats", "3" if gpu else "1"),
                *("--output", "{output}", "--commit", "{commit}"),
            ),
            payload="tools",
        )
        for name, provider, policy, flow, share in planned
    ]


def _onnxruntime(sizes: Sizes) -> list[Step]:
    kind, precision = ("float16", "fp16") if sizes.half else ("float32", "fp32")
    tile, cli = f"{sizes.tile_px}x{sizes.tile_px}", ("livemoments_command.py",)
    stages = "vae_encoder,motion,reference,restoration,vae_decoder"
    checkpoint = ("make-checkpoint", "{work}/checkpoint", "--size", sizes.size, "--dtype", kind, "--overwrite", "-q")
    export = (
        *("export", "{work}/checkpoint", "-o", "{work}/onnx", "--precision", precision, "--tile", tile),
        *("--overlap", str(sizes.tile_px // 16), "--steps", "6", "--verify", "none", "--stages", stages),
        *("--overwrite", "-q"),
    )
    measure = ("--provider", sizes.device, "--runs", "10" if sizes.device == "cuda" else "1")
    return [
        Step("checkpoint", 4, 30, (*cli, *checkpoint), "tools", makes="checkpoint", has_results=False),
        Step("export-onnx", 4, 25, (*cli, *export), "tools", makes="onnx", has_results=False),
        Step(
            "onnxruntime",
            4,
            45,
            ("measure_bundle.py", "{work}/onnx", *measure, "--output", "{output}", "--commit", "{commit}"),
            "onnxruntime" if sizes.device == "cuda" else "tools",
        ),
    ]


def names(planned: Sequence[Step]) -> list[str]:
    """The steps' names."""
    return [step.name for step in planned]
