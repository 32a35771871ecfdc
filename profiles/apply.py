"""A profile's values as defaults of the commands' options: what is given on the command line wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from livemoments.profiles.machine import AUTO, default_profile
from livemoments.profiles.read import load_profile
from livemoments.profiles.schema import Profile


def find_profile(profile: str | os.PathLike[str]) -> Profile:
    """A profile by name, by file, or with ``auto`` this machine's.

    Raises:
        UsageError, FileError: see :func:`livemoments.profiles.read.load_profile`.
    """
    return default_profile() if os.fspath(profile) == AUTO else load_profile(profile)


def option_defaults(profile: Profile, command: str) -> Mapping[str, Any]:
    """The profile's values by the names that a command's parameters have.

    Args:
        profile: checked.
        command: ``export``, ``quantize``, ``restore`` or ``validate``.
    """
    if command == "export":
        return {
            "target": profile.engine.target,
            "precision": profile.base_precision,
            "tiles": list(profile.tiles.sizes),
            "policy": profile.restore.reference,
        }
    if command == "quantize":
        return {} if profile.recipe is None else {"recipe": profile.recipe}
    restore = profile.restore
    values: dict[str, Any] = {
        "reference": restore.reference,
        "steps": restore.steps,
        "flow": restore.flow,
        "tile": restore.tile,
        "batch": profile.tiles.batch,
        "provider": profile.engine.provider,
        "threads": profile.engine.threads,
    }
    if command == "restore":
        values |= {
            # balanced is the default, which --compat upstream changes
            "tile_plan": None if profile.tiles.plan == "balanced" else profile.tiles.plan,
            "residency": restore.residency,
            "vae_tile": restore.vae_tile,
            "pcr_grid": restore.pcr_grid,
            "kv_dtype": restore.kv_dtype,
            "kv_store": restore.kv_store,
            "kv_budget_bytes": int(restore.kv_budget_gb * 1e9),
        }
    return {name: value for name, value in values.items() if value is not None}
