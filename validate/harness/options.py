"""What a run over many images measures, where it works, and whether it continues an earlier one: data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from livemoments.errors import UsageError
from livemoments.validate.harness.image_metrics import ImageMetrics, StandardMetrics

EngineKind = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of :func:`livemoments.validate.harness.run.run_images`, besides how an image is restored.

    Attributes:
        metrics: makes what measures an image, once per worker; PSNR, SSIM and MS-SSIM by default. Something else than
            :class:`StandardMetrics` must be picklable for ``ray``, and give its own ``key`` to the run.
        engine: ``local``: one image after another in this process. ``ray``: on the workers of a Ray cluster.
        workers: how many for ``ray``; by default one per GPU, or one per machine.
        ray_address: of a running cluster; by default one is started on this machine and ended afterwards.
        pictures: whether to make small pictures for the report.
        results: whether to keep the restored photos themselves, as PNG files.
        fresh: begin anew, whatever the folder holds.
    """

    metrics: Callable[[], ImageMetrics] = field(default_factory=StandardMetrics)
    engine: EngineKind = "local"
    workers: int | None = None
    ray_address: str | None = None
    pictures: bool = True
    results: bool = False
    fresh: bool = False

    def check(self, *, has_backend: bool) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: the engine is unknown, or cannot have these workers or a back-end of the caller's.
        """
        if self.engine not in ("local", "ray"):
            raise UsageError(f"'{self.engine}' is not an engine for a run", fix="use local or ray")
        if self.engine == "local" and self.workers not in (None, 1):
            raise UsageError("the local engine has one worker", fix="leave --workers out, or use --engine ray")
        if self.engine == "ray" and has_backend:
            raise UsageError("a back-end cannot be sent to other machines", fix="name a provider in the settings")
