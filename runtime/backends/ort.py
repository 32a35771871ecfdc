"""The ONNX Runtime backend: CPU, and every other execution provider of the installed wheel.

onnxruntime is imported when the first graph is opened, not with the module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError, UsageError
from livemoments.heap import give_back_freed
from livemoments.ort import import_onnxruntime, leave_weights_mapped, open_session, session_options
from livemoments.runtime.backends.base import Array, Backend, DeviceArray, Engine
from livemoments.types import TRANSFORMER_STAGES, Size, Stage, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

# our name -> onnxruntime's name, the device its outputs may stay on, the providers to fall back to per node
_PROVIDERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "cpu": ("CPUExecutionProvider", "cpu", ()),
    "cuda": ("CUDAExecutionProvider", "cuda", ()),
    "tensorrt": ("TensorrtExecutionProvider", "cuda", ("CUDAExecutionProvider",)),
    "rocm": ("ROCMExecutionProvider", "cuda", ()),
    "migraphx": ("MIGraphXExecutionProvider", "cuda", ()),
    "dml": ("DmlExecutionProvider", "dml", ()),
    "coreml": ("CoreMLExecutionProvider", "cpu", ()),
    "openvino": ("OpenVINOExecutionProvider", "cpu", ()),
    "xnnpack": ("XnnpackExecutionProvider", "cpu", ()),
}
_CPU = "CPUExecutionProvider"
_OUT_OF_MEMORY = re.compile(
    r"bad.?alloc|failed to allocate|out of memory|OUT_OF_MEMORY|not enough memory", re.IGNORECASE
)
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
    """

    def __init__(
        self,
        stage: Stage,
        session: onnxruntime.InferenceSession,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        device: str,
        path: Path,
        gives_back: bool = False,
    ) -> None:
        super().__init__(stage, inputs, outputs)
        self._session: Any = session
        self._device = device
        self._path = path
        self._gives_back = gives_back

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        on_device = self._device != "cpu" or keep or any(isinstance(a, DeviceArray) for a in inputs.values())
        try:
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

    def close(self) -> None:
        """Let go of the session and its memory."""
        super().close()
        self._session = None


class OrtBackend(Backend):
    """Opens graphs with onnxruntime.

    Args:
        provider: ``cpu``, ``cuda``, ``tensorrt``, ``coreml``, ``dml`` … or onnxruntime's own name of a provider.
        threads: threads within an operator; ``None``: ``OMP_NUM_THREADS``, else one per physical core.
        memory_arena: keep freed memory for the next run (quicker, holds the peak between runs). ``None``: for the
            transformers, which run many times a tile, and not for the stages that need the most memory and run once.
        memory_pattern: plan all buffers of a run at once (only useful for fixed shapes).
        mapped: leave the transformers' weights in their files, from which the system takes and drops pages as it sees
            fit; on the CPU alone. Products of unpacked weights are rounded otherwise in float32's last digits.

    Raises:
        UsageError: the installed onnxruntime has no such provider, ``threads`` is not positive, or weights cannot stay
            mapped with this provider.
    """

    name = "onnxruntime"

    def __init__(
        self,
        provider: str = "cpu",
        threads: int | None = None,
        *,
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
        self._memory_arena = memory_arena
        self._memory_pattern = memory_pattern
        self._ort_name, self._device, fallbacks = _find_provider(provider)
        self._providers = list(dict.fromkeys([self._ort_name, *fallbacks, _CPU]))

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """Open a session on the stage's graph; see :meth:`Backend.open`."""
        if not bundle.has_onnx_graphs:
            held = "Core ML packages" if bundle.manifest.target == "coreml" else "PyTorch networks"
            raise EngineError(
                f"{bundle.path} holds {held}, which onnxruntime does not run", fix="export with --target onnx"
            )
        graph = bundle.graph(stage, size)
        path = bundle.path / graph.path  # by path: external weights lie beside the graph
        session = self._session(path, self._session_options(stage), path)
        _check_signature(path, session, graph.inputs, graph.outputs)
        mapped = self._mapped and stage in TRANSFORMER_STAGES
        return OrtEngine(stage, session, graph.inputs, graph.outputs, device=self._device, path=path, gives_back=mapped)

    def _session(self, model: Path | bytes, options: onnxruntime.SessionOptions, path: Path) -> Any:
        """A session on the provider that was asked for, and on no other; ``path`` is for messages."""
        try:
            session = open_session(model, options, providers=self._providers)
        except Exception as error:
            raise _translated(error, f"{path}: the engine cannot be loaded") from error
        active = session.get_providers()
        if active[0] != self._ort_name:
            raise EngineError(
                f"onnxruntime did not start the provider '{self.provider}' and fell back to {active[0]}",
                fix=_fallback_fix(self.provider),
            )
        return session

    def _session_options(self, stage: Stage) -> onnxruntime.SessionOptions:
        options = session_options(self._threads)
        wants_arena = stage in _ARENA_STAGES if self._memory_arena is None else self._memory_arena
        options.enable_cpu_mem_arena = wants_arena
        options.enable_mem_pattern = self._memory_pattern
        if self._mapped and stage in TRANSFORMER_STAGES:
            leave_weights_mapped(options)
        return options


def _find_provider(provider: str) -> tuple[str, str, tuple[str, ...]]:
    onnxruntime = import_onnxruntime()
    entry = _PROVIDERS.get(provider.lower(), (provider, "cpu", ()))
    available = onnxruntime.get_available_providers()
    if entry[0] not in available:
        short = {ort: ours for ours, (ort, _, _) in _PROVIDERS.items()}
        names = ", ".join(short[name] for name in available if name in short)
        raise UsageError(
            f"the installed onnxruntime has no provider '{provider}'; it has {names}",
            fix=_fallback_fix(provider) if provider.lower() in _PROVIDERS else f"use one of {names}",
        )
    if entry[1] == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN in the wheels that pip installed
    return entry


def _fallback_fix(provider: str) -> str:
    if provider.lower() in ("cuda", "tensorrt"):
        return (
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu "
            "(never both), with the CUDA and cuDNN that it asks for; or use --provider cpu"
        )
    return f"install the onnxruntime wheel that has '{provider}', or use --provider cpu"


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
