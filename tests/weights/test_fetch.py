"""``livemoments fetch`` against a small hub: what arrives, what is kept, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import re
import socket
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from cli_support import run
from tiny_hub import Repository, TinyHub, is_large

from livemoments.errors import CheckpointError, DownloadError, OutputError, ResourceError, UsageError
from livemoments.store.claims import only_one
from livemoments.weights import fetch as fetching
from livemoments.weights.expected import raft_shapes
from livemoments.weights.fetch import RECORD, Fetched, fetch
from livemoments.weights.sources import PARTS, ArchiveSource, HubSource, Sources, published_sources

OWN, GATED = "team/weights", "company/gated"
REVISION = "a" * 40
TOKEN = "hf_" + "".join(random.Random(5).choices("abcdefghijklmnop", k=30))
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TinyHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is lost where a connection breaks
    hub = TinyHub()
    rng = random.Random(random.randrange(1 << 30))
    hub.repositories[OWN] = Repository(
        {
            "transformer/config.json": b'{"num_layers": 4}',
            WEIGHTS: rng.randbytes(50_000),
            "motion_encoder.pt": rng.randbytes(3_000),
            "README.md": b"not wanted",
        }
    )
    hub.repositories[GATED] = Repository(
        {"vae/config.json": b"{}", "vae/model.safetensors": rng.randbytes(700), "tokenizer/vocab.json": b"{}"},
        gated=True,
    )
    hub.archives["/models.zip"] = raft_archive()
    yield hub
    hub.close()


@cache
def raft_file() -> bytes:
    stream = io.BytesIO()
    torch.save({f"module.{name}": torch.zeros(shape).half() for name, shape in raft_shapes().items()}, stream)
    return stream.getvalue()


@cache
def raft_archive() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        opened.writestr("models/raft-sintel.pth", raft_file())
        opened.writestr("models/raft-small.pth", b"another")
    return archive.getvalue()


def sources(hub: TinyHub) -> Sources:
    gated = HubSource(GATED, REVISION, "sd3", ("vae/*",), ("LICENSE*",))
    return Sources(
        livemoments=HubSource(OWN, REVISION, "livemoments", ("motion*.pt", "*/config.json", "*/*.safetensors"), ()),
        sd3=gated,
        text_encoders={"fp16": HubSource(GATED, REVISION, "sd3", ("tokenizer/*",), ())},
        raft=ArchiveSource(
            f"{hub.content_url}/models.zip",
            hashlib.sha256(hub.archives["/models.zip"]).hexdigest(),
            "models/raft-sintel.pth",
            "raft",
        ),
    )


def bring(hub: TinyHub, folder: Path, *only: str, **options: object) -> list[Fetched]:
    chosen = only or ("livemoments",)
    return fetch(folder, only=chosen, sources=sources(hub), endpoint=hub.url, **options)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


OWN_FILES = {f"livemoments/{name}" for name in ("motion_encoder.pt", "transformer/config.json", WEIGHTS)}


def test_everything_arrives_as_published_and_is_recorded(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.access.add(TOKEN)
    folder = tmp_path / "a" / "checkpoint"
    done = bring(hub, folder, *PARTS)
    others = {"sd3/vae/config.json", "sd3/vae/model.safetensors", "sd3/tokenizer/vocab.json", "raft/raft-sintel.pth"}
    assert files_in(folder) == OWN_FILES | others | {RECORD}
    for name, content in hub.repositories[OWN].files.items():
        if name != "README.md":
            assert (folder / "livemoments" / name).read_bytes() == content
    assert (folder / "raft" / "raft-sintel.pth").read_bytes() == raft_file()
    record = json.loads((folder / RECORD).read_text())["files"]
    assert set(record) == {file.path for file in done} == OWN_FILES | others
    for path, entry in record.items():
        assert entry["sha256"] == hashlib.sha256((folder / path).read_bytes()).hexdigest()
        assert entry["bytes"] == (folder / path).stat().st_size
    assert record[f"livemoments/{WEIGHTS}"]["revision"] == REVISION
    assert {file.state for file in done} == {"fetched"}


def test_a_second_fetch_keeps_what_is_right_and_asks_for_no_content(hub: TinyHub, tmp_path: Path) -> None:
    bring(hub, tmp_path, "livemoments", "raft")
    hub.requests.clear()
    done = bring(hub, tmp_path, "livemoments", "raft")
    assert {file.state for file in done} == {"kept"}
    assert hub.of_content() == []
    assert [request.path for request in hub.requests] == [f"/api/models/{OWN}/revision/{REVISION}"]


def test_a_file_that_was_damaged_here_is_brought_again(hub: TinyHub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    place = tmp_path / "livemoments" / WEIGHTS
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    assert [file.path for file in bring(hub, tmp_path) if file.state == "fetched"] == [f"livemoments/{WEIGHTS}"]
    assert place.read_bytes() == hub.repositories[OWN].files[WEIGHTS]


def test_a_file_that_fetch_did_not_bring_is_left_alone(hub: TinyHub, tmp_path: Path) -> None:
    place = tmp_path / "livemoments" / "motion_encoder.pt"
    place.parent.mkdir()
    place.write_bytes(b"my own")
    with pytest.raises(OutputError, match=r"was not brought by fetch\n  fix: .*--overwrite"):
        bring(hub, tmp_path)
    assert place.read_bytes() == b"my own"
    bring(hub, tmp_path, overwrite=True)
    assert place.read_bytes() == hub.repositories[OWN].files["motion_encoder.pt"]


def test_a_file_of_the_users_that_is_as_published_is_kept(hub: TinyHub, tmp_path: Path) -> None:
    place = tmp_path / "livemoments" / WEIGHTS
    place.parent.mkdir(parents=True)
    place.write_bytes(hub.repositories[OWN].files[WEIGHTS])
    assert {file.path: file.state for file in bring(hub, tmp_path)}[f"livemoments/{WEIGHTS}"] == "kept"


# Gated


def test_gated_without_a_token_says_how_to_get_access_before_anything_large_comes(hub: TinyHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        bring(hub, tmp_path / "c", "livemoments", "sd3")
    assert "access is refused (401)" in caught.value.message
    assert f"open {hub.url}/{GATED}, log in and accept its conditions" in str(caught.value.fix)
    assert "hf auth login" in str(caught.value.fix)
    assert hub.of_content() == []
    assert not (tmp_path / "c").exists()


def test_gated_with_a_token_that_has_no_access(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.known.add(TOKEN)
    with pytest.raises(DownloadError, match=r"access is refused \(403\)"):
        bring(hub, tmp_path, "sd3")
    hub.access.add(TOKEN)
    assert len(bring(hub, tmp_path, "sd3")) == 2


def test_the_token_goes_to_the_hub_alone(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.access.add(TOKEN)
    bring(hub, tmp_path, *PARTS)
    hosts = {request.host: set() for request in hub.requests}
    for request in hub.requests:
        hosts[request.host].add(request.token)
    assert hosts == {hub.url.removeprefix("http://"): {TOKEN}, hub.content_url.removeprefix("http://"): {None}}


# Cut off


def test_a_connection_that_breaks_is_gone_on_with(hub: TinyHub, tmp_path: Path) -> None:
    hub.cut_at = [1_000, None, 20_000]
    bring(hub, tmp_path)
    assert files_in(tmp_path) == OWN_FILES | {RECORD}
    ranges = [request.range for request in hub.of_content()]
    assert ranges == [None, "bytes=1000-", None, "bytes=20000-"]


def test_what_arrived_before_a_process_ended_is_not_asked_for_again(hub: TinyHub, tmp_path: Path) -> None:
    hub.cut_at, hub.refuse_with = [None, 20_000], [None, None, 503]
    with pytest.raises(DownloadError, match=r"the server answered 503\n  fix: .*goes on where this one stopped"):
        bring(hub, tmp_path)
    assert not (tmp_path / "livemoments" / WEIGHTS).exists()
    hub.requests.clear()
    bring(hub, tmp_path)
    assert [request.range for request in hub.of_content()] == ["bytes=20000-"]
    assert (tmp_path / "livemoments" / WEIGHTS).read_bytes() == hub.repositories[OWN].files[WEIGHTS]
    assert files_in(tmp_path) == OWN_FILES | {RECORD}


def test_what_arrived_of_another_revision_is_not_gone_on_with(hub: TinyHub, tmp_path: Path) -> None:
    hub.cut_at, hub.refuse_with = [None, 20_000], [None, None, 503]
    with pytest.raises(DownloadError):
        bring(hub, tmp_path)
    hub.repositories[OWN].files[WEIGHTS] = random.randbytes(50_000)
    hub.requests.clear()
    bring(hub, tmp_path)
    assert [request.range for request in hub.of_content()] == [None]
    assert files_in(tmp_path) == OWN_FILES | {RECORD}


# Not as published


def test_a_wrong_hash_leaves_nothing(hub: TinyHub, tmp_path: Path) -> None:
    hub.spoil = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DownloadError, match=r"has the hash [0-9a-f]{64}, published is [0-9a-f]{64}; it was deleted"):
        bring(hub, tmp_path)
    assert not {name for name in files_in(tmp_path) if is_large(name) or name.endswith(".partial")}
    hub.spoil = lambda content: content
    bring(hub, tmp_path)
    assert files_in(tmp_path) == OWN_FILES | {RECORD}


def test_a_wrong_hash_of_a_small_file(hub: TinyHub, tmp_path: Path) -> None:
    """Small files have the hash of a git blob."""
    content = hub.repositories[OWN].files["transformer/config.json"]
    bring(hub, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())["files"]["livemoments/transformer/config.json"]
    assert record["published"] == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    (tmp_path / "livemoments" / "transformer" / "config.json").write_bytes(b'{"num_layers": 5}')
    assert [file.path for file in bring(hub, tmp_path) if file.state == "fetched"] == [
        "livemoments/transformer/config.json"
    ]


def test_a_file_that_changed_under_its_revision(hub: TinyHub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    before = (tmp_path / "livemoments" / WEIGHTS).read_bytes()
    hub.repositories[OWN].files[WEIGHTS] = random.randbytes(50_000)
    hub.requests.clear()
    with pytest.raises(DownloadError, match=rf"{WEIGHTS} changed under its revision {REVISION}"):
        bring(hub, tmp_path)
    assert (tmp_path / "livemoments" / WEIGHTS).read_bytes() == before
    assert hub.of_content() == []
    bring(hub, tmp_path, latest=True)
    assert (tmp_path / "livemoments" / WEIGHTS).read_bytes() == hub.repositories[OWN].files[WEIGHTS]
    assert json.loads((tmp_path / RECORD).read_text())["files"][f"livemoments/{WEIGHTS}"]["revision"] == "f" * 40


def test_a_hub_that_answers_with_another_commit(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[OWN].revision = "b" * 40
    with pytest.raises(DownloadError, match=r"is not there \(404\)\n  fix: --latest"):
        bring(hub, tmp_path)
    assert len(bring(hub, tmp_path, latest=True)) == 3


def test_a_repository_without_a_file_that_is_needed(hub: TinyHub, tmp_path: Path) -> None:
    del hub.repositories[OWN].files["motion_encoder.pt"]
    with pytest.raises(DownloadError, match=r"team/weights has no file motion\*\.pt"):
        bring(hub, tmp_path)


@pytest.mark.parametrize("name", ["transformer/../../../evil.safetensors", "transformer/..\\evil.safetensors"])
def test_a_hub_that_lists_names_outside_its_folder(hub: TinyHub, tmp_path: Path, name: str) -> None:
    hub.repositories[OWN].files[name] = b"evil"
    with pytest.raises(DownloadError, match="which leaves its folder"):
        bring(hub, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


# No network, no room


def test_no_network(hub: TinyHub, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DownloadError, match=rf"{url} cannot be reached \(ConnectError\)\n  fix: check the network"):
            fetch(tmp_path / "c", only=["livemoments"], sources=sources(hub), endpoint=url)
    assert not (tmp_path / "c").exists()


def test_the_hub_is_there_and_its_content_network_is_not(hub: TinyHub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    hub.content_url = "http://127.0.0.1:9"
    (tmp_path / "livemoments" / "motion_encoder.pt").unlink()
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9 cannot be reached"):
        bring(hub, tmp_path)


def test_too_little_room_is_known_before_anything_comes(
    hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 50_000})
    monkeypatch.setattr("livemoments.weights.download.shutil.disk_usage", lambda place: usage)
    with pytest.raises(ResourceError, match=r"0\.00 GB are to come, the disk has 0\.00 GB left"):
        bring(hub, tmp_path)
    assert hub.of_content() == []
    usage.free = 60_000
    bring(hub, tmp_path)


def test_a_disk_that_fills_up_meanwhile(hub: TinyHub, tmp_path: Path) -> None:
    """The hidden file leads to /dev/full, which is what a full disk is."""
    content = hub.repositories[OWN].files[WEIGHTS]
    digest = hashlib.sha256(content).hexdigest()
    place = tmp_path / "livemoments" / WEIGHTS
    place.parent.mkdir(parents=True)
    partial = place.with_name(f".{place.name}.{digest[:12]}.partial")
    partial.symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="is full"):
        bring(hub, tmp_path)
    assert not place.exists()
    partial.unlink()
    bring(hub, tmp_path)
    assert place.read_bytes() == content


# RAFT


def test_raft_from_a_file_of_ones_own(hub: TinyHub, tmp_path: Path) -> None:
    own = tmp_path / "mine.pth"
    own.write_bytes(raft_file())
    folder = tmp_path / "checkpoint"
    (done,) = bring(hub, folder, "raft", raft=own)
    assert (done.path, done.source) == ("raft/raft-sintel.pth", "own")
    assert (folder / done.path).read_bytes() == raft_file()
    (again,) = bring(hub, folder, "raft")
    assert again.state == "kept"
    assert hub.requests == []


def test_raft_that_is_none(hub: TinyHub, tmp_path: Path) -> None:
    own = tmp_path / "raft-small.pth"
    torch.save({"fnet.conv1.weight": torch.zeros(32, 3, 7, 7)}, own)
    with pytest.raises(CheckpointError, match=r"missing.*\n  fix: name raft-sintel\.pth"):
        bring(hub, tmp_path / "c", "raft", raft=own)
    with pytest.raises(CheckpointError, match="no such file"):
        bring(hub, tmp_path / "c", "raft", raft=tmp_path / "nothing.pth")
    with pytest.raises(UsageError, match="--only leaves RAFT out"):
        bring(hub, tmp_path / "c", "sd3", raft=own)
    assert not (tmp_path / "c").exists()


def test_another_archive_of_raft_is_refused_with_the_way_around(hub: TinyHub, tmp_path: Path) -> None:
    pinned = sources(hub)
    hub.archives["/models.zip"] += b"\0"
    with pytest.raises(DownloadError, match=r"published is .*\n  fix: .*--raft FILE"):
        fetch(tmp_path, only=["raft"], sources=pinned, endpoint=hub.url)
    assert files_in(tmp_path) == set()


def test_raft_is_gone_on_with_where_its_archive_was_whole_already(hub: TinyHub, tmp_path: Path) -> None:
    """Its size is not known beforehand, so that the server is asked for bytes behind its end."""
    archive = hub.archives["/models.zip"]
    digest = hashlib.sha256(archive).hexdigest()
    (tmp_path / "raft").mkdir()
    (tmp_path / "raft" / f".models.zip.{digest[:12]}.partial").write_bytes(archive)
    bring(hub, tmp_path, "raft")
    assert files_in(tmp_path) == {"raft/raft-sintel.pth", RECORD}


# Secrets, and the rest


def test_no_token_in_any_file_log_or_error(
    hub: TinyHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    said = []
    hub.access.add(TOKEN)
    bring(hub, tmp_path, *PARTS)
    for trouble in ("gated", "cut", "spoiled", "changed", "unreachable"):
        (tmp_path / "livemoments" / WEIGHTS).unlink(missing_ok=True)
        (tmp_path / "sd3" / "vae" / "model.safetensors").unlink(missing_ok=True)
        hub.access = set() if trouble == "gated" else {TOKEN}
        if trouble == "cut":
            hub.cut_at, hub.refuse_with = [100], [None, 503]
        if trouble == "spoiled":
            hub.spoil = lambda content: content[::-1]
        if trouble == "changed":
            hub.repositories[OWN].listed[WEIGHTS] = "0" * 64
        if trouble == "unreachable":
            hub.content_url = "http://127.0.0.1:9"
            hub.spoil, hub.repositories[OWN].listed = (lambda content: content), {}
        with pytest.raises(DownloadError) as caught:
            bring(hub, tmp_path, "livemoments", "sd3")
        said.append(f"{caught.value!r} {caught.value} {caught.value.__cause__} {caught.getrepr(style='long')}")
    out, err = capfd.readouterr()
    texts = [*said, caplog.text, out, err]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert any(request.token == TOKEN for request in hub.requests)
    assert not [text for text in texts if TOKEN in text]


def test_the_signature_of_an_address_is_in_no_message(hub: TinyHub, tmp_path: Path) -> None:
    hub.refuse_with = [500]
    with pytest.raises(DownloadError, match="the server answered 500") as caught:
        bring(hub, tmp_path)
    assert "secret-of-the-address" not in str(caught.value)


def test_two_fetches_do_not_meet(hub: TinyHub, tmp_path: Path) -> None:
    with only_one(tmp_path / ".fetch.lock"), pytest.raises(OutputError, match="another fetch is writing there"):
        bring(hub, tmp_path)
    bring(hub, tmp_path)


def test_a_record_that_cannot_be_read(hub: TinyHub, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(OutputError, match=r"cannot be read .*\n  fix: delete it"):
        bring(hub, tmp_path)


def test_a_file_where_the_folder_should_be(hub: TinyHub, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("")
    with pytest.raises(OutputError, match="a file is in the way"):
        bring(hub, tmp_path / "checkpoint")


def test_the_published_sources() -> None:
    found = published_sources()
    for source in (found.livemoments, found.sd3, *found.text_encoders.values()):
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
        assert re.fullmatch(r"[\w-]+/[\w.-]+", source.repository)
    assert {source.revision for source in found.text_encoders.values()} == {found.sd3.revision}
    assert not [name for name in found.text_encoders["clip"].files if name.startswith("text_encoder_3/model")]
    assert re.fullmatch(r"[0-9a-f]{64}", found.raft.sha256)
    assert found.raft.file == "raft/raft-sintel.pth"


def test_the_command(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "published_sources", lambda: sources(hub))
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    done = run("fetch", tmp_path / "c", "--only", "raft, livemoments", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [file["path"] for file in document["files"]][-1] == "raft/raft-sintel.pth"
    assert document["bytes"] == sum(file["bytes"] for file in document["files"])
    again = run("fetch", tmp_path / "c", "--only", "livemoments")
    assert "3 files, 53.0 kB, 0 of them fetched now" in again.stdout
    assert f"next: livemoments inspect {tmp_path / 'c'}" in again.stdout
    gated = run("fetch", tmp_path / "c", "--only", "sd3")
    assert gated.exit_code == 2
    assert "access is refused (401)" in gated.stderr
    wrong = run("fetch", tmp_path / "c", "--only", "vae")
    assert wrong.exit_code == 2
    assert "use livemoments, sd3, text-encoders, raft" in wrong.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
