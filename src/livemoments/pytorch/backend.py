"""The PyTorch backend: a bundle's networks on a GPU, or on a CPU to check them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError, UsageError
from livemoments.export.mmdit import JointProjections
from livemoments.export.stages import MotionStage, ReferenceStage, RestorationStage
from livemoments.manifest import Graph
from livemoments.pytorch.attention import chosen_kernel, find_kernel
from livemoments.pytorch.execution import Graphed, compile_blocks
from livemoments.pytorch.linears import replace_linears
from livemoments.pytorch.options import TorchOptions
from livemoments.pytorch.structure import Structure, build
from livemoments.runtime.backends.base import Array, Backend, DeviceArray, Engine
from livemoments.types import Size, Stage, TensorSpec

TARGET = "torch"
"""What a bundle's manifest says of its networks."""
_MOST_CAPTURED = 4
"""Graphs that an engine keeps, one for each batch that it met."""
_BLOCKS = "network.transformer_blocks."


class TorchArray(DeviceArray):
    """A tensor on the device; its ``dtype`` is the one in which it comes to the host."""

    def __init__(self, tensor: Tensor, spec: TensorSpec) -> None:
        self.tensor = tensor
        self._dtype = np.dtype(spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        """Its numpy dtype on the host."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes it takes on the device."""
        return self.tensor.nbytes

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return _to_numpy(self.tensor, self._dtype)


class TorchBackend(Backend):
    """Opens a bundle's networks.

    Args:
        provider: a device and words, as :meth:`TorchOptions.parse` reads them.
        threads: of PyTorch on the CPU, for the whole process; ``None``: PyTorch's own choice.
        compile_backend: of ``torch.compile``.

    Raises:
        UsageError: this machine has no such device, or a word is not one.
    """

    name = TARGET

    def __init__(self, provider: str = "cpu", threads: int | None = None, *, compile_backend: str = "inductor") -> None:
        if threads is not None:
            if threads < 1:
                raise UsageError(f"{threads} threads cannot run anything", fix="pass --threads 1 or more")
            torch.set_num_threads(threads)
        self.options = TorchOptions.parse(provider)
        self.provider = str(self.options)
        self._compile_backend = compile_backend
        find_kernel(self.options.attention, torch.device(self.options.device))  # whether it is there

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> TorchEngine:
        """See :meth:`Backend.open`."""
        return self.open_files(bundle.path, stage, bundle.graph(stage, size))

    def open_files(self, folder: Path, stage: Stage, graph: Graph) -> TorchEngine:
        """The same for a graph whose bundle is still being written.

        Args:
            folder: what the graph's paths are relative to.
            stage: the stage.
            graph: its entry for the manifest.
        """
        path = folder / graph.path
        with _errors(f"stage '{stage}' does not load from {path.name}"):
            try:
                structure = msgspec.json.decode(path.read_bytes(), type=Structure)
                module = build(structure, stage)
            except (msgspec.MsgspecError, ValueError, TypeError) as error:
                raise EngineError(f"{path}: not a network of this stage ({error})", fix="export again") from None
            dtype = torch.float32 if stage is Stage.FLOW else self._dtype(structure)
            files = [folder / name for name in graph.weights]
            _load(module, structure, files, torch.device(self.options.device), dtype)
            return self.engine(module, stage, graph.inputs, graph.outputs)

    def engine(
        self, module: nn.Module, stage: Stage, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> TorchEngine:
        """An engine of a stage's module that lies on the device, made as the options say.

        Args:
            module: of :mod:`livemoments.export.stages`, or RAFT; changed in place.
            stage: which stage it is.
            inputs: the specs of its inputs.
            outputs: those of its outputs.
        """
        options = self.options
        kernel = find_kernel(options.attention, torch.device(options.device))
        for attention in (part for part in module.modules() if isinstance(part, JointProjections)):
            attention.kernel = kernel
        if options.linears is not None:
            replace_linears(module, options.linears, is_wanted=lambda name: name.startswith(_BLOCKS))
        if options.is_compiled and isinstance(module, ReferenceStage | RestorationStage):
            compile_blocks(module.network, self._compile_backend)
        return TorchEngine(stage, inputs, outputs, module, has_graphs=options.has_graphs)

    def _dtype(self, structure: Structure) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.options.dtype or structure.dtype)
        return found

    def attention_kernel(self, *, heads: int, head_size: int, queries: int, keys: int, dtype: torch.dtype) -> str:
        """The name of the kernel that computes the transformers' attention at this size, for records."""
        device = torch.device(self.options.device)
        query, key = (
            torch.empty(1, heads, tokens, head_size, dtype=dtype, device=device) for tokens in (queries, keys)
        )
        return chosen_kernel(self.options.attention, query, key, key)


class TorchEngine(Engine):
    """One module. What is kept stays on the device; of a CUDA graph it is a copy, which later runs leave alone.

    Args:
        stage: the stage.
        inputs: from the manifest.
        outputs: from the manifest.
        module: on its device.
        has_graphs: capture the motion encoder and the transformers as CUDA graphs.
    """

    def __init__(
        self,
        stage: Stage,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        module: nn.Module,
        *,
        has_graphs: bool = False,
    ) -> None:
        super().__init__(stage, inputs, outputs)
        first = next(module.parameters())
        self._module: nn.Module | None = module
        self._device, self._dtype = first.device, first.dtype
        self._captures = has_graphs and isinstance(module, ReferenceStage | RestorationStage | MotionStage)
        self._graphs: dict[tuple[tuple[int, ...], ...], Graphed] = {}

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        with torch.inference_mode(), _exact_convolutions(), _errors(f"stage '{self.stage}' failed"):
            tensors = [self._to_device(inputs[spec.name]) for spec in self.inputs]
            results = self._replay(tensors) if self._captures else self._call(*tensors)
            return {
                spec.name: TorchArray(tensor, spec) if spec.name in keep else _to_numpy(tensor, np.dtype(spec.dtype))
                for spec, tensor in zip(self.outputs, results, strict=True)
            }

    def _to_device(self, array: Array) -> Tensor:
        tensor = array.tensor if isinstance(array, TorchArray) else _from_numpy(array)
        wanted = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, wanted, non_blocking=True)

    def _call(self, *tensors: Tensor) -> Sequence[Tensor]:
        if self._module is None:
            raise EngineError(f"stage '{self.stage}': the engine is closed")
        if self.stage is Stage.RESTORATION:
            latent, step, motion, *kv = tensors
            found = self._module(latent, step, motion, kv)
        else:
            found = self._module(*tensors)
        return found if isinstance(found, tuple) else (found,)

    def _replay(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        if shapes not in self._graphs:
            if len(self._graphs) == _MOST_CAPTURED:
                self._graphs.clear()
            self._graphs[shapes] = Graphed(self._call, [tensor.clone() for tensor in tensors])
        return [tensor.clone() for tensor in self._graphs[shapes](*tensors)]

    def close(self) -> None:
        """See :meth:`Engine.close`; the device's memory is given back to the system."""
        super().close()
        self._module = None
        self._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _load(
    module: nn.Module, structure: Structure, files: Sequence[Path], device: torch.device, dtype: torch.dtype
) -> None:
    """Give a module on the meta device its weights, one tensor at a time.

    Raises:
        EngineError: a tensor is missing, or has another shape.
    """
    wanted = {structure.stored_as.get(name, name): (name, like) for name, like in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt", device=str(device)) as stored:
                for key in stored.keys() & wanted.keys():
                    name, like = wanted[key]
                    tensor = stored.get_tensor(key)
                    if tensor.shape != like.shape:
                        shapes = f"{tuple(tensor.shape)}, not {tuple(like.shape)}"
                        raise EngineError(f"{file}: '{key}' has the shape {shapes}", fix="export the bundle again")
                    state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        except (SafetensorError, OSError) as error:
            raise EngineError(f"{file}: cannot be read ({error})", fix="export the bundle again") from None
    if missing := sorted(name for name, _ in wanted.values() if name not in state):
        raise EngineError(f"{files[0].parent}: no weights for '{missing[0]}'", fix="export the bundle again")
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False)


def _from_numpy(array: Array) -> Tensor:
    host = array.numpy() if isinstance(array, DeviceArray) else array
    return torch.from_numpy(host if host.flags.writeable else host.copy())  # PyTorch warns of read-only memory


def _to_numpy(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    host: np.ndarray = tensor.to(getattr(torch, dtype.name)).cpu().numpy()
    return host


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Convolutions of float32 stay float32: PyTorch lets cuDNN round their inputs to 11 bits (TF32) by default."""
    with torch.backends.cudnn.flags(
        enabled=True,
        benchmark=True,  # shapes repeat
        deterministic=False,
        allow_tf32=False,
    ):
        yield


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(what, error) from error
    except RuntimeError as error:  # PyTorch's kernels raise nothing more particular
        if "can't allocate memory" in str(error):
            raise _out_of_memory(what, error) from error
        raise EngineError(f"{what}: {_first_line(error)}") from error


def _out_of_memory(what: str, error: BaseException) -> ResourceError:
    fix = "use a bundle with smaller tiles (export --tile), --batch 1, or --reference phase-split"
    return ResourceError(f"{what}: memory ran out ({_first_line(error)})", fix=fix, of_memory=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
