"""A checkpoint's stages to packages for Apple's systems: one process a package, finished ones kept for the next try.

:class:`Kind` says what differs between Core ML's and Core AI's.

Packages are made in a hidden folder beside the bundle, with a journal of those that are finished and passed their
check. An export that was interrupted goes on there; one of another checkpoint or with other options begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from livemoments.bundle import BundleWriter
from livemoments.coreml.backend import INTERPRETER, CoreMlBackend
from livemoments.coreml.names import ENTRY, PACKAGE, files_of, function_name
from livemoments.errors import MissingExtraError, OutputError, UsageError
from livemoments.export import gate
from livemoments.export.coreml.modules import chunks
from livemoments.export.coreml.process import Answer, run_job
from livemoments.export.coreml.worker import Job
from livemoments.export.options import ExportOptions, Verify
from livemoments.export.plan import Planner
from livemoments.export.references import Case, References
from livemoments.manifest import FileEntry, Graph, StageEntry, StageParity
from livemoments.progress import Progress, Task
from livemoments.runtime.backends.base import Engine
from livemoments.store.claims import BusyError, only_one
from livemoments.store.errors import output_errors
from livemoments.store.journals import LineJournal
from livemoments.types import VAE_STAGES, Size, Stage, TensorSpec
from livemoments.version import __version__, version_of

TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)


@dataclass(frozen=True, slots=True)
class Kind:
    """One of Apple's kinds of packages.

    Attributes:
        title: its name.
        extra: what brings its tools.
        modules: of these tools, each of which must be installed.
        distributions: of the tools: packages of other versions are not gone on with.
        worker: the module that makes a package in a process of its own.
        suffix: of a package's folder.
        entry: the file of a package that the bundle's manifest names in the package's place.
        in_chunks: a transformer is cut into packages, and packages of several sizes are joined; otherwise each
            transformer, at each size, is one.
        open_files: opens a graph of a bundle that is still being written.
    """

    title: str
    extra: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    worker: str
    suffix: str
    entry: str
    in_chunks: bool
    open_files: Callable[[Path, Stage, Graph], Engine]


COREML = Kind(
    title="Core ML",
    extra="coreml",
    modules=("coremltools",),
    distributions=("torch", "coremltools"),
    worker="livemoments.export.coreml.worker",
    suffix=PACKAGE,
    entry=ENTRY,
    in_chunks=True,
    open_files=lambda folder, stage, graph: CoreMlBackend(INTERPRETER).open_files(folder, stage, graph),
)


def export_stages(
    checkpoint: Path,
    planner: Planner,
    writer: BundleWriter,
    stages: Sequence[Stage],
    sizes: Sequence[Size],
    options: ExportOptions,
    source: Mapping[str, FileEntry],
    progress: Progress,
    kind: Kind = COREML,
) -> dict[str, StageEntry]:
    """Convert, check and place every stage's packages.

    Args:
        checkpoint: as the user named it: the workers open it themselves.
        planner: for the graphs' names, shapes and counts.
        writer: of the bundle.
        stages: which ones.
        sizes: the tiles.
        options: of the export.
        source: the checkpoint's files and hashes, by which an interrupted export is known again.
        progress: receives the progress.
        kind: of the packages.

    Raises:
        MissingExtraError: a tool is not installed.
        UsageError: an option that such packages do not have.
        EngineError: a stage does not convert, or a worker died.
        ParityError: a package is not what its module computes.
        OutputError: another export is writing there.
        ResourceError: memory or disk ran out.
    """
    for module in kind.modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"export to {kind.title}", kind.extra, missing=module)
    if options.kv_layout != "per-block":
        raise UsageError(f"{kind.title} packages pass keys and values block by block", fix="leave --kv-layout out")
    work = writer.destination.with_name(f".{writer.destination.name}.{options.target}")
    with _working(work):
        parts = _Parts(work, checkpoint, options, source, kind)
        references = References(planner.files, planner.configs, planner.prompt, planner.schedule, planner.kv_layout)
        entries: dict[str, StageEntry] = {}
        graphs = [(stage, size) for stage in stages for size in _sizes(stage, sizes, options)]
        with progress.task("exporting", total=2 * len(graphs)) as task:
            for stage in stages:
                own = [size for name, size in graphs if name == stage]
                entries[str(stage)] = _stage(parts, references, planner, writer, stage, own, options, task)
    shutil.rmtree(work, ignore_errors=True)
    return entries


def _sizes(stage: Stage, sizes: Sequence[Size], options: ExportOptions) -> list[Size]:
    """Of a stage's packages; RAFT's are those of the tiles, then of whole video frames."""
    if stage in VAE_STAGES:
        return options.vae_sizes(sizes)
    return list(dict.fromkeys([*sizes, *options.flow_sizes])) if stage == Stage.FLOW else list(sizes)


@contextlib.contextmanager
def _working(work: Path) -> Iterator[None]:
    with output_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(work / "lock"):
            yield
    except BusyError as busy:
        raise OutputError(work, "another export is writing there", fix=f"wait for it{busy.hint}") from None


def _stage(
    parts: _Parts,
    references: References,
    planner: Planner,
    writer: BundleWriter,
    stage: Stage,
    sizes: Sequence[Size],
    options: ExportOptions,
    task: Task,
) -> StageEntry:
    kind, count = parts.kind, planner.configs.transformer.num_layers
    most = options.blocks_per_package if kind.in_chunks else count
    spans = chunks(count, most) if stage in TRANSFORMERS else [None]
    names: dict[Size, list[str]] = {}
    cases = {size: _Cases(parts.work, references, stage, size, options.verify) for size in sizes}
    parameters = 0
    for size in sizes:
        made = []
        for span in spans:
            made.append(parts.make(stage, size, span, cases[size]))
            task.advance(1 / len(spans), note=f"{made[-1][0]} written")
        names[size] = [name for name, _ in made]
        parameters = parameters or sum(answer.parameters for _, answer in made)
    if len(sizes) > 1 and kind.in_chunks:
        together = [parts.merge(stage, span, {size: names[size][i] for size in sizes}) for i, span in enumerate(spans)]
        names = dict.fromkeys(sizes, together)
    folder = writer.folder / str(stage)
    every = dict.fromkeys(itertools.chain(*names.values()))
    placed = {name: _place(parts.work / name, folder, str(stage), kind.entry) for name in every}
    graphs, parity = [], []
    for size in sizes:
        plan = planner.graph(stage, size)
        first, *others = [file for name in names[size] for file in placed[name]]
        graph = Graph(
            path=first,
            size=str(size),
            weights=tuple(others),
            inputs=_sized(plan.inputs, size),
            outputs=_sized(plan.outputs, size),
        )
        found = _measure(writer.folder, graph, stage, cases[size], options, kind)
        task.advance(note=f"{stage} {size} checked")
        graphs.append(graph)
        parity += [] if found is None else [found]
        cases[size].forget()
        before = plan.parameters_before
    return StageEntry(
        precision=options.precision_of(stage),
        graphs=tuple(graphs),
        parity=tuple(parity),
        parameters=parameters,
        parameters_before=before,
    )


def _sized(specs: Sequence[TensorSpec], size: Size) -> tuple[TensorSpec, ...]:
    """The specs with the lengths of images in them, which a package fixes; the batch stays free, tile by tile."""
    lengths: dict[int | str, int] = {"height": size.height, "width": size.width}
    return tuple(
        TensorSpec(spec.name, spec.dtype, tuple(lengths.get(axis, axis) for axis in spec.shape)) for spec in specs
    )


class _Cases:
    """The reference's inputs and outputs of one graph, computed once and kept in files for the workers."""

    def __init__(self, work: Path, references: References, stage: Stage, size: Size, verify: Verify) -> None:
        self.points: tuple[int, ...] = ()
        if verify in ("full", "sampled"):
            self.points = gate.points_to_compare(stage, len(references.schedule.points), verify)
        self._work, self._references, self._stage, self._size = work, references, stage, size

    def file(self, point: int, what: str) -> Path:
        return self._work / f"case-{self._stage}-{self._size}-{point}-{what}.npz"

    def inputs(self) -> list[Path]:
        """A file of inputs for every point."""
        return [self._computed(point, "inputs") for point in self.points]

    def case(self, point: int) -> Case:
        """Inputs and outputs of one point."""
        found = []
        for what in ("inputs", "outputs"):
            with np.load(self._computed(point, what)) as arrays:
                found.append({name: arrays[name] for name in arrays.files})
        return Case(found[0], found[1], point if self._stage in TRANSFORMERS else None)

    def forget(self) -> None:
        """Delete the files."""
        for file in self._work.glob(f"case-{self._stage}-{self._size}-*"):
            file.unlink()

    def _computed(self, point: int, what: str) -> Path:
        file = self.file(point, what)
        if not file.exists():
            case = self._references.case(self._stage, self._size, point)
            with output_errors(file):
                np.savez(self.file(point, "inputs"), **case.inputs)  # type: ignore[arg-type]
                np.savez(self.file(point, "outputs"), **case.outputs)  # type: ignore[arg-type]
        return file


class _Parts:
    """The packages in the making, and the journal of the finished ones."""

    def __init__(
        self, work: Path, checkpoint: Path, options: ExportOptions, source: Mapping[str, FileEntry], kind: Kind
    ) -> None:
        self.work, self.kind, self._checkpoint, self._options = work, kind, checkpoint, options
        versions = {name: version_of(name) for name in kind.distributions}
        sizes = [list(map(str, chosen or ())) for chosen in (options.tiles, options.vae_tiles, options.flow_sizes)]
        made_of = [source, options.precision, options.steps, options.verify, sizes, __version__, versions]
        key = {"key": hashlib.sha256(msgspec.json.encode(made_of, order="sorted")).hexdigest()}
        self._journal = LineJournal(work / "finished.jsonl")
        if self._journal.head != key:
            for old in work.iterdir():
                if old.name not in ("lock", "finished.jsonl"):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            self._journal.start(key)
        self._finished = {line["name"]: msgspec.convert(line["answer"], Answer) for line in self._journal.lines}

    def make(self, stage: Stage, size: Size, span: tuple[int, int] | None, cases: _Cases) -> tuple[str, Answer]:
        """A package's name in the folder, and what was measured when it was made: now, or in an earlier try."""
        name = f"{stage}-{size}{'' if span is None else f'-{span[0]:02}-{span[1]:02}'}{self.kind.suffix}"
        if name in self._finished and (self.work / name / self.kind.entry).exists():
            return name, self._finished[name]
        shutil.rmtree(self.work / name, ignore_errors=True)
        start, stop = span or (0, 0)
        job = Job(
            checkpoint=str(self._checkpoint),
            precision=self._options.precision_of(stage),
            steps=tuple(self._options.steps),
            stage=stage,
            size=str(size),
            span=span,
            package=str(self.work / name),
            cases=tuple(map(str, cases.inputs())),
            carried=tuple(str(cases.file(point, f"tokens{start}")) for point in cases.points) if start else (),
            left=tuple(str(cases.file(point, f"tokens{stop}")) for point in cases.points) if span else (),
        )
        return name, self._finish(name, job)

    def merge(self, stage: Stage, span: tuple[int, int] | None, packages: Mapping[Size, str]) -> str:
        """One package of those of several sizes, which share their weights in it; its name in the folder."""
        name = f"{stage}-all{'' if span is None else f'-{span[0]:02}-{span[1]:02}'}{self.kind.suffix}"
        if name in self._finished and (self.work / name / self.kind.entry).exists():
            return name
        shutil.rmtree(self.work / name, ignore_errors=True)
        job = Job(
            checkpoint=str(self._checkpoint),
            precision=self._options.precision_of(stage),
            steps=tuple(self._options.steps),
            stage=stage,
            size=", ".join(map(str, packages)),
            span=span,
            package=str(self.work / name),
            merged=tuple((function_name(str(size)), str(self.work / part)) for size, part in packages.items()),
        )
        self._finish(name, job)
        return name

    def _finish(self, name: str, job: Job) -> Answer:
        answer = _run(job, self.work, self.kind)
        self._journal.append({"name": name, "answer": msgspec.to_builtins(answer)})
        return answer


def _run(job: Job, work: Path, kind: Kind) -> Answer:
    """Do a job in a process of its own."""
    return run_job(kind.worker, job, work, f"stage '{job.stage}' ({job.size})")


def _place(package: Path, folder: Path, prefix: str, entry: str) -> list[str]:
    """Put a package into the bundle; its files by their paths there, the one that stands for it first.

    By links, where the file system has them: the package stays where it was made until all are there, for a next try.
    """
    target = folder / package.name.removeprefix(f"{prefix}-")
    with output_errors(target):
        shutil.copytree(package, target, copy_function=_link)
    return files_of(folder.parent, target, entry)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # of file systems without links, or across two
        shutil.copyfile(source, target)
    return target


def _measure(
    folder: Path, graph: Graph, stage: Stage, cases: _Cases, options: ExportOptions, kind: Kind
) -> StageParity | None:
    """The whole stage, all its packages in turn, against the reference; ``finite``: on made-up inputs, without one.

    Raises:
        ParityError: a limit is passed.
    """
    if options.verify == "none":
        return None
    precision = options.precision_of(stage)
    with kind.open_files(folder, stage, graph) as engine:
        if options.verify == "finite":
            gate.check_finite_outputs(stage, _answers(engine, gate.random_inputs(graph.inputs)))
            return None
        measured = (cases.case(point) for point in cases.points)
        return gate.check_answers(stage, graph.size, precision, measured, lambda inputs: _answers(engine, inputs))


def _answers(engine: Engine, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return dict(engine.run(engine.cast(inputs)))
