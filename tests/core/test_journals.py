"""Journals: a line for each finished piece, whatever a killed process left behind it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from livemoments.errors import OutputError, ResourceError
from livemoments.store.journals import LineJournal

HEAD = {"key": "k"}


def made(path: Path, *pieces: object) -> LineJournal:
    journal = LineJournal(path)
    journal.start(HEAD)
    for piece in pieces:
        journal.append(piece)
    return journal


def test_pieces_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    assert LineJournal(path).head is None
    made(path, {"a": 1}, [2, "\u2028\n"], 0.1 + 0.2)
    again = LineJournal(path)
    assert (again.head, again.lines) == (HEAD, [{"a": 1}, [2, "\u2028\n"], 0.1 + 0.2])
    again.append("more")
    assert LineJournal(path).lines[-1] == "more"
    again.keep(1)
    assert LineJournal(path).lines == [{"a": 1}]
    again.append("other")
    assert LineJournal(path).lines == [{"a": 1}, "other"]


def test_every_cut_leaves_whole_pieces(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    pieces = [{"name": "one", "value": 1}, 22, "three"]
    made(path, *pieces)
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        journal = LineJournal(path)
        whole = sum(end <= length for end in ends)
        assert journal.head == (HEAD if whole else None)
        assert journal.lines == pieces[: max(0, whole - 1)]
        if whole:
            assert path.read_bytes() == data[: ends[whole - 1]], "the half line is gone"
            journal.append("next")
            assert LineJournal(path).lines == [*pieces[: whole - 1], "next"]


def test_what_is_no_journal_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for data in (b"[1]\n2\n", b"not json\n", b"\xff\xfe\n"):
        path.write_bytes(data)
        journal = LineJournal(path)
        assert (journal.head, journal.lines) == (None, [])
        assert path.read_bytes() == data, "nothing is changed before start()"
        journal.start(HEAD)
        assert json.loads(path.read_text()) == HEAD


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    journal = made(path, "one")
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"the disk of .*journal\.jsonl is full"):
            journal.append("two")
        assert path.read_bytes() == before
        with pytest.raises(ResourceError):
            journal.start({"key": "other"})
    assert LineJournal(path).lines == ["one"]
    journal.append("two")
    assert LineJournal(path).lines == ["one", "two"]


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        LineJournal(tmp_path / "file" / "journal.jsonl")
