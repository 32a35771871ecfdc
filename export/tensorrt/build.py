"""Build a bundle's engines, one process each, and enter every one in the manifest as soon as it is whole.

An interrupted or killed build is taken up again by the same command: what the manifest lists and still fits is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from livemoments.bundle import BUNDLES, Bundle, hash_file, rewrite_manifest
from livemoments.engine_files import TITLES, EngineHost, build_command, refusal
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.export.tensorrt.memory import available_bytes, check_memory
from livemoments.export.tensorrt.options import BuildOptions, check_options, host_of, sizes_for
from livemoments.export.tensorrt.protocol import Done, Job
from livemoments.export.tensorrt.torch_road import check_checkpoint, check_road, torch_source
from livemoments.manifest import EngineFile, Graph, Manifest
from livemoments.progress import SILENT, Progress
from livemoments.store.claims import BusyError, claim, hidden_prefix, only_one, remove_left_behind
from livemoments.store.errors import output_errors
from livemoments.store.files import PARTIAL
from livemoments.tensorrt.gpu import Gpu, find_gpu
from livemoments.tensorrt.library import Library, load_library
from livemoments.types import Size, Stage

SUFFIX = ".engine"
_LOCK = ".build.lock"
_KEY_CHARS = 8
_OURS = re.compile(rf"\d+x\d+-b\d+-[a-z]+-[0-9a-f]{{{_KEY_CHARS}}}{re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One engine of a finished command.

    Attributes:
        stage: whose.
        engine: its entry in the manifest.
        bytes: of the file.
        is_new: whether it was built now; otherwise it was kept.
        seconds: parsing and building; 0 for an engine that was kept.
        peak_rss_bytes: of the building process; 0 for an engine that was kept.
    """

    stage: Stage
    engine: EngineFile
    bytes: int
    is_new: bool = False
    seconds: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """An engine to be: of which graph, for what."""

    stage: Stage
    graph: Graph
    size: Size
    kept: EngineFile | None

    @property
    def label(self) -> str:
        return f"stage '{self.stage}' ({self.size})"


def build_engines(
    bundle: str | Path, options: BuildOptions, *, progress: Progress = SILENT
) -> tuple[Bundle, list[BuiltEngine]]:
    """Build what a bundle lacks of the engines that are asked for.

    Args:
        bundle: the folder; engines and manifest are written there.
        options: which engines.
        progress: receives the progress.

    Returns:
        The bundle, opened again, and every engine that was asked for.

    Raises:
        MissingExtraError: the library, or what reads graphs, is not installed.
        UsageError: an option that cannot be used with this library or bundle.
        BundleError: a graph or its weights are not as the manifest says.
        EngineError: an engine is there that does not fit, and ``options.rebuild`` is false; the library refused a graph
            or died; another process builds in the bundle.
        ResourceError: memory would run out, or memory or disk did.
        OutputError: the bundle cannot be written.
    """
    library = load_library(options.library)
    _need_graph_readers(options)
    gpu = find_gpu()
    check_options(library, options, gpu)
    host = host_of(library, options, gpu)
    folder = Bundle.open(bundle, verify_hashes=False, engines=False).path
    with _alone(folder):
        opened = Bundle.open(folder, verify_hashes=False, engines=False)  # again: others may just have built in it
        plans = list(_plan(opened, options, host))
        _check_sources(opened, plans, options, progress)
        _tidy(opened)
        built = []
        shares = _shares(opened, plans)
        with progress.task(f"Building {TITLES[library.name]} engines", total=round(sum(shares.values()))) as task:
            for plan in plans:
                if plan.kept is None:
                    opened, engine = _build(opened, plan, options, host, library, gpu, progress)
                else:
                    engine = BuiltEngine(plan.stage, plan.kept, opened.manifest.files[plan.kept.path].bytes)
                built.append(engine)
                task.advance(shares[plan.label], note=f"{plan.stage} {plan.size}")
    return Bundle.open(bundle, verify_hashes=False, engines=False), built


def _need_graph_readers(options: BuildOptions) -> None:
    try:
        import onnx_ir  # noqa: F401
    except ImportError as error:
        title = TITLES[options.library]
        raise MissingExtraError(f"building {title} engines", options.library, missing=error.name) from None


def _shares(bundle: Bundle, plans: Sequence[_Plan]) -> dict[str, float]:
    """How much of the whole work each engine is, per cent, by its label; what is kept takes none.

    Time goes by the number of layers rather than by the weights (RAFT, unrolled, may take as long as a transformer of
    2.7 GB), and so by the bytes of the graph without them.
    """
    sizes = {plan.label: bundle.manifest.files[plan.graph.path].bytes if plan.kept is None else 0 for plan in plans}
    whole = max(1, sum(sizes.values()))
    return {label: 100 * size / whole for label, size in sizes.items()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        with output_errors(folder):
            try:
                held.enter_context(only_one(folder / _LOCK))
            except BusyError as busy:
                raise EngineError(
                    f"{folder}: another process builds engines in this bundle", fix=f"wait until it is done{busy.hint}"
                ) from None
        yield


def _plan(bundle: Bundle, options: BuildOptions, host: EngineHost) -> Iterator[_Plan]:
    """What is asked for, with the engine that is there and fits.

    Raises:
        UsageError: a stage or size that the bundle does not have.
        EngineError: one that is there does not fit, and is not to be replaced.
    """
    have = [stage for stage in Stage if str(stage) in bundle.manifest.stages]
    stages = have if options.stages is None else [stage for stage in Stage if stage in options.stages]
    tiles = bundle.tile_sizes if options.tiles is None else options.tiles
    if unknown := [str(size) for size in tiles if size not in bundle.tile_sizes]:
        raise UsageError(
            f"{bundle.path} has no tiles of {', '.join(unknown)}; it has {', '.join(bundle.manifest.tiles)}",
            fix="name one of these, or export again with another --tile",
        )
    for stage in stages:
        for size in sizes_for(options, stage, tiles):
            graph = bundle.graph(stage, size)
            yield _Plan(stage, graph, size, _kept(bundle, graph, size, options, host))


def _kept(bundle: Bundle, graph: Graph, size: Size, options: BuildOptions, host: EngineHost) -> EngineFile | None:
    place = (options.library, str(size), options.batch, options.via)
    found = next((engine for engine in graph.engines if engine.place == place), None)
    if found is None:
        return None
    reason = _unfit(bundle, graph, found, options, host)
    if reason is None:
        return found
    if not options.rebuild:
        again = build_command(
            bundle,
            host,
            stages=options.stages or (),
            tiles=options.tiles or (),
            flow_sizes=options.flow_sizes,
            batch=options.batch,
            flags=options.recorded_flags,
            via=options.via,
            checkpoint=options.checkpoint,
            rebuild=True,
        )
        raise EngineError(f"{bundle.path / found.path}: {reason}", fix=f"build it again: {again}")
    return None


def _unfit(bundle: Bundle, graph: Graph, engine: EngineFile, options: BuildOptions, host: EngineHost) -> str | None:
    if reason := refusal(bundle, graph, engine, host):
        return reason
    if set(engine.flags) != set(options.recorded_flags):
        return f"it was built {_with(engine.flags)}, and is asked for {_with(options.recorded_flags)}"
    listed = bundle.manifest.files[engine.path]
    file = bundle.path / engine.path
    if not file.is_file():
        return "it is missing"
    return None if hash_file(file) == listed else "it was changed or damaged"


def _check_sources(bundle: Bundle, plans: Sequence[_Plan], options: BuildOptions, progress: Progress) -> None:
    """Compare the hashes of what is built from; many gigabytes take a while to read.

    Raises:
        BundleError: a graph or its weights are not as the manifest says.
        UsageError: the checkpoint is not the one that they were exported from.
        MissingExtraError, EngineError: torch-tensorrt cannot be used here.
    """
    new = [plan for plan in plans if plan.kept is None]
    if options.checkpoint is not None and new:
        check_road(options.library)
        check_checkpoint(bundle, options.checkpoint, progress)
    graphs = (plan.graph for plan in new)
    names = dict.fromkeys(name for graph in graphs for name in (graph.path, *graph.weights))
    listed = bundle.manifest.files
    with progress.task("Checking graphs and weights", total=sum(listed[name].bytes for name in names)) as task:
        for name in names:
            BUNDLES.check_file(bundle.path / name, listed[name], verify_hash=True)
            task.advance(listed[name].bytes, note=name)


def _with(flags: Sequence[str]) -> str:
    return "with " + " ".join(f"--{flag}" for flag in flags) if flags else "without options"


def _build(
    bundle: Bundle,
    plan: _Plan,
    options: BuildOptions,
    host: EngineHost,
    library: Library,
    gpu: Gpu | None,
    progress: Progress,
) -> tuple[Bundle, BuiltEngine]:
    _check_graph(bundle, plan, options, host)
    entry = EngineFile(
        path=_path(bundle, plan, options, host),
        library=library.name,
        version=library.version,
        size=str(plan.size),
        batch=options.batch,
        sm=host.sm,
        graph_sha256=bundle.graph_digest(plan.graph),
        flags=options.recorded_flags,
        gpu=None if gpu is None else gpu.name,
        driver=host.driver,
        via=options.via,
    )
    done = _run(bundle, plan, entry, options, host, progress)
    entry = msgspec.structs.replace(entry, layers=done.layers)
    manifest, replaced = _entered(bundle, plan, entry)
    rewrite_manifest(bundle.path, manifest)
    for name in replaced:
        (bundle.path / name).unlink(missing_ok=True)
    return Bundle(bundle.path, manifest), BuiltEngine(
        plan.stage, entry, done.bytes, True, done.seconds, done.peak_rss_bytes
    )


def _check_graph(bundle: Bundle, plan: _Plan, options: BuildOptions, host: EngineHost) -> None:
    """Refuse what the library does not take, by the rules, and what will not fit into memory."""
    from livemoments.export.tensorrt.prepare import prepare
    from livemoments.export.tensorrt.refusals import find_refusals

    prepared = prepare(bundle.path / plan.graph.path, plan.size, options.batch)
    if options.via == "onnx" and (refused := find_refusals(prepared.model, host.sm)):
        first = refused[0]
        raise EngineError(
            f"{plan.label}: {TITLES[host.library]} does not take {first.operator} of {first.module}: {first.reason}",
            fix=f"see all of it: livemoments check {bundle.path} --target {host.library}",
        )
    if options.check_memory:
        check_memory(plan.label, prepared.weight_bytes, available_bytes(), options.via)


def _run(
    bundle: Bundle, plan: _Plan, entry: EngineFile, options: BuildOptions, host: EngineHost, progress: Progress
) -> Done:
    """Build into a hidden file beside the graph, then rename it."""
    from livemoments.export.tensorrt.process import run_job

    file = bundle.path / entry.path
    cache = options.timing_cache or bundle.path / f".timings-{host.version}-{host.sm[0]}"
    with output_errors(file):
        own = claim(file.parent, hidden_prefix(file.name, PARTIAL))
    try:
        job = Job(
            library=host.library,
            graph=str(bundle.path / plan.graph.path),
            torch=None if options.checkpoint is None else torch_source(bundle, options.checkpoint, plan.stage),
            size=str(plan.size),
            batch=options.batch,
            sm=host.sm,
            flags=options.flags,
            level=options.optimization_level,
            output=str(own.path),
            timing_cache=str(cache) if host.library == "tensorrt" else None,
        )
        # TensorRT for RTX spends nearly all of its time in one step, of which no time left can be told
        with progress.task(f"{plan.stage} {plan.size}", total=1 if host.library == "tensorrt" else None) as task:
            seen = 0.0

            def report(fraction: float, phase: str) -> None:
                nonlocal seen
                task.advance(max(0.0, fraction - seen), note=phase)
                seen = max(seen, fraction)

            done = run_job(job, plan.label, report)
            task.advance(1 - seen)
        with output_errors(file):
            own.path.replace(file)
    finally:
        own.remove()
    return done


def _path(bundle: Bundle, plan: _Plan, options: BuildOptions, host: EngineHost) -> str:
    """A name of its own for every content: replacing an engine never leaves a manifest with a wrong hash."""
    told = [host.library, host.version, *host.sm, str(host.driver), options.via, *options.recorded_flags]
    key = hashlib.sha256("\0".join([*told, bundle.graph_digest(plan.graph)]).encode()).hexdigest()[:_KEY_CHARS]
    return f"{plan.stage}/{plan.size}-b{options.batch}-{host.library}-{key}{SUFFIX}"


def _entered(bundle: Bundle, plan: _Plan, entry: EngineFile) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest with an engine in its place, and the files of engines that had it before."""
    manifest = bundle.manifest
    stage = manifest.stages[str(plan.stage)]
    same = [engine for engine in plan.graph.engines if engine.place == entry.place]
    current = bundle.graph(plan.stage, plan.size)  # others of this graph may have been entered since the plan was made
    engines = (*(engine for engine in current.engines if engine not in same), entry)
    graphs = tuple(
        msgspec.structs.replace(graph, engines=engines) if graph.path == plan.graph.path else graph
        for graph in stage.graphs
    )
    replaced = tuple(engine.path for engine in same if engine.path != entry.path)
    files = {name: found for name, found in manifest.files.items() if name not in replaced}
    files[entry.path] = hash_file(bundle.path / entry.path)
    stages = {**manifest.stages, str(plan.stage): msgspec.structs.replace(stage, graphs=graphs)}
    return msgspec.structs.replace(manifest, stages=stages, files=files), replaced


def _tidy(bundle: Bundle) -> None:
    """Remove what killed builds left: hidden parts, and engines of ours that no manifest lists."""
    listed = set(bundle.manifest.files)
    with output_errors(bundle.path):
        for name in bundle.manifest.stages:
            for file in (bundle.path / name).glob(f"*{SUFFIX}"):
                if _OURS.fullmatch(file.name) and f"{name}/{file.name}" not in listed:
                    file.unlink()
            for file in (bundle.path / name).glob(f".*{SUFFIX}{PARTIAL}*"):
                remove_left_behind(file.parent, file.name.partition(PARTIAL)[0] + PARTIAL)
