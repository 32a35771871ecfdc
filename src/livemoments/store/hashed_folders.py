"""Folders with a manifest that lists size and SHA-256 of every file in them; opened with everything checked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

import msgspec

from livemoments.errors import FileError, UsageError
from livemoments.manifest import FileEntry
from livemoments.store.names import check_utf8

M = TypeVar("M", bound=msgspec.Struct)
_READ_BYTES = 1 << 22


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, read in 4 MiB pieces.

    Raises:
        FileError: it cannot be read.
    """
    digest = hashlib.sha256()
    total = 0
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
                total += len(piece)
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", fix="check its permissions and the disk") from None
    return FileEntry(sha256=digest.hexdigest(), bytes=total)


def encode_manifest(manifest: msgspec.Struct) -> bytes:
    """A manifest as it is written: sorted, a field a line."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"


@dataclass(frozen=True)
class HashedFolders(Generic[M]):
    """One kind of such folders: where its manifest is, what it must hold, and the words of its errors.

    Attributes:
        kind: what a folder is, e.g. ``bundle``.
        manifest: the manifest's file name.
        decoded: the type of the manifest.
        version: the field that says the schema, how an error calls it, and the only value that is read.
        check: refuses values that the types allow; raises ``UsageError`` or ``ValueError``.
        error: the type of every error.
        listing: how errors call the manifest, e.g. ``the manifest``.
        command: what to run for a new one, e.g. ``livemoments export CHECKPOINT -o BUNDLE``.
        verb: what that command does, e.g. ``export``.
        remake: the fix for a manifest that cannot be used.
        renew: the fix for a file that is not as listed.
        links_fix: the fix for a link that leaves the folder; empty: as for any other path that leaves it.
        only_printable: refuse names with characters that cannot be shown; a user's photo may have them.
    """

    kind: str
    manifest: str
    decoded: type[M]
    version: tuple[str, str, str | int]
    check: Callable[[M], None]
    error: type[FileError]
    listing: str
    command: str
    verb: str
    remake: str
    renew: str
    links_fix: str = ""
    only_printable: bool = False

    def is_one(self, folder: Path) -> bool:
        """Whether a folder looks like one of this kind."""
        return (folder / self.manifest).is_file()

    def read(self, folder: Path) -> M:
        """Read a folder's manifest and check it.

        Raises:
            FileError: there is no such folder, it is not of this kind, or the manifest is of an unknown schema,
                malformed or unreadable; the error has the type of this kind.
        """
        file = folder / self.manifest
        check_utf8(folder, self.error)
        try:
            if not folder.exists():
                raise self.error(folder, f"no such {self.kind}", fix=f"make one with '{self.command}'")
            if not folder.is_dir() or not file.is_file():
                raise self.error(
                    folder,
                    f"not a {self.kind}: there is no {self.manifest} in it",
                    fix=f"name the folder that 'livemoments {self.verb}' wrote; if it was interrupted, run it again",
                )
            text = file.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise self.error(file, f"cannot be read ({reason})", fix="check the path and its permissions") from None
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(file, f"not valid JSON ({error})", fix=self.remake) from None
        field, words, known = self.version
        version = plain.get(field) if isinstance(plain, dict) else None
        if version != known:
            reads = f"'{known}'" if isinstance(known, str) else f"version {known}"
            raise self.error(
                file,
                f"{words} {version!r} is not known; this release reads {reads}",
                fix=f"use the release that wrote it, or {self.verb} again",
            )
        try:
            manifest = msgspec.json.decode(text, type=self.decoded)
            self.check(manifest)
        except (msgspec.MsgspecError, UsageError, ValueError) as error:
            reason = error.message if isinstance(error, UsageError) else str(error)
            raise self.error(file, f"the manifest is malformed: {reason}", fix=self.remake) from None
        return manifest

    def check_names(self, folder: Path, files: Mapping[str, FileEntry], used: Iterable[str] = ()) -> None:
        """Refuse names that are not those of files in the folder, and files in use without a hash.

        Args:
            folder: the folder.
            files: those that its manifest lists.
            used: those that the rest of the manifest speaks of.

        Raises:
            FileError: naming the first; the error has the type of this kind.
        """
        root, file, used = os.path.realpath(folder), folder / self.manifest, list(used)
        leaves = f"leaves the {self.kind}'s folder"
        distrust = f"do not use this {self.kind} unless you trust who made it; {self.verb} again"
        for name in [*files, *used]:
            parts = PurePosixPath(name)
            if "\0" in name or (self.only_printable and not name.isprintable()):
                raise self.error(file, f"names {name!r}, which is not a file name", fix=self.remake)
            if parts.is_absolute() or ".." in parts.parts or "\\" in name or not name:
                raise self.error(file, f"names '{name}', which {leaves}", fix=distrust)
            if not Path(os.path.realpath(folder / name)).is_relative_to(root):  # as in the caches of model hubs
                if not self.links_fix:
                    raise self.error(file, f"names '{name}', which {leaves}", fix=distrust)
                message = f"'{name}' is a link out of the {self.kind}'s folder, which is not followed"
                raise self.error(file, message, fix=self.links_fix)
        for name in used:
            if name not in files:
                raise self.error(file, f"uses '{name}' but lists no hash for it", fix=self.remake)

    def check_file(self, file: Path, entry: FileEntry, *, verify_hash: bool, renew: str = "") -> None:
        """Refuse a file that is not as the manifest lists it.

        Args:
            file: the file.
            entry: its size and hash in the manifest.
            verify_hash: read it and compare its SHA-256 too.
            renew: the fix, where it is not the usual one.

        Raises:
            FileError: it is missing, or has another size or hash; the error has the type of this kind.
        """
        renew = renew or self.renew
        size = self._size(file)
        if size is None:
            raise self.error(file, f"missing: {self.listing} lists this file", fix=renew)
        if size != entry.bytes:
            raise self.error(file, f"is {size} bytes long, {self.listing} says {entry.bytes}", fix=renew)
        if verify_hash and hash_file(file).sha256 != entry.sha256:
            message = f"its SHA-256 is not {self.listing}'s: the file was changed or damaged"
            raise self.error(file, message, fix=renew)

    def _size(self, file: Path) -> int | None:
        """Size in bytes; ``None`` if the file is not there, or is something else."""
        try:
            status = file.stat()
        except OSError as trouble:
            if trouble.errno not in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
                return None
            reason = (trouble.strerror or str(trouble)).lower()
            raise self.error(file, f"cannot be read ({reason})", fix="check the path and its permissions") from None
        return status.st_size if stat.S_ISREG(status.st_mode) else None
