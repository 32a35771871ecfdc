"""The point that ``--pick`` chose, as a device profile: ``--profile FILE`` restores as it did."""

from __future__ import annotations

import msgspec

from livemoments.bundle import Bundle
from livemoments.profiles.schema import TRANSFORMERS, Profile
from livemoments.profiles.sweeps.objectives import DROP, FIDELITY, LATENCY, MEMORY, point_title, value_of, value_text
from livemoments.profiles.sweeps.report_data import Point
from livemoments.recipe_names import RECIPES
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Stage
from livemoments.validate.cost.nvml import GPU_PROVIDERS

NAME = "picked"
_WORDS = {LATENCY: "a photo", MEMORY: "at its peak", DROP: "of PSNR lost to fp32", FIDELITY: "PSNR to fp32"}
_UNITS = {LATENCY: "s", MEMORY: "bytes", DROP: "dB", FIDELITY: "dB"}
_MOST_TITLE = 500


def profile_of(point: Point, bundle: Bundle, settings: RestoreOptions, machine: Profile, processor: str) -> Profile:
    """The profile.

    Args:
        point: that was chosen.
        bundle: the point's.
        settings: the point's.
        machine: this machine's profile, whose chip and memory are taken over if it is of the kind that was measured.
        processor: what the numbers were measured on.
    """
    manifest = bundle.manifest
    kind = _kind(manifest.target, settings.provider)
    recipe = manifest.recipe if manifest.recipe in RECIPES else None
    measured = {name: value_of(point, name) for name in _WORDS}
    numbers = [
        f"{value_text(value, _UNITS[name])} {_WORDS[name]}" for name, value in measured.items() if value is not None
    ]
    unknown = f" Its recipe '{manifest.recipe}' does not ship." if manifest.recipe and recipe is None else ""
    several = len(bundle.tile_sizes) > 1 and settings.tile is not None
    values = msgspec.to_builtins(machine) if machine.kind == kind else {}
    values |= {
        "name": NAME,
        "title": f"picked from a sweep: {point_title(point)}"[:_MOST_TITLE],
        "kind": kind,
        "note": f"Measured on {processor}: {', '.join(numbers)}.{unknown}",
        "engine": {"target": manifest.target, "provider": settings.provider, "threads": settings.threads},
        "precision": {
            **{stage.value: manifest.precision for stage in (Stage.VAE_ENCODER, Stage.MOTION, Stage.VAE_DECODER)},
            **dict.fromkeys(TRANSFORMERS, recipe or manifest.precision),
        },
        "tiles": {
            "sizes": (str(settings.tile),) if settings.tile else manifest.tiles,
            "batch": settings.batch,
        },
        "restore": {
            "reference": settings.reference,
            "steps": settings.steps,
            "tile": str(settings.tile) if several else None,
            "vae_tile": None if settings.vae_tile is None else str(settings.vae_tile),
            "pcr_grid": settings.pcr_grid,
            "residency": settings.residency,
            "kv_dtype": settings.kv_dtype,
            "kv_store": settings.kv_store,
            "kv_budget_gb": settings.kv_budget_bytes / 1e9,
            "flow": settings.flow,
        },
        "measured": (),  # the records of the machine's profile were of other values
    }
    return msgspec.convert(values, Profile)


def _kind(target: str, provider: str) -> str:
    if target == "coreml" or provider.lower().startswith("coreml"):
        return "coreml"
    return "cuda" if provider.lower() in GPU_PROVIDERS else "cpu"
