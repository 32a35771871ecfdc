"""Named arrays in one file, the same bytes for the same arrays: numpy's npz without its dates, never pickled."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping

import msgspec
import numpy as np

from livemoments.store.files import read_file, write_file

_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that zip files can say."""
_HEADER = "header"
_PERMISSIONS = 0o644 << 16
_DIGEST_BYTES = 32
_QUICKEST = 1


def write_arrays(
    path: str | os.PathLike[str], header: object, arrays: Mapping[str, np.ndarray], *, compress: bool = False
) -> None:
    """Write arrays and a JSON header, whole or not at all; a SHA-256 of everything follows at the end.

    Raises:
        OutputError: the place cannot be written.
    """
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    encoded = np.frombuffer(msgspec.json.encode(header, order="sorted"), np.uint8)
    with zipfile.ZipFile(buffer, "w", method, compresslevel=_QUICKEST) as file:
        for name, array in {_HEADER: encoded, **arrays}.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_DATE)
            entry.compress_type, entry.external_attr, entry.create_system = method, _PERMISSIONS, 3
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            file.writestr(entry, data.getvalue())
    content = buffer.getvalue()
    write_file(path, content + hashlib.sha256(content).digest())


def read_arrays(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, np.ndarray]]:
    """The JSON header, still encoded, and the arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, cut short or something else.
    """
    content = read_file(path)
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if len(content) <= _DIGEST_BYTES or hashlib.sha256(body).digest() != digest:
        raise ValueError("damaged, cut short, or written by something else")
    with zipfile.ZipFile(io.BytesIO(body)) as file:
        arrays = {
            name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(file.read(name)), allow_pickle=False)
            for name in file.namelist()
        }
    if _HEADER not in arrays:
        raise ValueError("it has no header")
    return arrays.pop(_HEADER).tobytes(), arrays
