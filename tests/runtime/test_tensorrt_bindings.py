"""What TensorRT's back-end calls, against the installed bindings of CUDA and TensorRT for RTX."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import numpy as np
import pytest
from engine_support import needs_rtx

from livemoments.errors import EngineError, MissingExtraError
from livemoments.tensorrt.cuda import CudaDevice
from livemoments.tensorrt.gpu import find_gpu as gpu_here


def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings", raising=False)
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime", raising=False)
    with pytest.raises(MissingExtraError, match="rtx"):
        CudaDevice("rtx")


class Checked:
    """``cuda.bindings.runtime`` whose calls are only compared with their signatures."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not name.startswith("cuda") or not callable(real) or isinstance(real, type):
            return real

        def call(*arguments: Any) -> tuple[Any, ...]:
            inspect.signature(real).bind(*arguments)
            self.called.append(name)
            results = {"cudaMallocHost": (buffer.ctypes.data,), "cudaGetDeviceCount": (1,)}
            made = {"cudaMalloc", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaStreamEndCapture"}
            made |= {"cudaGraphInstantiate"}
            return (self._real.cudaError_t.cudaSuccess, *results.get(name, (7,) if name in made else ()))

        buffer = np.zeros(64, np.uint8)
        return call


def test_every_call_of_cuda_has_the_arguments_that_the_installed_bindings_take() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed (make rtx)")
    device = object.__new__(CudaDevice)
    device._cuda = checked = Checked(real)
    device._call("cudaGetDeviceCount")
    memory, pinned = device.allocate(64, pinned=False), device.allocate(64, pinned=True)
    stream = device.make_stream()
    device.copy(memory, pinned, 64, stream)
    device.copy(pinned, memory, 64, stream)
    event = device.mark(stream)
    device.wait(stream, event)
    device.synchronize(event)
    recording = device.record(stream, lambda: None)
    device.replay(recording, stream)
    device.drop_recording(recording)
    device.free(memory)
    device.free(pinned)
    device.drop_stream(stream)
    del event
    source = inspect.getsource(inspect.getmodule(CudaDevice))  # type: ignore[arg-type]
    named = {word.strip('"') for word in source.replace("(", " ").replace(",", " ").split() if word.startswith('"cuda')}
    assert {name for name in named if hasattr(real, name)} <= set(checked.called)
    assert "cudaEventDestroy" in checked.called


def test_an_error_of_the_driver_is_named() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed (make rtx)")
    if gpu_here() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match=r"cudaGetDeviceCount failed|finds no GPU") as caught:
        CudaDevice("rtx")
    assert caught.value.fix


@needs_rtx
def test_every_call_of_the_engines_is_one_that_the_installed_bindings_have() -> None:
    import tensorrt_rtx

    from livemoments.tensorrt import program

    kinds = {"engine": "ICudaEngine", "self._context": "IExecutionContext", "runtime": "Runtime"}
    tree = ast.parse(inspect.getsource(program))
    calls = {id(node.func): len(node.args) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = [
        (kinds[ast.unparse(node.value)], node.attr, calls.get(id(node)))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in kinds
    ]
    assert {kind for kind, _, _ in found} == set(kinds.values())
    for kind, name, count in found:
        member = getattr(getattr(tensorrt_rtx, kind), name)
        assert isinstance(member, property) == (count is None), f"{kind}.{name}"
        signature = (member.__doc__ or "").strip().split("\n")[0]
        if count is not None and "*args" not in signature:  # of overloads only the name is told
            assert signature.partition("->")[0].count(": ") - 1 == count, signature
    assert {"DEVICE"} <= set(tensorrt_rtx.TensorLocation.__members__)
    assert {"INPUT"} <= set(tensorrt_rtx.TensorIOMode.__members__)
    assert set(program._DTYPES) <= set(tensorrt_rtx.DataType.__members__)
    assert tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
