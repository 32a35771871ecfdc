"""The parity limits: data in ``validate/limits.toml``, per precision and stage."""

from __future__ import annotations

import os
from importlib import resources

import msgspec

from livemoments.errors import FileError, UsageError
from livemoments.store.files import read_file


class PrecisionLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one precision.

    Attributes:
        photo_psnr_db: the least PSNR of the whole photo against the reference's.
        stage_rel_l2: the largest relative L2 error of each stage's worst output, fed with the reference's own inputs.
        tile_psnr_db: the least PSNR of a decoded tile, after the whole sampling.
        step_rel_l2: the largest relative error of a step's velocity, and of latents, on the engine's own way there.
        block_rel_l2: limit for the output of a transformer block.
        module_rel_l2: limit for the output of a module with weights that is fed with the reference's own values.
        exact_rel_l2: limit for what is computed without weights (activations, norms, attention, sums), in float32.

    A limit that a file does not have is not held: what was measured is told without a verdict.
    """

    photo_psnr_db: float
    stage_rel_l2: dict[str, float]
    tile_psnr_db: float | None = None
    step_rel_l2: float | None = None
    block_rel_l2: float | None = None
    module_rel_l2: float | None = None
    exact_rel_l2: float | None = None


def load_limits(precision: str, path: str | os.PathLike[str] | None = None) -> PrecisionLimits:
    """The limits of a precision, from the file given or the one that ships with the package.

    Raises:
        FileError: the file is missing or malformed.
        UsageError: it has no limits for this precision.
    """
    shipped = resources.files("livemoments.validate") / "limits.toml"
    name = os.fspath(path) if path is not None else "validate/limits.toml"
    try:
        text = read_file(path) if path is not None else shipped.read_bytes()
        table = msgspec.toml.decode(text, type=dict[str, PrecisionLimits])
    except OSError as error:
        raise FileError(name, f"cannot be read ({error.strerror})") from None
    except msgspec.MsgspecError as error:
        raise FileError(name, f"not a table of limits: {error}") from None
    if precision not in table:
        raise UsageError(f"{name} has no limits for precision '{precision}'; it has {', '.join(table)}")
    return table[precision]
