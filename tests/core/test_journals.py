"""Journals: a line for each finished piece, whatever a killed process left behind it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import msgspec
import pytest

from livemoments.errors import OutputError, ResourceError, UsageError
from livemoments.store.journals import LineJournal, work_alone

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


class Row(msgspec.Struct):
    name: str
    count: int = 0


def test_a_journal_goes_on_only_under_its_own_first_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = LineJournal(path)
    assert journal.resume({"key": "a"}, Row) == []
    journal.append(Row("one", 1))
    journal.append({"name": "two"})
    assert LineJournal(path).resume({"key": "a"}, Row) == [Row("one", 1), Row("two")]
    assert LineJournal(path).resume({"key": "b"}, Row) == []
    assert LineJournal(path).head == {"key": "b"}
    assert LineJournal(path).lines == []


def test_what_is_no_piece_is_cut_off_with_all_behind_it(tmp_path: Path) -> None:
    journal = made(tmp_path / "journal.jsonl", {"name": "one"}, {"name": 2}, {"name": "three"})
    head = journal.head
    assert head is not None
    assert LineJournal(journal.path, durable=False).resume(head, Row) == [Row("one")]
    assert LineJournal(journal.path).lines == [{"name": "one"}]


def test_one_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    def busy(hint: str) -> UsageError:
        return UsageError(f"busy{hint}")

    folder = tmp_path / "deep" / "work"
    with work_alone(folder, "lock", place=tmp_path, busy=busy):
        assert folder.is_dir()
        with pytest.raises(UsageError, match="busy"), work_alone(folder, "lock", place=tmp_path, busy=busy):
            raise AssertionError("two are in")
    with work_alone(folder, "lock", place=tmp_path, busy=busy):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="a file is in the way"),
        work_alone(tmp_path / "file" / "work", "lock", place=tmp_path / "file", busy=busy),
    ):
        raise AssertionError("that is a file")
