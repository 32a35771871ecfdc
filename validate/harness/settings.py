"""How every image of a run is restored: one set of options for the journal's key, the report and the workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.flow import KINDS, FlowKind, resolve_flow
from livemoments.runtime.kv_codecs import find_codec
from livemoments.runtime.restore import KV_BUDGET_BYTES
from livemoments.runtime.schedule import plan_steps
from livemoments.runtime.settings import check_arguments
from livemoments.types import ReferencePolicy, Size

_NO_PIXEL = ("threads", "kv_store", "kv_budget_bytes")
"""Options that decide where and how fast, not what."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The options of :func:`livemoments.runtime.restore.restore` that a run fixes for all of its images.

    Attributes:
        seed: of the noise, the same for every image: it is drawn from the seed and the tile's corner.
        steps: sampling steps; ``None``: the bundle's.
        reference: when ReferenceNet runs; ``None``: the bundle's policy.
        flow: ``engine`` or ``dis``; ``None``: the bundle's.
        compat: ``upstream`` or ``None``.
        tile_plan: ``balanced`` or ``upstream``; ``None``: as ``compat`` says.
        tile: ``WxH`` of the bundle to use; ``None``: the best for each image.
        batch: tiles computed at once.
        pad_small: reflect images that are smaller than every tile.
        no_pcr: cut every reference tile at its tile's own place: an ablation.
        kv_store, kv_dtype, kv_budget_bytes: where and how ``phase-split`` keeps keys and values.
        provider: what runs the graphs.
        threads: within an operator; ``None``: onnxruntime's choice.
    """

    seed: int = 0
    steps: int | None = None
    reference: str | None = None
    flow: FlowKind | None = None
    compat: Literal["upstream"] | None = None
    tile_plan: Literal["balanced", "upstream"] | None = None
    tile: str | None = None
    batch: int = 1
    pad_small: bool = False
    no_pcr: bool = False
    kv_store: Literal["host", "disk"] = "host"
    kv_dtype: str = "native"
    kv_budget_bytes: int = KV_BUDGET_BYTES
    provider: str = "cpu"
    threads: int | None = None

    def to_json(self) -> dict[str, str | int | bool | None]:
        """Every option by name: what the report says under ``settings``."""
        return asdict(self)

    def key(self) -> dict[str, str | int | bool | None]:
        """The options that can change a result."""
        return {name: value for name, value in asdict(self).items() if name not in _NO_PIXEL}

    def policy(self, bundle: Bundle) -> ReferencePolicy:
        """When ReferenceNet runs.

        Raises:
            UsageError: there is no such policy.
        """
        return ReferencePolicy.parse(self.reference or bundle.manifest.reference_policy)

    def for_bundle(self, bundle: Bundle) -> RunSettings:
        """These settings with what estimates the flow named, as journals and reports have it.

        Raises:
            UsageError: an option cannot be used, alone or with this bundle.
        """
        self.check(bundle)
        return replace(self, flow=resolve_flow(self.flow, bundle))

    def check(self, bundle: Bundle) -> None:
        """Refuse what would fail on every image, before the first.

        Raises:
            UsageError: an option cannot be used, alone or with this bundle.
        """
        check_arguments(
            batch=self.batch,
            kv_budget_bytes=self.kv_budget_bytes,
            quality=100,
            bit_depth=None,
            compat=self.compat,
            output=None,
        )
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative", fix="use 0 or more")
        self.policy(bundle).source_steps(len(plan_steps(bundle.manifest.schedule, self.steps)))
        find_codec(self.kv_dtype)
        for name, value, known in (
            ("flow", self.flow, (None, *KINDS)),
            ("tile plan", self.tile_plan, (None, "balanced", "upstream")),
            ("store for keys and values", self.kv_store, ("host", "disk")),
        ):
            if value not in known:
                raise UsageError(f"'{value}' is no {name}", fix=f"use {' or '.join(filter(None, known))}")
        resolve_flow(self.flow, bundle)
        if self.tile is not None and Size.parse(self.tile) not in bundle.tile_sizes:
            have = ", ".join(map(str, bundle.tile_sizes))
            raise UsageError(f"the bundle has no graphs for {self.tile} tiles; it has {have}")

    def restore_options(self) -> dict[str, Any]:
        """Keyword arguments of ``restore``, without the back-end's."""
        options = {name: value for name, value in asdict(self).items() if name not in ("provider", "threads")}
        return options | {"tile": None if self.tile is None else Size.parse(self.tile)}

    def restore_arguments(self) -> list[str]:
        """The same as options of ``livemoments restore``."""
        arguments = []
        for name, value in asdict(self).items():
            option = "--kv-budget" if name == "kv_budget_bytes" else f"--{name.replace('_', '-')}"
            if value is True:
                arguments.append(option)
            elif value not in (None, False):
                arguments += [option, str(value)]
        return arguments

    def open_backend(self) -> Backend:
        """The back-end that these settings name.

        Raises:
            UsageError: the installed onnxruntime has no such provider.
        """
        from livemoments.runtime.backends.ort import OrtBackend

        return OrtBackend(self.provider, self.threads)
