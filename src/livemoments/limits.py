"""The parity limits: data in ``validate/limits.toml``, per precision and stage."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import msgspec

from livemoments.errors import FileError, UsageError


class PrecisionLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one precision.

    ``stage_rel_l2`` is the largest relative L2 error of each stage's worst output; ``photo_psnr_db`` the least PSNR
    of the whole photo against the reference's.
    """

    photo_psnr_db: float
    stage_rel_l2: dict[str, float]


def load_limits(precision: str, path: str | os.PathLike[str] | None = None) -> PrecisionLimits:
    """The limits of a precision, from the file given or the one that ships with the package.

    Raises:
        FileError: the file is missing or malformed.
        UsageError: it has no limits for this precision.
    """
    shipped = resources.files("livemoments.validate") / "limits.toml"
    name = os.fspath(path) if path is not None else "validate/limits.toml"
    try:
        text = Path(path).read_bytes() if path is not None else shipped.read_bytes()
        table = msgspec.toml.decode(text, type=dict[str, PrecisionLimits])
    except OSError as error:
        raise FileError(name, f"cannot be read ({error.strerror})") from None
    except msgspec.MsgspecError as error:
        raise FileError(name, f"not a table of limits: {error}") from None
    if precision not in table:
        raise UsageError(f"{name} has no limits for precision '{precision}'; it has {', '.join(table)}")
    return table[precision]
