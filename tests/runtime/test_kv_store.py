"""Stores and the cache of reference keys and values."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hidden_entries import left_behind

from livemoments.errors import OutputError, ResourceError, UsageError
from livemoments.runtime.keys_values.codecs import Float16Codec, find_codec
from livemoments.runtime.keys_values.content_cache import CacheUse, KvCache, content_key
from livemoments.runtime.keys_values.step_store import KvStore, open_store

HALF_ROUNDING = 2.0**-11

Kind = Literal["host", "disk"]
KINDS = pytest.mark.parametrize("kind", ["host", "disk"])


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng()
    return {
        "reference_k.0": rng.standard_normal((2, 5, 8)).astype(np.float32),
        "reference_kv": rng.standard_normal((3, 2, 2, 5, 8)).astype(np.float16),
    }


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[n].dtype == wanted[n].dtype and np.array_equal(found[n], wanted[n]) for n in wanted
    )


@KINDS
def test_native_store_gives_back_what_was_put(kind: Kind, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with open_store(kind, parent=tmp_path) as store:
        store.put((0, 3), arrays)
        store.put((1, 3), {"x": np.arange(4)})
        assert same(store.get((0, 3)), arrays)
        assert store.nbytes == sum(a.nbytes for a in arrays.values()) + 4 * 8
        store.put((1, 3), {"x": np.arange(2)})
        assert store.get((1, 3))["x"].tolist() == [0, 1]
        store.discard((0, 3))
        store.discard((9, 9))
        assert store.nbytes == 2 * 8
        with pytest.raises(KeyError):
            store.get((0, 3))
        store.clear()
        assert store.nbytes == 0


@KINDS
def test_float16_store_halves_and_rounds(kind: Kind, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with open_store(kind, codec="float16", parent=tmp_path) as store:
        store.put((0, 0), arrays)
        found = store.get((0, 0))
        assert store.nbytes == sum(2 * a.size for a in arrays.values())
        assert found["reference_k.0"].dtype == np.float32
        np.testing.assert_allclose(found["reference_k.0"], arrays["reference_k.0"], rtol=HALF_ROUNDING, atol=1e-7)
        assert np.array_equal(found["reference_kv"], arrays["reference_kv"])


def test_float16_clamps_instead_of_overflowing() -> None:
    stored = Float16Codec().encode(np.array([1e6, -1e6, 1.0], np.float32))
    assert stored.tolist() == [65504.0, -65504.0, 1.0]


def test_host_budget_is_a_resource_error_with_a_fix(arrays: dict[str, np.ndarray]) -> None:
    size = sum(a.nbytes for a in arrays.values())
    with open_store("host", budget_bytes=2 * size) as store:
        store.put((0, 0), arrays)
        store.put((0, 1), arrays)
        with pytest.raises(ResourceError, match="--kv-store disk"):
            store.put((0, 2), arrays)
        store.discard((0, 0))
        store.put((0, 2), arrays)
        assert store.nbytes == 2 * size


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_disk_folder_is_gone_after_use_error_and_interrupt(
    error: type[BaseException] | None, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    def work(store: KvStore) -> None:
        store.put((0, 0), arrays)
        assert sum(1 for _ in tmp_path.rglob("*.npy")) == len(arrays)
        if error is not None:
            raise error

    def use() -> None:
        with open_store("disk", parent=tmp_path) as store:
            work(store)

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    dead = left_behind(tmp_path / ".livemoments-kv.partial-1234abcd")
    with open_store("disk", parent=tmp_path):
        assert not dead.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_disk_trouble_is_a_resource_error_and_leaves_no_entry(
    code: int, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, "trouble")

    with open_store("disk", parent=tmp_path) as store:
        monkeypatch.setattr(np, "save", full)
        with pytest.raises(ResourceError, match="disk is full" if code == errno.ENOSPC else "trouble"):
            store.put((0, 0), arrays)
        assert store.nbytes == 0
        assert not list(tmp_path.rglob("0-0"))


def test_unknown_kinds_codecs_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        find_codec("int4")
    with pytest.raises(UsageError, match="tape"), open_store("tape"):  # type: ignore[arg-type]
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), open_store("disk", parent=tmp_path / "file"):
        pass
    with pytest.raises(OutputError):
        KvCache(tmp_path / "file" / "cache")


def test_content_key_sees_every_ingredient() -> None:
    image = np.random.default_rng(1).standard_normal((3, 8, 8)).astype(np.float32)
    noise = image[:, :4].copy()
    changed = image.copy()
    changed[2, 7, 7] = np.nextafter(changed[2, 7, 7], np.float32(9))
    keys = [
        content_key({"reference": "a"}, image, noise),
        content_key({"reference": "b"}, image, noise),
        content_key({"reference": "a"}, changed, noise),
        content_key({"reference": "a"}, image, -noise),
        content_key({"reference": "a"}, image.reshape(3, 4, 16), noise),
        content_key({"reference": "a"}, image.astype(np.float64), noise),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == content_key({"reference": "a"}, np.asfortranarray(image), noise)


@pytest.mark.parametrize("codec", ["native", "float16"])
def test_cache_hit_equals_what_put_returned(codec: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    cache = KvCache(tmp_path / "new" / "cache", find_codec(codec))
    assert cache.get("key", 0) is None
    returned = cache.put("key", 0, arrays)
    found = KvCache(tmp_path / "new" / "cache", find_codec(codec)).get("key", 0)
    assert found is not None
    assert same(found, returned)
    assert same(returned, arrays) == (codec == "native")
    assert cache.get("key", 1) is None
    assert cache.get("other", 0) is None
    assert (cache.hits, cache.misses) == (0, 3)


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [_flip, lambda d: d[:-1], lambda d: b"", lambda d: d + b"x", lambda d: b"0" * len(d)]
)
def test_damaged_entries_are_misses_and_can_be_written_again(
    damage: Callable[[bytes], bytes], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    cache = KvCache(tmp_path)
    cache.put("key", 0, arrays)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("key", 0) is None
    cache.put("key", 0, arrays)
    assert cache.get("key", 0) is not None


def test_interrupted_cache_write_leaves_nothing(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KvCache(tmp_path)

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put("key", 0, arrays)
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_make_room(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    stored = sum(array.nbytes for array in arrays.values())
    KvCache(tmp_path).put("size", 0, arrays)
    (one,) = tmp_path.iterdir()
    entry = one.stat().st_size
    one.unlink()
    cache = KvCache(tmp_path, budget_bytes=3 * entry)
    paths = {}
    for number, key in enumerate("abc"):
        cache.put(key, 0, arrays)
        (paths[key],) = set(tmp_path.iterdir()) - set(paths.values())
        os.utime(paths[key], ns=(number, number))  # as if they had been written one after the other
    assert cache.dropped == 0
    assert KvCache(tmp_path).get("a", 0) is not None  # another run's use counts too
    cache.put("d", 0, arrays)
    assert {key for key in "abcd" if KvCache(tmp_path).get(key, 0) is not None} == {"a", "c", "d"}
    assert (cache.dropped, cache.use) == (1, CacheUse(0, 0, 1))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * entry
    small = KvCache(tmp_path, budget_bytes=stored - 1)
    assert same(small.put("too large", 0, arrays), arrays)
    assert small.get("too large", 0) is None
    assert len(list(tmp_path.iterdir())) == 3  # what cannot be kept drops nothing


def test_whatever_else_lies_in_the_folder_stays(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    cache = KvCache(tmp_path, budget_bytes=1 << 12)
    for number in range(20):
        cache.put(str(number), 0, arrays)
    assert cache.dropped > 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
