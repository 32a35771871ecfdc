"""onnxruntime's execution providers: what each is called, where its tensors lie, and how its sessions are opened.

A provider is built into the installed wheel, or a plugin of its own package. Neither is ever replaced by the CPU in
silence: what is not there is an error that names the fix.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, UsageError
from livemoments.manifest import Graph
from livemoments.ort import CPU_PROVIDER, import_onnxruntime

CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
_KEEP_QUANTIZED = "session.disable_quant_qdq"
"""Session option (``1``: on). onnxruntime's rewriting of quantize/dequantize pairs knows integers alone; of float8
pairs it makes nodes that it then refuses."""
_CUDA_GRAPHS = {CUDA: "enable_cuda_graph", _TENSORRT: "trt_cuda_graph_enable", RTX: "enable_cuda_graph"}
_MEMORY_LIMITS = {CUDA: "gpu_mem_limit", _TENSORRT: "trt_max_workspace_size", RTX: "nv_max_workspace_size"}


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider.

    Attributes:
        name: ours, or onnxruntime's where we have none.
        ort_name: onnxruntime's.
        device: where tensors of its sessions may stay, as onnxruntime calls it.
        others: built-in providers that take the nodes which it does not, before the CPU does.
        target: what bundles must be exported for, so that they hold the form of attention that it runs fast;
            ``None``: any.
        plugin: the package that brings it, and the module to import.
    """

    name: str
    ort_name: str
    device: str = "cpu"
    others: tuple[str, ...] = ()
    target: Literal["onnx", "tensorrt"] | None = None
    plugin: tuple[str, str] | None = None


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("cpu", CPU_PROVIDER),
        Provider("cuda", CUDA, "cuda", target="onnx"),
        Provider("tensorrt", _TENSORRT, "cuda", (CUDA,), "tensorrt"),
        Provider(
            "rtx",
            RTX,
            "cuda",
            target="tensorrt",
            plugin=("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime_ep_nv_tensorrt_rtx"),
        ),
        Provider("rocm", "ROCMExecutionProvider", "cuda"),
        Provider("migraphx", "MIGraphXExecutionProvider", "cuda"),
        Provider("dml", "DmlExecutionProvider", "dml"),
        Provider("coreml", "CoreMLExecutionProvider"),
        Provider("openvino", "OpenVINOExecutionProvider"),
        Provider("xnnpack", "XnnpackExecutionProvider"),
    )
}
_HELD = {"coreml": "Core ML packages", "coreai": "Core AI packages", "torch": "PyTorch networks"}
"""What is no graph of onnxruntime's, by the bundle's target."""
_WRONG_ATTENTION = {
    "onnx": "its attention is the standard one, for which onnxruntime's CUDA kernels are not the fast ones",
    "tensorrt": "its attention is onnxruntime's own, which TensorRT leaves to other providers",
}
"""By the target that a provider wants."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What sessions on a GPU may use.

    Attributes:
        memory_bytes: most device memory of a session's arena (CUDA) or workspace (TensorRT), weights included for CUDA
            only; ``None``: no limit.
        cuda_graphs: record a run's kernels once and replay them.
    """

    memory_bytes: int | None = None
    cuda_graphs: bool = False

    @property
    def any_is_set(self) -> bool:
        """Whether a provider must know of them."""
        return self.memory_bytes is not None or self.cuda_graphs

    def without_graphs(self) -> DeviceLimits:
        """The same with every kernel launched by itself."""
        return replace(self, cuda_graphs=False)


def find_provider(name: str, limits: DeviceLimits) -> Provider:
    """A provider by our name or onnxruntime's own, which is there.

    Raises:
        UsageError: neither the installed onnxruntime nor a plugin has it, or it takes no such limits.
        EngineError: the plugin's library does not load.
    """
    known = {provider.ort_name: provider for provider in PROVIDERS.values()}
    provider = PROVIDERS.get(name.lower()) or known.get(name) or Provider(name, name)
    if limits.any_is_set and provider.ort_name not in _CUDA_GRAPHS:
        raise UsageError(
            f"the provider '{name}' knows neither CUDA graphs nor a limit of GPU memory",
            fix=f"leave them out, or use {', '.join(p.name for p in PROVIDERS.values() if p.ort_name in _CUDA_GRAPHS)}",
        )
    if provider.plugin is not None:
        _plugin_devices(provider)
        return provider
    onnxruntime = import_onnxruntime()
    available = onnxruntime.get_available_providers()
    if provider.ort_name not in available:
        names = ", ".join(known[ort_name].name for ort_name in available if ort_name in known)
        raise UsageError(
            f"the installed onnxruntime has no provider '{name}'; it has {names}",
            fix=missing_fix(provider) if provider.name in PROVIDERS else f"use one of {names}",
        )
    if provider.device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN in the wheels that pip installed
    return provider


def missing_fix(provider: Provider) -> str:
    """How a provider is got."""
    if provider.ort_name in (CUDA, _TENSORRT):
        return (
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu "
            "(never both), with the CUDA and cuDNN that it asks for; or use --provider cpu"
        )
    return f"install the onnxruntime wheel that has '{provider.name}', or use --provider cpu"


def check_form(provider: Provider, bundle: Bundle) -> None:
    """Refuse a bundle whose attention has the form of another engine.

    Raises:
        EngineError: naming the export that makes the right one.
    """
    target = bundle.manifest.target
    if not bundle.has_onnx_graphs:
        held = _HELD.get(target, f"stages for {target}")
        problem = f"{bundle.path} holds {held}, which onnxruntime does not run"
        raise EngineError(problem, fix="export with --target onnx")
    if provider.target not in (None, target):
        recipe = bundle.manifest.recipe
        quantized = "" if recipe is None else f", and quantize it with --recipe {recipe}"
        raise EngineError(
            f"{bundle.path} was exported with --target {target}: {_WRONG_ATTENTION[provider.target]}",
            fix=f"livemoments export CHECKPOINT -o BUNDLE --target {provider.target}{quantized}; or another --provider",
        )


def add_to_options(options: Any, provider: Provider, bundle: Bundle, graph: Graph, limits: DeviceLimits) -> list[Any]:
    """Complete a session's options; what ``InferenceSession`` then takes as its providers.

    Plugins are part of the options (an ``InferenceSession`` that is given their names falls back to the CPU).

    Raises:
        UsageError: a plugin has no device.
    """
    if "fp8" in (bundle.manifest.recipe, bundle.manifest.precision):
        options.add_session_config_entry(_KEEP_QUANTIZED, "1")
    if provider.plugin is not None:
        device, *_ = _plugin_devices(provider)
        options.add_provider_for_devices([device], _settings(provider.ort_name, graph, limits))
        return []
    names = dict.fromkeys([provider.ort_name, *provider.others, CPU_PROVIDER])
    return [(name, _settings(name, graph, limits)) for name in names]


def _settings(ort_name: str, graph: Graph, limits: DeviceLimits) -> dict[str, str]:
    settings: dict[str, str] = {}
    if ort_name == CUDA:
        # onnxruntime's defaults round fp32 products to 10 bits, and try every convolution with the largest workspace
        settings |= {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        settings |= {"arena_extend_strategy": "kSameAsRequested"}  # not to the next power of two
    if ort_name == _TENSORRT:
        is_half = any(spec.dtype == "float16" for spec in (*graph.inputs, *graph.outputs))
        settings |= {"trt_fp16_enable": "1" if is_half else "0"}
    if limits.memory_bytes is not None and ort_name in _MEMORY_LIMITS:
        settings[_MEMORY_LIMITS[ort_name]] = str(limits.memory_bytes)
    if limits.cuda_graphs and ort_name in _CUDA_GRAPHS:
        settings[_CUDA_GRAPHS[ort_name]] = "1"
    return settings


def _plugin_devices(provider: Provider) -> Sequence[Any]:
    """What a plugin can compute on; its library is registered first, once a process.

    Raises:
        UsageError: the package is not installed, or finds no device that it serves.
        EngineError: its library does not load.
    """
    assert provider.plugin is not None
    package, module = provider.plugin
    try:
        plugin = importlib.import_module(module)
    except ModuleNotFoundError:
        raise UsageError(
            f"the provider '{provider.name}' is a plugin that is not installed", fix=f"pip install {package}"
        ) from None
    onnxruntime = import_onnxruntime()
    library = Path(plugin.get_library_path())
    if library not in _REGISTERED:
        try:
            onnxruntime.register_execution_provider_library(provider.ort_name, str(library))
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise EngineError(
                f"the plugin of the provider '{provider.name}' does not load: {_cause(error)}",
                fix="install NVIDIA's driver, or use --provider cpu",
            ) from None
        _REGISTERED.add(library)
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider.ort_name]
    if not found:
        raise UsageError(
            f"the plugin of the provider '{provider.name}' finds no GPU that it serves (docs/tensorrt.md lists them)",
            fix="use --provider cuda or cpu",
        )
    return found


_REGISTERED: set[Path] = set()
"""Libraries of plugins: onnxruntime refuses to register one a second time."""


def _cause(error: Exception) -> str:
    """The end of onnxruntime's message, which begins with a code and the library's path."""
    return str(error).strip().splitlines()[0].split("with error: ")[-1]
