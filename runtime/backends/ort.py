"""The ONNX Runtime backend: CPU, and every other execution provider of the installed wheel.

onnxruntime is imported when the first graph is opened, not with the module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError, UsageError
from livemoments.heap import give_back_freed
from livemoments.manifest import Graph
from livemoments.ort import import_onnxruntime, leave_weights_mapped, open_session, session_options
from livemoments.runtime.backends.base import Array, Backend, DeviceArray, Engine, to_host
from livemoments.runtime.backends.ort_buffers import DeviceBuffers, output_shapes
from livemoments.runtime.backends.ort_placement import RECORD, placement_remark
from livemoments.runtime.backends.ort_providers import (
    DeviceLimits,
    add_to_options,
    check_form,
    find_provider,
    missing_fix,
)
from livemoments.types import TRANSFORMER_STAGES, Size, Stage, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

_OUT_OF_MEMORY = re.compile(
    r"bad.?alloc|failed to allocate|out of memory|OUT_OF_MEMORY|not enough memory", re.IGNORECASE
)
_GRAPH_ID = "gpu_graph_id"
"""Run option: which recorded CUDA graph a run is."""
_ARENA_STAGES = (Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION)
_MEMORY_FIX = "use a bundle with smaller tiles (export --tile), --batch 1, or --flow dis"


class OrtArray(DeviceArray):
    """A tensor held by onnxruntime (an ``OrtValue``), on the host or on an accelerator."""

    def __init__(self, value: onnxruntime.OrtValue, spec: TensorSpec) -> None:
        self.value = value
        self._dtype = np.dtype(spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.value.shape())

    @property
    def dtype(self) -> np.dtype:
        """Its numpy dtype."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes it takes where it lies."""
        return int(self.value.tensor_size_in_bytes())

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return self.value.numpy()


class OrtEngine(Engine):
    """One onnxruntime session. Device arrays go in and out through I/O binding, without copies.

    Without an arena, small tensors that stay (keys and values) lie between those that go: ``gives_back`` returns the
    freed pages to the system after every run. The small network peaked at 535 MB without it, predicted were 416.

    Args:
        stage: the stage.
        session: opened.
        inputs: from the manifest.
        outputs: from the manifest.
        path: of the graph, for messages.
        device: where outputs may stay.
        buffers: what inputs and outputs are bound to, for sessions on a device; ``None``: onnxruntime's own arena.
        records_graphs: the session records CUDA graphs, and must be told which run is which.
        gives_back: see above.
        remarks: see :class:`Engine`.
    """

    def __init__(
        self,
        stage: Stage,
        session: onnxruntime.InferenceSession,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        path: Path,
        device: str = "cpu",
        buffers: DeviceBuffers | None = None,
        records_graphs: bool = False,
        gives_back: bool = False,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(stage, inputs, outputs)
        self.remarks = tuple(remarks)
        self._session: Any = session
        self._device = device
        self._path = path
        self._buffers = buffers
        self._records_graphs = records_graphs
        self._gives_back = gives_back

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        on_device = self._device != "cpu" or keep or any(isinstance(a, DeviceArray) for a in inputs.values())
        shapes = output_shapes(self.outputs, self.inputs, {name: array.shape for name, array in inputs.items()})
        try:
            if self._buffers is not None and shapes is not None:
                return self._run_in_place(inputs, keep, shapes, self._buffers)
            return self._run_bound(inputs, keep) if on_device else self._run_plain(inputs)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise _translated(error, f"stage '{self.stage}' failed in {self._path.name}") from error
        finally:
            if self._gives_back:
                give_back_freed()

    def _run_plain(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def _run_bound(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            if isinstance(array, OrtArray):
                binding.bind_ortvalue_input(name, array.value)
            else:
                # `inputs` keeps the numpy array alive until the run is over
                binding.bind_cpu_input(name, array.numpy() if isinstance(array, DeviceArray) else array)
        for spec in self.outputs:
            binding.bind_output(spec.name, self._device if spec.name in keep else "cpu")
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        values = binding.get_outputs()
        return {
            spec.name: OrtArray(value, spec) if spec.name in keep else value.numpy()
            for spec, value in zip(self.outputs, values, strict=True)
        }

    def _run_in_place(
        self,
        inputs: Mapping[str, Array],
        keep: frozenset[str],
        shapes: Mapping[str, tuple[int, ...]],
        buffers: DeviceBuffers,
    ) -> dict[str, Array]:
        given = {n: a.value if isinstance(a, OrtArray) else buffers.given(n, to_host(a)) for n, a in inputs.items()}
        made = {
            spec.name: (buffers.kept if spec.name in keep else buffers.returned)(spec, shapes[spec.name])
            for spec in self.outputs
        }
        kept: dict[str, Array] = {}
        for spec in self.outputs:
            if spec.name in keep:  # from now on, so that a run that fails gives them back
                kept[spec.name] = OrtArray(made[spec.name], spec)
                buffers.lend(kept[spec.name], spec, shapes[spec.name], made[spec.name])
        binding = self._session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in made.items():
            binding.bind_ortvalue_output(name, value)
        options = import_onnxruntime().RunOptions()
        if self._records_graphs:
            graph = buffers.graph_of([*given.values(), *made.values()])
            options.add_run_config_entry(_GRAPH_ID, str(graph))
        self._session.run_with_iobinding(binding, options)
        return {name: kept[name] if name in keep else np.array(value.numpy()) for name, value in made.items()}

    def close(self) -> None:
        """Let go of the session and its memory; arrays that somebody keeps stay."""
        super().close()
        self._session = self._buffers = None


class OrtBackend(Backend):
    """Opens graphs with onnxruntime.

    Args:
        provider: one of ours (``cpu``, ``cuda``, ``tensorrt``, ``rtx``, ``coreml``, ``dml`` …), or onnxruntime's own
            name of a provider.
        threads: threads within an operator; ``None``: ``OMP_NUM_THREADS``, else one per physical core.
        limits: what sessions on a GPU may use.
        memory_arena: keep freed memory for the next run (quicker, holds the peak between runs). ``None``: for the
            transformers, which run many times a tile, and not for the stages that need the most memory and run once.
        memory_pattern: plan all buffers of a run at once (only useful for fixed shapes).
        mapped: leave the transformers' weights in their files, from which the system takes and drops pages as it sees
            fit; on the CPU alone. Products of unpacked weights are rounded otherwise in float32's last digits.

    Raises:
        UsageError: there is no such provider here, it takes no such limits, ``threads`` is not positive, or weights
            cannot stay mapped with this provider.
        EngineError: the provider is a plugin that does not load.
    """

    name = "onnxruntime"

    def __init__(
        self,
        provider: str = "cpu",
        threads: int | None = None,
        *,
        limits: DeviceLimits | None = None,
        memory_arena: bool | None = None,
        memory_pattern: bool = True,
        mapped: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads cannot run anything", fix="pass --threads 1 or more")
        if mapped and provider != "cpu":
            raise UsageError(
                f"the provider '{provider}' has memory of its own, into which weights are copied",
                fix="use --residency phases or streamed",
            )
        self.provider = provider
        self._mapped = mapped
        if mapped:
            self.name = "onnxruntime with mapped weights"  # its last digits differ: keys and values are kept apart
        self._threads = threads
        self._limits = limits or DeviceLimits()
        self._memory_arena = memory_arena
        self._memory_pattern = memory_pattern
        self._provider = find_provider(provider, self._limits)

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """Open a session on the stage's graph; see :meth:`Backend.open`.

        What runs otherwise than it was asked for is in the engine's remarks.

        Raises:
            EngineError: onnxruntime does not load it, or left the provider out; the graph is of another form than the
                provider wants.
        """
        check_form(self._provider, bundle)
        graph = bundle.graph(stage, size)
        path = bundle.path / graph.path  # by path: external weights lie beside the graph
        remarks = []
        limits = self._limits
        try:
            session = self._session(path, self._session_options(stage), path, bundle, graph, limits)
        except EngineError as error:
            if not limits.cuda_graphs:
                raise
            limits = limits.without_graphs()  # which fails, too, if it is not for the graphs
            session = self._session(path, self._session_options(stage), path, bundle, graph, limits)
            remarks.append(f"stage '{stage}' runs without CUDA graphs: {error.message}")
        _check_signature(path, session, graph.inputs, graph.outputs)
        is_on_cpu = self._provider.device == "cpu"
        if not is_on_cpu and (remark := placement_remark(session, stage, self.provider)):
            remarks.append(remark)
        return OrtEngine(
            stage,
            session,
            graph.inputs,
            graph.outputs,
            path=path,
            device=self._provider.device,
            buffers=DeviceBuffers("cuda") if self._provider.device == "cuda" else None,
            records_graphs=limits.cuda_graphs,
            gives_back=self._mapped and stage in TRANSFORMER_STAGES,
            remarks=remarks,
        )

    def _session(
        self,
        model: Path | bytes,
        options: onnxruntime.SessionOptions,
        path: Path,
        bundle: Bundle,
        graph: Graph,
        limits: DeviceLimits,
    ) -> Any:
        """A session on the provider that was asked for, and on no other; ``path`` is for messages."""
        try:
            providers = add_to_options(options, self._provider, bundle, graph, limits)
            session = open_session(model, options, providers=providers)
        except Exception as error:
            raise _translated(error, f"{path}: the engine cannot be loaded") from error
        active = session.get_providers()
        if active[0] != self._provider.ort_name:
            raise EngineError(
                f"onnxruntime did not start the provider '{self.provider}' and fell back to {active[0]}",
                fix=missing_fix(self._provider),
            )
        return session

    def _session_options(self, stage: Stage) -> onnxruntime.SessionOptions:
        options = session_options(self._threads)
        options.enable_cpu_mem_arena = stage in _ARENA_STAGES if self._memory_arena is None else self._memory_arena
        options.enable_mem_pattern = self._memory_pattern
        if self._provider.device != "cpu":
            options.add_session_config_entry(RECORD, "1")
        if self._mapped and stage in TRANSFORMER_STAGES:
            leave_weights_mapped(options)
        return options


def _check_signature(
    path: Path,
    session: onnxruntime.InferenceSession,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    for kind, specs, nodes in (("inputs", inputs, session.get_inputs()), ("outputs", outputs, session.get_outputs())):
        wanted, actual = sorted(s.name for s in specs), sorted(node.name for node in nodes)
        if wanted != actual:
            raise EngineError(
                f"{path}: the manifest lists the {kind} {', '.join(wanted)}, the graph has {', '.join(actual)}",
                fix="export the bundle again",
            )


def _translated(error: Exception, what: str) -> EngineError | ResourceError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return ResourceError(f"{what}: memory ran out ({first_line})", fix=_MEMORY_FIX, of_memory=True)
    return EngineError(f"{what}: {first_line}")
