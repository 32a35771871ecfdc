"""Images spread over a Ray cluster: the same results as in one process, whoever dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import make_fake_bundle
from harness_support import (
    AlwaysDeadly,
    DeadlyOnce,
    Slow,
    make_dataset,
    pictures_in,
    run,
    spoil,
    with_item,
    without_times,
)
from places import SUPPORT

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, MissingExtraError, ResourceError, UsageError
from livemoments.types import Size
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.harness.ray_engine import plan_workers
from livemoments.validate.harness.run_store import features_file
from livemoments.validate.report_data import ImageResult

pytestmark = pytest.mark.process

COUNT = 6
OBJECT_STORE_BYTES = 200 << 20


@pytest.mark.parametrize(
    ("nodes", "workers", "uses_gpu", "expected"),
    [
        ([(2, 0)], None, False, (1, 2)),  # one per machine, all of its processors
        ([(1, 0), (1, 0)], None, False, (2, 1)),
        ([(16, 0), (8, 0)], None, False, (2, 8)),
        ([(16, 0), (8, 0)], 3, False, (3, 8)),
        ([(16, 0), (8, 0)], 6, False, (6, 4)),
        ([(2, 0)], 2, False, (2, 1)),
        ([(16, 2), (8, 0)], None, True, (2, 8)),
        ([(16, 2), (12, 4)], 3, True, (3, 3)),
        ([(0, 0), (4, 0)], None, False, (1, 4)),  # a head node without work
    ],
)
def test_workers_share_the_machines(
    nodes: list[tuple[float, float]], workers: int | None, uses_gpu: bool, expected: tuple[int, int]
) -> None:
    assert plan_workers(nodes, workers, uses_gpu=uses_gpu) == expected


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="3 CPUs, too few for 4 workers"):
        plan_workers([(2, 0), (1, 0)], 4, uses_gpu=False)
    with pytest.raises(UsageError, match="0 GPUs, too few for a worker"):
        plan_workers([(8, 0)], None, uses_gpu=True)
    with pytest.raises(UsageError, match="1 GPUs, too few for 2 workers"):
        plan_workers([(8, 1)], 2, uses_gpu=True)


def test_ray_that_is_not_installed_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    bundle = make_fake_bundle(tmp_path / "b")
    dataset = make_dataset(tmp_path / "data", 1)
    with pytest.raises(MissingExtraError, match="extra 'ray'"):
        run(bundle, dataset, tmp_path / "work", engine="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_one_error(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    bundle = make_fake_bundle(tmp_path / "b")
    dataset = make_dataset(tmp_path / "data", 1)
    with pytest.raises(UsageError, match=f"no Ray cluster at '{address}'"):
        run(bundle, dataset, tmp_path, engine="ray", ray_address=address)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("bundle") / "b", tiles=(Size(64, 64),))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), COUNT)


@pytest.fixture(scope="module")
def alone(bundle: Bundle, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageResult, ...]:
    work = tmp_path_factory.mktemp("alone")
    return run(bundle, dataset, work)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of one processor each, on this one."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(SUPPORT))  # where workers find the tests' metrics
        yield from _two_machines()


def _two_machines() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    before = _ray_processes()
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    found.add_node(**node)
    ray.init(address=found.address, log_to_driver=False, logging_level="error")
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()
    _await_end(before)


def _await_end(before: set[str]) -> None:
    """No process of a cluster may outlive it."""
    limit_s = time.monotonic() + 30
    while left := _ray_processes() - before:
        assert time.monotonic() < limit_s, left
        time.sleep(0.2)


def _ray_processes() -> set[str]:
    """Process ids and command lines of Ray's processes."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z" and ("/ray/core/src/ray/" in command or command.startswith("ray::")):
            found.add(f"{folder.name} {command[:80]}")
    return found


@pytest.mark.slow
def test_two_machines_give_what_one_process_gives(
    cluster: Any, bundle: Bundle, dataset: Dataset, alone: tuple[ImageResult, ...], tmp_path: Path
) -> None:
    dataset = with_item(dataset, 2, spoil(replace_files(dataset, 2, tmp_path / "spoiled")))
    slow = Slow(0.5)  # so that the machine that starts later gets its share
    found = run(bundle, dataset, tmp_path / "work", metrics=slow, engine="ray")
    local = run(bundle, dataset, tmp_path / "local")
    assert [without_times(result) for result in found] == [without_times(result) for result in local]
    assert [result.status for result in found].count("failed") == 1
    assert [without_times(found[index]) for index in (0, 1, 3, 4, 5)] == [
        without_times(alone[index]) for index in (0, 1, 3, 4, 5)
    ]
    assert pictures_in(tmp_path / "work") == pictures_in(tmp_path / "local")
    for name in (result.name for result in found if result.status == "ok"):
        both = [features_file(tmp_path / run, name).read_bytes() for run in ("work", "local")]
        assert both[0] == both[1]
    assert len({result.worker for result in found}) == 2, "both worked"
    assert all(result.worker.split(":")[1] != str(os.getpid()) for result in found)


@pytest.mark.slow
def test_a_run_begun_here_ends_on_the_cluster(
    cluster: Any, bundle: Bundle, dataset: Dataset, alone: tuple[ImageResult, ...], tmp_path: Path
) -> None:
    def stop(result: ImageResult) -> None:
        if result.name == "photo001":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bundle, dataset, tmp_path, on_result=stop)
    found = run(bundle, dataset, tmp_path, engine="ray", workers=2)
    assert [without_times(result) for result in found] == [without_times(result) for result in alone]
    assert [str(os.getpid()) in result.worker for result in found] == [True] * 2 + [False] * 4


@pytest.mark.slow
def test_the_image_of_a_dead_worker_goes_to_another(
    cluster: Any, bundle: Bundle, dataset: Dataset, alone: tuple[ImageResult, ...], tmp_path: Path
) -> None:
    marker = tmp_path / "killed"
    found = run(bundle, dataset, tmp_path / "work", metrics=DeadlyOnce(marker), engine="ray", workers=2)
    assert marker.exists()
    assert [without_times(result) for result in found] == [without_times(result) for result in alone]


@pytest.mark.slow
def test_an_image_that_kills_every_worker_ends_the_run(
    cluster: Any, bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    deadly = DeadlyOnce(tmp_path / "no such folder" / "marker")  # which cannot be made
    with pytest.raises(Exception, match="No such file"):  # a bug in a metric keeps its traceback
        run(bundle, dataset, tmp_path / "bug", metrics=deadly, engine="ray", workers=1)
    with pytest.raises(ResourceError, match="3 workers died on it"):
        run(bundle, dataset, tmp_path / "work", metrics=AlwaysDeadly(), engine="ray", workers=1)
    assert len((tmp_path / "work" / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_another_bundle_at_the_workers_path_is_refused(
    cluster: Any, bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    mine = make_fake_bundle(tmp_path / "b", tiles=(Size(64, 64),), seed=1)
    (tmp_path / "b").rename(tmp_path / "old")
    make_fake_bundle(tmp_path / "b", tiles=(Size(64, 64),), seed=2)
    manifest = tmp_path / "b" / "manifest.json"
    theirs = manifest.read_bytes()

    class Switching:
        """This machine's manifest while the run begins, the workers' afterwards."""

        def __enter__(self) -> None:
            manifest.write_bytes((tmp_path / "old" / "manifest.json").read_bytes())

        def __exit__(self, *_: object) -> None:
            manifest.write_bytes(theirs)

    from livemoments.validate.harness import run as run_module

    true_key = run_module.run_key

    def switching_key(*arguments: Any) -> dict[str, Any]:
        manifest.write_bytes(theirs)  # the digest of this machine's was taken
        return true_key(*arguments)

    with Switching(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "run_key", switching_key)
        with pytest.raises(EngineError, match="not the bundle that the run began with"):
            run(mine, dataset, tmp_path / "work", engine="ray")


@pytest.mark.slow
def test_more_workers_than_processors_are_refused(
    cluster: Any, bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="2 CPUs, too few for 3 workers"):
        run(bundle, dataset, tmp_path, engine="ray", workers=3)


def replace_files(dataset: Dataset, index: int, place: Path) -> Any:
    """An item with a copy of its photo, so that spoiling it leaves the others' data set whole."""
    item = dataset.items[index]
    place.mkdir()
    copy = place / item.photo.name
    copy.write_bytes(item.photo.read_bytes())
    return replace(item, photo=copy)


@pytest.mark.slow
def test_a_cluster_that_the_run_starts_ends_with_it(
    bundle: Bundle, dataset: Dataset, alone: tuple[ImageResult, ...], tmp_path: Path
) -> None:
    before = _ray_processes()
    script = """
import sys
from pathlib import Path
from harness_support import make_dataset, run
work = Path(sys.argv[2])
run(sys.argv[1], make_dataset(work / "data", 2), work, engine="ray", workers=2)
import ray
print("still connected" if ray.is_initialized() else "done")
"""
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, "-c", script, str(bundle.path), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "done"
    _await_end(before)
    again = run(
        bundle, replace(dataset, items=dataset.items[:2]), tmp_path
    )  # reads the journal: the worker's name shows who did it
    assert [without_times(result) for result in again] == [without_times(result) for result in alone[:2]]
    assert all(result.worker for result in again)
