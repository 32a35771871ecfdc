"""Opening bundles: what is whole opens, and each thing that is not is refused in one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_folder import GRAPH, WEIGHTS, write_small_bundle

from livemoments.bundle import MANIFEST_NAME, Bundle, hash_file, open_bundle
from livemoments.errors import BundleError, FileError
from livemoments.manifest import SCHEMA_VERSION
from livemoments.types import Size, Stage


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / MANIFEST_NAME
    found = json.loads(file.read_bytes())
    change(found)
    file.write_text(json.dumps(found))


def test_what_was_written_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert set(opened.manifest.files) == {GRAPH, WEIGHTS}
    assert opened.tile_sizes == (Size(height=96, width=64),)
    assert opened.graph(Stage.FLOW, Size(64, 64)).path == GRAPH
    with pytest.raises(BundleError, match="no stage 'motion'; it has flow"):
        opened.stage(Stage.MOTION)


def test_a_stages_digest_follows_its_files(bundle: Path, tmp_path: Path) -> None:
    other = write_small_bundle(tmp_path / "other", content=b"grapH")
    same = write_small_bundle(tmp_path / "same")
    assert open_bundle(bundle).digest("flow") == open_bundle(same).digest("flow")
    assert open_bundle(bundle).digest("flow") != open_bundle(other).digest("flow")


@pytest.mark.parametrize(
    ("recipe", "smoothed", "expected"),
    [
        (None, None, False),
        ("int8-weights", None, False),
        ("int8", None, True),
        ("my-recipe.toml", None, True),  # of a user, by a release that did not say it
        ("my-recipe.toml", False, False),
        ("int8-weights", True, True),
    ],
)
def test_what_may_have_been_smoothed(bundle: Path, recipe: str | None, smoothed: bool | None, expected: bool) -> None:
    assert "smoothed" not in json.loads((bundle / MANIFEST_NAME).read_bytes())  # older releases read an export
    said = {} if smoothed is None else {"smoothed": smoothed}
    edit_manifest(bundle, lambda manifest: manifest.update(recipe=recipe, **said))
    assert open_bundle(bundle).manifest.may_be_smoothed is expected


def test_a_size_without_a_graph_names_what_there_is(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["stages"]["flow"]["graphs"][0].update(size="64x64"))
    opened = open_bundle(bundle)
    assert opened.graph("flow", Size(64, 64)).path == GRAPH
    with pytest.raises(BundleError, match="no graph for 96x64 tiles; it has 64x64") as caught:
        opened.graph("flow", Size(64, 96))
    assert caught.value.fix == "export again with --tile 96x64"


def test_places_that_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for place, words in (
        ("missing", "no such bundle"),
        ("file", "not a bundle"),
        ("empty", "not a bundle"),
        ("file/below", "no such bundle"),
        ("x" * 300, "cannot be read"),
    ):
        with pytest.raises(BundleError, match=words) as caught:
            Bundle.open(tmp_path / place)
        assert str(tmp_path / place) in caught.value.message
        assert caught.value.fix


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"\0" * 100, b'{"a": 1}}'])
def test_a_manifest_that_is_not_json(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: not valid JSON") as caught:
        Bundle.open(bundle)
    assert caught.value.fix


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None, [1], 1.5])
def test_unknown_schema_versions(bundle: Path, version: object) -> None:
    edit_manifest(bundle, lambda m: m.update(schema_version=version, overlap="not read before the version"))
    with pytest.raises(BundleError, match=r"schema version .* is not known; this release reads version 1"):
        Bundle.open(bundle)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}"])
def test_json_that_is_no_manifest(bundle: Path, content: str) -> None:
    (bundle / MANIFEST_NAME).write_text(content)
    with pytest.raises(BundleError, match="schema version None"):
        Bundle.open(bundle)


def _set(*keys: Any, value: object) -> Callable[[dict[str, Any]], None]:
    def change(found: Any) -> None:
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("overlap"), "missing required field `overlap`"),
        (_set("surprise", value=1), "unknown field `surprise`"),
        (_set("model", "surprise", value=1), "unknown field `surprise`"),
        (_set("files", GRAPH, "surprise", value=1), "unknown field `surprise`"),
        (lambda m: m["files"][GRAPH].pop("sha256"), "missing required field `sha256`"),
        (_set("files", GRAPH, "bytes", value="5"), "Expected `int`"),
        (_set("overlap", value="16"), "Expected `int`"),
        (_set("overlap", value=float("nan")), "malformed"),
        (_set("tiles", value=["64by64"]), "'64by64' is not a size"),
        (_set("stages", "flow", "graphs", 0, "size", value="huge"), "'huge' is not a size"),
        (_set("reference_policy", value="sometimes"), "'sometimes' is not a reference policy"),
        (lambda m: m["stages"].update(flux=m["stages"]["flow"]), "stages that do not exist: flux"),
        (_set("schedule", "plans", "6", value=[0, 1, 2, 3, 4, 99]), "its plan for 6 steps"),
        (_set("schedule", "plans", "6", value=[-1]), "its plan for 6 steps"),
        (_set("schedule", "indices", value=[923]), "points and 1 indices"),
        (_set("schedule", "default_steps", value=5), "no plan for its own default of 5 steps"),
        (_set("schedule", "plans", "six", value=[0]), "named 'six'"),
        (_set("schedule", "plans", "6", value=[0] * 10**5), "a plan of 100000 points"),
        (_set("schedule", "noise_level", value=2.0), "noise_level"),
        (_set("model", "vae_scale", value=0), "vae_scale"),
        (_set("model", "num_heads", value=0), "num_heads"),
        (_set("model", "latent_scaling", value=0.0), "latent_scaling"),
        (_set("tiles", value=[f"{64 + 8 * i}x64" for i in range(2000)]), "length <= 1000"),
        (_set("tiles", value=[]), "tiles"),
        (_set("overlap", value=63), "an overlap of 63 px"),
        (_set("overlap", value=-1), "overlap"),
        (_set("files", GRAPH, "bytes", value=-1), "bytes"),
        (_set("files", GRAPH, "sha256", value="no"), "sha256"),
        (_set("stages", "flow", "graphs", 0, "inputs", 0, "dtype", value="garbage"), "of type 'garbage'"),
        (_set("stages", "flow", "graphs", 0, "inputs", 0, "shape", value=["batch", -1]), "cannot have the shape"),
        (_set("stages", "flow", "graphs", 0, "inputs", 0, "shape", value=[10**12, 10**12]), "cannot have the shape"),
        (_set("stages", "flow", "graphs", 0, "inputs", 0, "shape", value=[1] * 99), "cannot have the shape"),
        (
            _set("stages", "flow", "parity", value=[{"size": "any", "rel_l2": 1.0, "limit": 0.0, "output": "flow"}]),
            "limit",
        ),
    ],
)
def test_malformed_manifests_say_where(bundle: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match="the manifest is malformed") as caught:
        Bundle.open(bundle)
    assert words in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "flow/../../x", "..", "", "a\\..\\x"])
@pytest.mark.parametrize("where", ["files", "graph", "weights"])
def test_names_that_leave_the_folder(bundle: Path, tmp_path: Path, name: str, where: str) -> None:
    (tmp_path / "x").write_bytes(b"graph")
    _rename(bundle, where, name)
    with pytest.raises(BundleError, match="leaves the bundle's folder") as caught:
        Bundle.open(bundle)
    assert f"'{name}'" in caught.value.message


def _rename(bundle: Path, where: str, name: str) -> None:
    def change(found: dict[str, Any]) -> None:
        graph = found["stages"]["flow"]["graphs"][0]
        if where == "files":
            found["files"][name] = found["files"].pop(GRAPH)
        elif where == "graph":
            graph["path"] = name
        else:
            graph["weights"] = [name]

    edit_manifest(bundle, change)


@pytest.mark.parametrize(("name", "words"), [("a\0b", "not a file name"), ("x" * 300, "missing"), (".", "missing")])
def test_names_that_no_file_can_have(bundle: Path, name: str, words: str) -> None:
    _rename(bundle, "files", name)
    _rename(bundle, "graph", name)
    with pytest.raises(BundleError, match=words):
        Bundle.open(bundle)


def test_links_may_stay_inside_but_not_leave(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / GRAPH, tmp_path / "outside")
    (bundle / GRAPH).rename(bundle / "flow" / "real")
    (bundle / GRAPH).symlink_to("real")
    Bundle.open(bundle)
    (bundle / GRAPH).unlink()
    (bundle / GRAPH).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="is a link out of the bundle's folder"):
        Bundle.open(bundle)
    (bundle / GRAPH).unlink()
    (bundle / GRAPH).symlink_to(GRAPH.rsplit("/", maxsplit=1)[-1])  # a loop
    with pytest.raises(BundleError, match="missing"):
        Bundle.open(bundle)


def test_a_linked_folder_leaves_too_but_a_linked_bundle_opens(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    Bundle.open(tmp_path / "link")
    (bundle / "flow").rename(tmp_path / "flow")
    (bundle / "flow").symlink_to(tmp_path / "flow")
    with pytest.raises(BundleError, match="is a link out of the bundle's folder"):
        Bundle.open(bundle)


def test_a_file_in_use_needs_a_hash(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["files"].pop(WEIGHTS))
    with pytest.raises(BundleError, match=f"uses '{WEIGHTS}' but lists no hash"):
        Bundle.open(bundle)


def test_files_that_are_missing_cut_or_changed(bundle: Path) -> None:
    file = bundle / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="is 4999 bytes long, the manifest says 5000"):
        Bundle.open(bundle, verify_hashes=False)
    file.write_bytes(whole[:100] + b"?" + whole[101:])
    Bundle.open(bundle, verify_hashes=False)
    with pytest.raises(BundleError, match="its SHA-256 is not the manifest's") as caught:
        Bundle.open(bundle)
    assert str(file) in caught.value.message
    file.unlink()
    for stand_in in (lambda: None, file.mkdir):
        stand_in()
        with pytest.raises(BundleError, match="missing: the manifest lists this file"):
            Bundle.open(bundle, verify_hashes=False)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read") as caught:
        hash_file(tmp_path)
    assert str(tmp_path) in caught.value.message
