"""The building process where torch-tensorrt's import would ask for a GPU: what it asks is answered here.

Run as ``python cuda_stand_in.py`` in place of ``python -m livemoments.export.tensorrt.worker``. Three questions about
the device are answered, and the package's C++ runtime, which is linked with CUDA's PyTorch and opens engines, is not
found. What is imported then converts and builds as ever: neither needs a device. In a process of its own, always.
"""

import os.path
import runpy
from types import SimpleNamespace

import torch

CAPABILITY = (8, 9)
RUNTIME = "libtorchtrt"


def answer_for_the_device() -> None:
    """Before torch-tensorrt is imported."""
    assert not torch.cuda.is_available(), "there is a GPU: nothing has to stand in for it"
    device = SimpleNamespace(name="stand-in", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=24 << 30)
    if not hasattr(torch._C, "_CudaDeviceProperties"):  # a PyTorch without CUDA
        torch._C._CudaDeviceProperties = SimpleNamespace
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    torch.cuda.get_device_properties = lambda index=None: device
    is_file = os.path.isfile
    os.path.isfile = lambda path: RUNTIME not in str(path) and is_file(path)


def main() -> None:
    answer_for_the_device()
    runpy.run_module("livemoments.export.tensorrt.worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
