"""Names of files that this package and the libraries below it can use."""

from __future__ import annotations

import os

from livemoments.errors import FileError


def is_utf8(name: str | os.PathLike[str]) -> bool:
    """Whether a name is text: Python holds other bytes of a file name as lone surrogates."""
    try:
        os.fspath(name).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escaped(name: str) -> str:
    """A name as text: bytes that are no UTF-8 as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_utf8(path: str | os.PathLike[str], error: type[FileError] = FileError) -> None:
    """Before any work: refuse a name that onnxruntime and safetensors cannot open and no JSON can hold.

    Raises:
        FileError: the name is not UTF-8; the error has the given type.
    """
    if not is_utf8(path):
        raise error(path, "the path is no UTF-8, which cannot be used here", fix="rename what is so named")
