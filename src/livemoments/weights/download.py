"""One file from a server: resumed where an earlier try stopped, compared with its size and hash, then renamed.

The hub's own library downloads to a file with a name of its own that is gone when the process ends, so that 8.5 GB
would begin anew after every interruption; its ``http_get``, which asks for the rest of a file, is what is used here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, BinaryIO, Literal
from urllib.parse import urlsplit

from huggingface_hub.file_download import http_get
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

from livemoments.errors import DownloadError, ResourceError
from livemoments.progress import Task
from livemoments.store.errors import DISK_FULL_FIX, output_errors
from livemoments.weights.digests import git_blob_hash, sha256_of

PARTIAL = ".partial"
_AGAIN = "run the same command again: it goes on where this one stopped"
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""The libraries below huggingface_hub's versions, whose errors of the network have no common base."""
_DIGEST_CHARS = 12


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must be.

    Attributes:
        digest: its hash.
        kind: of the hash: ``git`` is that of a git blob, which the hub gives for small files.
        bytes: its size, if that is known.
    """

    digest: str
    kind: Literal["sha256", "git"] = "sha256"
    bytes: int | None = None

    def is_of(self, file: Path) -> bool:
        """Whether a file has the size and the hash."""
        return self.bytes in (None, file.stat().st_size) and self.hash(file) == self.digest

    def hash(self, file: Path) -> str:
        """A file's hash of this kind."""
        if self.kind == "sha256":
            return sha256_of(file)
        return git_blob_hash(file.read_bytes())


def download(url: str, target: Path, expected: Expected, headers: dict[str, str], task: Task) -> None:
    """Bring a file to its place, whole or not at all.

    What arrives is kept in a hidden file beside it until the size and the hash are right; an interrupted download is
    gone on with, also by a later process.

    Args:
        url: where it is.
        target: where it goes; what is there is replaced.
        expected: what it must be.
        headers: of the request.
        task: receives the bytes.

    Raises:
        DownloadError: refused, cut off, not reachable, or not what was expected (then nothing of it is kept).
        ResourceError: the disk is full; what fitted is kept.
        OutputError: the place cannot be written.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(target, expected)
        there = partial.stat().st_size if partial.exists() else 0
        if expected.bytes is not None and there > expected.bytes:
            partial.unlink()
            there = 0
        task.advance(there)
        with partial.open("r+b" if there else "wb") as stream:
            stream.seek(there)
            counted: BinaryIO = _Counted(stream, task)  # type: ignore[assignment]
            with network_errors(url), _quiet_hub(), _whole_already(there, expected):
                http_get(url, counted, resume_size=there, headers=headers, expected_size=expected.bytes)
            stream.flush()
            os.fsync(stream.fileno())
        _check(partial, target, expected)
        partial.replace(target)


@contextlib.contextmanager
def _whole_already(there: int, expected: Expected) -> Iterator[None]:
    """Where the size is not known, only the server can say that nothing is left to ask for (416); the hash decides."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if not there or expected.bytes is not None or status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise


def _check(partial: Path, target: Path, expected: Expected) -> None:
    size = partial.stat().st_size
    if expected.bytes not in (None, size):
        raise DownloadError(f"{target}: {size} of {expected.bytes} bytes arrived", fix=_AGAIN)
    if (found := expected.hash(partial)) != expected.digest:
        partial.unlink()
        message = f"{target}: what arrived has the hash {found}, published is {expected.digest}; it was deleted"
        raise DownloadError(
            message, fix="run the same command again; if it recurs, a proxy or a mirror alters the file"
        )


def _partial(target: Path, expected: Expected) -> Path:
    """Named by the content, so that a file of another revision is never gone on with; such are removed."""
    own = target.with_name(f".{target.name}.{expected.digest[:_DIGEST_CHARS]}{PARTIAL}")
    for other in target.parent.glob(f".{target.name}.*{PARTIAL}"):
        if other != own:
            other.unlink()
    return own


def check_space(folder: Path, needed_bytes: int) -> None:
    """Before anything is downloaded: is there room?

    Raises:
        ResourceError: there is not.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        message = f"{folder}: {needed_bytes / 1e9:.2f} GB are to come, the disk has {free_bytes / 1e9:.2f} GB left"
        raise ResourceError(message, fix=DISK_FULL_FIX)


class _WritingError(Exception):
    """The disk's, not the network's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Counted:
    """A file that tells how much was written; what ``http_get`` needs of one."""

    def __init__(self, stream: IO[bytes], task: Task) -> None:
        self._stream = stream
        self._task = task

    def write(self, data: bytes) -> int:
        try:
            written = self._stream.write(data)
        except OSError as error:
            raise _WritingError(error) from None
        self._task.advance(len(data))
        return written

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def network_errors(url: str, refused: str = "") -> Iterator[None]:
    """Within the block, what the hub or the network say becomes one error: without the URL's query, which may hold a
    signature, and without the server's own words.

    Args:
        url: where the request goes.
        refused: what to do about a request that is refused (401, 403); empty for the general advice.

    Raises:
        DownloadError: the request failed.
    """
    place = urlsplit(url)
    shown = f"{place.scheme}://{place.netloc}{place.path}"
    try:
        yield
    except _WritingError as error:
        raise error.error from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            raise _refusal(status, shown, refused) from None
        if isinstance(error, OSError) and "onsistency check" in str(error):
            raise DownloadError(f"{shown}: the connection ended before the file did", fix=_AGAIN) from None
        if not _is_of_network(error):
            raise
        message = f"{place.scheme}://{place.netloc} cannot be reached ({type(error).__name__})"
        raise DownloadError(message, fix=f"check the network, or the proxy (HTTPS_PROXY); then {_AGAIN}") from None


def _refusal(status: int, shown: str, refused: str) -> DownloadError:
    if status in (401, 403):
        return DownloadError(f"{shown}: access is refused ({status})", fix=refused or "check the address")
    if status == 404:
        return DownloadError(f"{shown}: is not there (404)", fix="--latest takes what is there now")
    return DownloadError(f"{shown}: the server answered {status}", fix=f"later, {_AGAIN}")


def _is_of_network(error: Exception) -> bool:
    bases = type(error).__mro__
    return isinstance(error, OSError) or any(base.__module__.split(".")[0] in _NETWORK for base in bases)


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's library draws bars of its own and logs addresses; here one bar is enough, and errors say the rest."""
    level, was_disabled = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not was_disabled:
            enable_progress_bars()
