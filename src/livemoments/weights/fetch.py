"""The published weights, brought into the layout that an export reads."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from livemoments.errors import CheckpointError, DownloadError, OutputError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.store.claims import BusyError, only_one
from livemoments.store.errors import output_errors
from livemoments.store.files import read_file, write_file
from livemoments.store.names import check_utf8
from livemoments.weights.digests import sha256_of
from livemoments.weights.download import Expected, check_space, download
from livemoments.weights.hub import Hub, Listed
from livemoments.weights.sources import PARTS, ArchiveSource, HubSource, PartName, Sources, Variant, published_sources

RECORD = "fetched.json"
"""What was fetched, with revisions and hashes; beside the folders."""
_LOCK = ".fetch.lock"
_OWN = "own"
State = Literal["fetched", "kept"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file.

    Attributes:
        path: relative to the checkpoint's folder.
        bytes: its size.
        sha256: its hash.
        source: the repository, or the archive's address; for a file of the user's own, ``own``.
        revision: the commit; empty for an archive.
        published: the hash that it was compared with; of a git blob for small files, of the archive for its member.
        state: ``kept`` was there already.
    """

    path: str
    bytes: int
    sha256: str
    source: str
    revision: str
    published: str
    state: State


def fetch(
    folder: str | Path,
    *,
    only: Collection[PartName] | None = None,
    encoders: Variant = "fp16",
    raft: str | Path | None = None,
    latest: bool = False,
    overwrite: bool = False,
    sources: Sources | None = None,
    endpoint: str | None = None,
    progress: Progress = SILENT,
) -> list[Fetched]:
    """Bring the published weights into a folder, each file whole or not at all.

    What is there already and has the published hash is kept; what an earlier fetch brought and does not have it any
    more is brought again.

    Args:
        folder: of the checkpoint; made if it is not there.
        only: the parts; ``None`` means all.
        encoders: which files of the text encoders.
        raft: RAFT's Sintel weights as a file that is there already: copied, nothing is downloaded for that part.
        latest: take the repositories' newest revisions instead of the named ones, and forget what was recorded.
        overwrite: replace files that differ from the published ones though no fetch brought them.
        sources: where everything is; ``None`` means the published ones.
        endpoint: the hub's address; ``None`` is the hub's own.
        progress: receives the progress, in bytes.

    Returns:
        Every file of the parts, in order.

    Raises:
        DownloadError: no access, no network, cut off, not as published, changed under its revision.
        ResourceError: the disk is full.
        OutputError: the place cannot be written, holds a file that fetch did not bring, or another fetch is at it.
        UsageError: ``raft`` beside ``only`` without it.
        CheckpointError: ``raft`` is no RAFT.
    """
    folder = Path(folder)
    check_utf8(folder, OutputError)
    parts = [part for part in PARTS if only is None or part in only]
    if raft is not None and "raft" not in parts:
        raise UsageError("--raft names a file, and --only leaves RAFT out", fix="leave one of the two out")
    sources = published_sources() if sources is None else sources
    with output_errors(folder), _alone(folder):
        run = _Run(folder, Hub(endpoint), latest, overwrite, progress)
        return run.of(parts, sources, encoders, None if raft is None else Path(raft))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(folder / _LOCK):
            yield
    except BusyError as busy:
        raise OutputError(folder, "another fetch is writing there", fix=f"wait for it{busy.hint}") from None
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for place in made:
                place.rmdir()


class _Run:
    """One fetch."""

    def __init__(self, folder: Path, hub: Hub, latest: bool, overwrite: bool, progress: Progress) -> None:
        self._folder = folder
        self._hub = hub
        self._latest = latest
        self._overwrite = overwrite
        self._progress = progress
        self._record = _read_record(folder)
        self._fetched: list[Fetched] = []

    def of(self, parts: list[PartName], sources: Sources, encoders: Variant, raft: Path | None) -> list[Fetched]:
        if raft is not None:
            _check_raft(raft)
        hub_sources: dict[PartName, HubSource] = {
            "livemoments": sources.livemoments,
            "sd3": sources.sd3,
            "text-encoders": sources.text_encoders[encoders],
        }
        planned: list[tuple[HubSource, Listed]] = []
        for part in parts:
            if part in hub_sources:
                source = hub_sources[part]
                planned += [(source, file) for file in self._hub.files(source, newest=self._latest)]
        self._check_unchanged(planned)
        kept = self._kept(planned)
        missing = [entry for entry in planned if _path(*entry) not in kept]
        check_space(self._folder, sum(file.expected.bytes or 0 for _, file in missing))
        # one small request for each repository, so that a gated one is known before gigabytes of the others have come
        for _, file in {file.repository: (source, file) for source, file in missing}.values():
            self._hub.locate(file)
        for source, file in missing:
            self._bring(source, file)
        if "raft" in parts:
            self._raft(sources.raft, raft)
        return self._fetched

    def _check_unchanged(self, planned: list[tuple[HubSource, Listed]]) -> None:
        """A commit holds its files' hashes: the same commit with another hash is a forged or broken answer."""
        if self._latest:
            return
        for source, file in planned:
            before = self._record.get(_path(source, file))
            if before is None or before.get("revision") != file.revision:
                continue
            if before.get("published") != file.expected.digest:
                message = (
                    f"{file.repository}: {file.name} changed under its revision {file.revision}: "
                    f"{before.get('published')} when it was fetched, {file.expected.digest} now"
                )
                raise DownloadError(message, fix="keep what you have; --latest takes what is there now instead")

    def _kept(self, planned: list[tuple[HubSource, Listed]]) -> set[str]:
        """The paths of those that are there already, as published."""
        there = [entry for entry in planned if (self._folder / _path(*entry)).exists()]
        sizes = [(self._folder / _path(*entry)).stat().st_size for entry in there]
        kept = set()
        with self._progress.task("comparing what is there", total=sum(sizes)) as task:
            for (source, file), size in zip(there, sizes, strict=True):
                place = self._folder / _path(source, file)
                if place.is_file() and file.expected.is_of(place):
                    kept.add(_path(source, file))
                    self._add_listed(place, "kept", file)
                else:
                    self._check_ours(place)
                task.advance(size)
        return kept

    def _check_ours(self, place: Path) -> None:
        if place.relative_to(self._folder).as_posix() not in self._record and not self._overwrite:
            message = "is not as published, and was not brought by fetch"
            raise OutputError(place, message, fix="move it away, or pass --overwrite to replace it")

    def _bring(self, source: HubSource, file: Listed) -> None:
        place = self._folder / _path(source, file)
        with self._progress.task(f"fetching {place.relative_to(self._folder)}", total=file.expected.bytes) as task:
            url, headers = self._hub.locate(file)
            download(url, place, file.expected, headers, task)
        self._add_listed(place, "fetched", file)

    def _raft(self, source: ArchiveSource, own: Path | None) -> None:
        place = self._folder / source.file
        if own is not None:
            if place.exists() and sha256_of(own) != sha256_of(place):
                self._check_ours(place)
            if not (place.exists() and own.samefile(place)):
                write_file(place, read_file(own))
            self._add(place, "fetched", _OWN)
            return
        before = self._record.get(source.file, {})
        is_pinned = before.get("source") == _OWN or before.get("published") == source.sha256
        if is_pinned and place.is_file() and before.get("sha256") == sha256_of(place):
            self._add(place, "kept", before["source"], published=before["published"])
            return
        if place.exists():
            self._check_ours(place)
        archive = place.parent / "models.zip"
        with self._progress.task(f"fetching {source.file}") as task:
            try:
                download(source.url, archive, Expected(source.sha256), {}, task)
            except DownloadError as error:
                fix = f"{error.fix}; or get it yourself and pass --raft FILE"
                raise DownloadError(error.message, fix=fix) from None
        try:
            with zipfile.ZipFile(archive) as opened:
                write_file(place, opened.read(source.member))
        finally:
            archive.unlink()
        self._add(place, "fetched", source.url, published=source.sha256)

    def _add_listed(self, place: Path, state: State, file: Listed) -> None:
        expected = file.expected
        digest = expected.digest if expected.kind == "sha256" else None  # compared already: gigabytes are read once
        self._add(place, state, file.repository, file.revision, expected.digest, digest)

    def _add(
        self,
        place: Path,
        state: State,
        source: str,
        revision: str = "",
        published: str = "",
        digest: str | None = None,
    ) -> None:
        path = place.relative_to(self._folder).as_posix()
        digest = digest or sha256_of(place)
        self._fetched.append(Fetched(path, place.stat().st_size, digest, source, revision, published, state))
        entry = {name: value for name, value in asdict(self._fetched[-1]).items() if name not in ("path", "state")}
        if self._record.get(path) != entry:
            self._record[path] = entry
            text = json.dumps({"files": self._record}, indent=1, sort_keys=True) + "\n"
            write_file(self._folder / RECORD, text.encode())


def _path(source: HubSource, file: Listed) -> str:
    return f"{source.folder}/{file.name}"


def _check_raft(file: Path) -> None:
    from livemoments.reference.stored import check_keys
    from livemoments.weights.expected import raft_shapes
    from livemoments.weights.headers import file_header

    try:
        check_keys(file, raft_shapes(), file_header(file).shapes)
    except CheckpointError as error:
        raise CheckpointError(file, error.message.removeprefix(f"{file}: "), fix="name raft-sintel.pth") from None


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / RECORD
    if not file.exists():
        return {}
    try:
        files = json.loads(read_file(file))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(file, f"cannot be read ({error})", fix="delete it: every file is compared again") from None
    return files if isinstance(files, dict) else {}
