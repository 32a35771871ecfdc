"""Which engines may be opened where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle, hash_file, rewrite_manifest
from livemoments.engine_files import EngineHost, build_command, find_engine
from livemoments.errors import BundleError, EngineError
from livemoments.manifest import EngineFile
from livemoments.types import Size, Stage

SIZE = Size(64, 64)
ADA = EngineHost("rtx", "1.7.1", ("8.9",))
H20 = EngineHost("tensorrt", "11.0.0", ("9.0",), "580.1")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_fake_bundle(tmp_path / "my bundle")


def with_engine(bundle: Bundle, **changes: object) -> Bundle:
    """Motion's graph gets an engine of TensorRT for RTX 1.7.1 for SM 8.6 and 8.9."""
    entry = bundle.stage(Stage.MOTION)
    (graph,) = entry.graphs
    told: dict[str, object] = {"library": "rtx", "version": "1.7.1", "sm": ("8.6", "8.9")}
    told |= {"graph_sha256": bundle.graph_digest(graph)} | changes
    engine = EngineFile(path="motion/e.engine", size=str(SIZE), batch=1, **told)  # type: ignore[arg-type]
    (bundle.path / engine.path).write_bytes(b"engine")
    graph = msgspec.structs.replace(graph, engines=(engine,))
    stages = {**bundle.manifest.stages, "motion": msgspec.structs.replace(entry, graphs=(graph,))}
    files = {**bundle.manifest.files, engine.path: hash_file(bundle.path / engine.path)}
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, stages=stages, files=files))


def test_an_engine_that_fits_is_found(bundle: Bundle) -> None:
    assert find_engine(with_engine(bundle), Stage.MOTION, SIZE, 1, ADA) == bundle.path / "motion/e.engine"


@pytest.mark.parametrize(
    ("changes", "host", "cause"),
    [
        ({}, replace(ADA, sm=("12.0",)), r"built for SM 8\.6, 8\.9, not for SM 12\.0"),
        ({}, replace(ADA, version="1.7.2"), r"built by TensorRT for RTX 1\.7\.1, and 1\.7\.2 is installed"),
        ({"graph_sha256": "0" * 64}, ADA, r"motion/64x64\.onnx or its weights changed since it was built"),
        (
            {"library": "tensorrt", "version": "11.0.0", "sm": ("9.0",), "driver": "570.1"},
            H20,
            r"built with driver 570\.1, and this is 580\.1",
        ),
        ({"library": "tensorrt", "version": "11.0.0", "sm": ("8.9",)}, H20, r"built for SM 8\.9, not for SM 9\.0"),
    ],
)
def test_one_that_does_not_is_refused_with_cause_and_command(
    bundle: Bundle, changes: dict[str, object], host: EngineHost, cause: str
) -> None:
    with pytest.raises(EngineError, match=cause) as raised:
        find_engine(with_engine(bundle, **changes), Stage.MOTION, SIZE, 1, host)
    assert str(bundle.path / "motion/e.engine") in raised.value.message
    gpus = f" --sm {','.join(host.sm)}" if host.library == "rtx" else ""
    command = f"livemoments build '{bundle.path}' --engine {host.library}{gpus} --stages motion --rebuild"
    assert raised.value.fix == f"build it again: {command}"


def test_one_that_is_not_there_is_said(bundle: Bundle) -> None:
    opened = with_engine(bundle)
    for stage, batch, host in ((Stage.FLOW, 1, ADA), (Stage.MOTION, 2, ADA), (Stage.MOTION, 1, H20)):
        with pytest.raises(
            EngineError, match=f"stage '{stage}' has no TensorRT.* engine for 64x64 .*batches of {batch}"
        ):
            find_engine(opened, stage, SIZE, batch, host)
    with pytest.raises(BundleError, match="no graph for 96x96"):
        find_engine(opened, Stage.MOTION, Size(96, 96), 1, ADA)


def test_a_version_compatible_engine_is_opened_by_later_versions_of_the_same_major(bundle: Bundle) -> None:
    changes = {"library": "tensorrt", "version": "11.1.0", "sm": ("9.0",), "flags": ("version-compatible",)}
    opened = with_engine(bundle, **changes)
    find_engine(opened, Stage.MOTION, SIZE, 1, replace(H20, version="11.4.2"))
    for version in ("11.0.0", "12.0.0", "10.9.0"):
        with pytest.raises(EngineError, match="is installed"):
            find_engine(opened, Stage.MOTION, SIZE, 1, replace(H20, version=version))


def test_a_hardware_compatible_engine_runs_from_ampere_on(bundle: Bundle) -> None:
    changes = {"library": "tensorrt", "version": "11.0.0", "sm": ("9.0",), "flags": ("hardware-compatible",)}
    opened = with_engine(bundle, **changes)
    for sm in ("8.0", "8.9", "12.0"):
        find_engine(opened, Stage.MOTION, SIZE, 1, replace(H20, sm=(sm,)))
    with pytest.raises(EngineError, match=r"not for SM 7\.5"):
        find_engine(opened, Stage.MOTION, SIZE, 1, replace(H20, sm=("7.5",)))


def test_the_command_is_what_a_shell_takes(bundle: Bundle) -> None:
    assert build_command(bundle, H20, batch=4, flags=("refit",)) == (
        f"livemoments build '{bundle.path}' --engine tensorrt --batch 4 --refit"
    )


def test_the_command_builds_what_was_refused(bundle: Bundle) -> None:
    """With the engine's own options and size: without, another engine would be built in its place, or none."""
    opened = with_engine(bundle, flags=("weight-streaming", "optimization-level=4"))
    with pytest.raises(EngineError, match="is installed") as raised:
        find_engine(opened, Stage.MOTION, SIZE, 1, replace(ADA, version="1.8.0"))
    assert str(raised.value.fix).endswith("--stages motion --weight-streaming --optimization-level=4 --rebuild")
    with pytest.raises(EngineError, match=r"has no .* engine for 640x480") as raised:
        find_engine(opened, Stage.FLOW, Size(480, 640), 1, ADA)
    assert str(raised.value.fix).endswith("--stages flow --flow-size 640x480")
    (bundle.path / "motion/e.engine").unlink()
    rewrite_manifest(bundle.path, opened.manifest)
    with pytest.raises(BundleError) as broken:
        Bundle.open(bundle.path)
    asked = "--sm 8.6,8.9 --stages motion --weight-streaming --optimization-level=4 --rebuild"
    assert str(broken.value.fix).endswith(asked)
