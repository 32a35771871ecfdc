"""Bundles on disk: opened with every hash checked; an interrupted write leaves nothing that looks finished."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import BundleError
from livemoments.manifest import SCHEMA_VERSION, EngineFile, FileEntry, Graph, Manifest, StageEntry
from livemoments.store.errors import output_errors
from livemoments.store.files import write_file
from livemoments.store.folders import StagedFolder, check_destination, stage_folder
from livemoments.store.hashed_folders import HashedFolders, encode_manifest
from livemoments.store.hashed_folders import hash_file as hash_file
from livemoments.types import ReferencePolicy, Size, Stage, TensorSpec

MANIFEST_NAME = "manifest.json"
_DTYPES = frozenset({"float32", "float16", "int64", "int32", "int8", "uint8"})
_MAX_AXES = 8
_MAX_ELEMENTS = 1 << 34  # of one tensor in a batch of one; the keys of all blocks of a 3072-px tile have 2^31


class Bundle:
    """An opened bundle: the manifest, and the paths of its files.

    Use :meth:`open`; the constructor checks nothing.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify_hashes: bool = True, engines: bool = True, weights: bool = True
    ) -> Bundle:
        """Open a bundle and check it.

        Args:
            path: the bundle's folder.
            verify_hashes: read every file and compare its SHA-256 (sizes are compared in any case).
            weights: the weights' files must be there; otherwise only the manifest and the graphs, to look at them.
            engines: look at the engines' files too; those who build them anew need not.

        Raises:
            BundleError: not a bundle, an unknown schema version, a malformed manifest, a path that leaves the folder,
                a missing file, a wrong size or hash.
            FileError: a file of the bundle cannot be read.
        """
        folder = Path(path)
        manifest = BUNDLES.read(folder)
        BUNDLES.check_names(folder, manifest.files, [name for graph in _graphs(manifest) for name in graph.files])
        built = {engine.path: engine for graph in _graphs(manifest) for engine in graph.engines}
        unread = set() if weights else {name for graph in _graphs(manifest) for name in graph.weights}
        for name, entry in manifest.files.items():
            if name not in unread and (engines or name not in built):
                renew = _build_again(folder, built[name]) if name in built else ""
                BUNDLES.check_file(folder / name, entry, verify_hash=verify_hashes, renew=renew)
        return cls(folder, manifest)

    def stage(self, stage: Stage | str) -> StageEntry:
        """The entry of a stage.

        Raises:
            BundleError: the bundle does not have it.
        """
        entry = self.manifest.stages.get(str(stage))
        if entry is None:
            fix = "export again, without --stages"
            if stage not in self.manifest.model.stages:
                fix = "say --flow dis: its checkpoint has no RAFT"
            elif stage == Stage.FLOW:
                fix += ", or say --flow dis"
            raise BundleError(
                self.path, f"this bundle has no stage '{stage}'; it has {', '.join(self.manifest.stages)}", fix=fix
            )
        return entry

    @property
    def missing_stages(self) -> tuple[Stage, ...]:
        """What keeps this bundle from restoring a photo: stages of a whole one that it lacks."""
        return tuple(stage for stage in self.manifest.model.stages if str(stage) not in self.manifest.stages)

    def graph(self, stage: Stage | str, size: Size) -> Graph:
        """The graph of a stage for one tile size.

        Raises:
            BundleError: no graph of that size.
        """
        entry = self.stage(stage)
        graph = entry.graph(size)
        if graph is None:
            have = ", ".join(g.size for g in entry.graphs)
            raise BundleError(
                self.path,
                f"stage '{stage}' has no graph for {size} tiles; it has {have}",
                fix=f"export again with --tile {size}",
            )
        return graph

    @property
    def tile_sizes(self) -> tuple[Size, ...]:
        """The tile sizes for which every stage has a graph."""
        return tuple(Size.parse(text) for text in self.manifest.tiles)

    @property
    def has_onnx_graphs(self) -> bool:
        """Whether its stages are ONNX graphs: what onnxruntime runs, and what can be counted, cut and quantized."""
        return self.manifest.target in ("onnx", "tensorrt")

    def graph_digest(self, graph: Graph) -> str:
        """A SHA-256 over one graph's file and its weights': what an engine is built from."""
        names = (graph.path, *graph.weights)
        return hashlib.sha256("".join(self.manifest.files[n].sha256 for n in names).encode()).hexdigest()

    def digest(self, stage: Stage | str) -> str:
        """A SHA-256 over one stage's files: changes when the graph or a weight does."""
        names = sorted({n for g in self.stage(stage).graphs for n in (g.path, *g.weights)})
        return hashlib.sha256("".join(self.manifest.files[n].sha256 for n in names).encode()).hexdigest()


def open_bundle(path: str | os.PathLike[str], *, verify_hashes: bool = True) -> Bundle:
    """Open a bundle and check it; the same as :meth:`Bundle.open`."""
    return Bundle.open(path, verify_hashes=verify_hashes)


def _check_values(manifest: Manifest) -> None:
    """What the types do not say: sizes and policies that parse, steps that are points of the schedule.

    Raises:
        UsageError, ValueError: naming the value.
    """
    ReferencePolicy.parse(manifest.reference_policy)
    sizes = [g.size for entry in manifest.stages.values() for g in entry.graphs]
    for text in [*manifest.tiles, *(size for size in sizes if size != "any")]:
        Size.parse(text)
    if unknown := sorted(set(manifest.stages) - {str(stage) for stage in Stage}):
        raise ValueError(f"stages that do not exist: {', '.join(unknown)}")
    if beyond := sorted(set(manifest.stages) - {str(stage) for stage in manifest.model.stages}):
        raise ValueError(f"a stage '{beyond[0]}', although the model's flow is {manifest.model.flow}")
    smallest = min(min(size.height, size.width) for size in map(Size.parse, manifest.tiles))
    if 2 * manifest.overlap > smallest:
        raise ValueError(f"an overlap of {manifest.overlap} px is more than half of a tile of {smallest} px")
    for graph in _graphs(manifest):
        for spec in (*graph.inputs, *graph.outputs):
            _check_spec(spec)
        for engine in graph.engines:
            Size.parse(engine.size)
    schedule = manifest.schedule
    for steps, plan in schedule.plans.items():
        if not plan or not all(0 <= point < len(schedule.points) for point in plan):
            raise ValueError(
                f"the schedule has {len(schedule.points)} points, its plan for {steps} steps uses {plan[:8]}"
            )
        if not re.fullmatch(r"[1-9]\d{0,3}", steps) or len(plan) != int(steps):
            raise ValueError(f"a plan of {len(plan)} points is named '{steps}', which should be their number")
    if schedule.indices and len(schedule.indices) != len(schedule.points):
        raise ValueError(f"the schedule has {len(schedule.points)} points and {len(schedule.indices)} indices")
    if str(schedule.default_steps) not in schedule.plans:
        raise ValueError(f"the schedule has no plan for its own default of {schedule.default_steps} steps")


def _check_spec(spec: TensorSpec) -> None:
    if spec.dtype not in _DTYPES:
        raise ValueError(f"tensor '{spec.name}' is of type '{spec.dtype}'; there are {', '.join(sorted(_DTYPES))}")
    fixed = [axis for axis in spec.shape if isinstance(axis, int)]
    if len(spec.shape) > _MAX_AXES or any(axis < 1 for axis in fixed) or math.prod(fixed) > _MAX_ELEMENTS:
        raise ValueError(f"tensor '{spec.name}' cannot have the shape {spec.shape[:_MAX_AXES]}")


def _graphs(manifest: Manifest) -> list[Graph]:
    return [graph for entry in manifest.stages.values() for graph in entry.graphs]


def _build_again(folder: Path, engine: EngineFile) -> str:
    """What to do about a damaged engine; its own options, for ``--rebuild`` replaces what has others."""
    words = ["livemoments", "build", str(folder), "--engine", engine.library]
    words += ["--sm", ",".join(engine.sm)] if engine.library == "rtx" else []
    stage = engine.path.partition("/")[0]
    words += ["--stages", stage, *(["--flow-size", engine.size] if stage == Stage.FLOW else [])]
    words += ["--batch", str(engine.batch)] if engine.batch != 1 else []
    words += [f"--{flag}" for flag in engine.flags]
    words += ["--via", engine.via, "--checkpoint", "CHECKPOINT"] if engine.via != "onnx" else []
    return f"copy the bundle again, or build the engine again: {shlex.join([*words, '--rebuild'])}"


BUNDLES = HashedFolders(
    kind="bundle",
    manifest=MANIFEST_NAME,
    decoded=Manifest,
    version=("schema_version", "schema version", SCHEMA_VERSION),
    check=_check_values,
    error=BundleError,
    listing="the manifest",
    command="livemoments export CHECKPOINT -o BUNDLE",
    verb="export",
    remake="export the bundle again",
    renew="copy the bundle again, or export it again",
    links_fix="copy what the links lead to, e.g. cp -rL BUNDLE COPY, and use that",
    only_printable=True,
)
"""How bundles are read."""


class BundleWriter(StagedFolder):
    """A bundle being written in a hidden folder beside its destination.

    ``folder`` is where files go; :meth:`commit` hashes them, writes the manifest last and renames the folder.
    Without a commit everything is removed.
    """

    def hash_files(self) -> dict[str, FileEntry]:
        """Every file written so far, by its path relative to the bundle."""
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return {p.relative_to(self.folder).as_posix(): hash_file(p) for p in files}

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest and move the bundle into place, replacing an older one in one rename each.

        Raises:
            OutputError: it cannot be written, or another one appeared there meanwhile.
            ResourceError: the disk is full.
        """
        with output_errors(self.destination):
            (self.folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
        self.publish()


def rewrite_manifest(bundle: str | os.PathLike[str], manifest: Manifest) -> None:
    """Replace the manifest of a bundle that is in place, whose files have got more or fewer, in one rename.

    Raises:
        OutputError: it cannot be written.
        ResourceError: the disk is full.
    """
    write_file(Path(bundle) / MANIFEST_NAME, encode_manifest(manifest))


@contextlib.contextmanager
def write_bundle(destination: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Open a :class:`BundleWriter`; on leaving without a commit (an error, an interrupt) nothing stays behind.

    A process killed outright leaves only a hidden ``.NAME.partial-…`` folder without a manifest, which the next
    write to the same destination removes.

    Raises:
        OutputError: the destination exists (and ``overwrite`` is false), is not a bundle, or cannot be written.
    """
    target = check_destination(destination, is_ours=BUNDLES.is_one, kind="a bundle", overwrite=overwrite)
    with stage_folder(target) as folder:
        yield BundleWriter(target, folder, overwrite=overwrite, is_ours=BUNDLES.is_one)
