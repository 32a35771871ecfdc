"""The second road to an engine: torch-tensorrt converts the checkpoint's modules, and the library builds the network.

Here is what is asked before it begins; :mod:`livemoments.export.tensorrt.torch_network` does it. torch-tensorrt is
imported in the building process alone.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from livemoments.bundle import Bundle, hash_file
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.export.tensorrt.protocol import Job, TorchSource
from livemoments.manifest import EngineLibrary
from livemoments.progress import Progress
from livemoments.types import Stage

DISTRIBUTIONS: dict[EngineLibrary, str] = {"tensorrt": "torch-tensorrt", "rtx": "torch-tensorrt-rtx"}
"""Which one brings the package ``torch_tensorrt`` for a library; also the extra's name."""
_FEATURE = "building engines by torch-tensorrt"


def check_road(library: EngineLibrary) -> None:
    """Can torch-tensorrt be used here, with this library? It is imported in a process of its own.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is, for the other library, or cannot be imported, as on machines without a GPU.
    """
    extra = DISTRIBUTIONS[library]
    if importlib.util.find_spec("torch_tensorrt") is None:
        raise MissingExtraError(_FEATURE, extra, missing="torch_tensorrt")
    try:
        metadata.distribution(extra)
    except metadata.PackageNotFoundError:
        raise EngineError(
            f"the installed torch_tensorrt does not build with this library; the package {extra} does",
            fix=f"in an environment of its own: pip install 'livemoments-deploy[{extra}]'",
        ) from None
    from livemoments.export.tensorrt.process import RefusedError, run_job

    try:
        run_job(Job(library=library, graph=None, size="1x1", batch=1), "torch-tensorrt")
    except RefusedError as error:
        raise EngineError(error.failed.messages[0], fix=error.fix) from None


def import_torch_tensorrt() -> None:
    """Import the package, which is what fails first; called in the building process.

    Raises:
        EngineError: its import fails, as without a GPU.
    """
    try:
        import torch_tensorrt  # noqa: F401
    except Exception as error:  # it raises whatever its parts do: AssertionError, OSError, RuntimeError, Exception
        raise EngineError(
            f"torch-tensorrt cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})",
            fix="it takes an NVIDIA GPU, its driver and a PyTorch built for CUDA; without --via, the graphs are built "
            "from, which TensorRT for RTX does on any machine",
        ) from None


def check_checkpoint(bundle: Bundle, checkpoint: Path, progress: Progress) -> None:
    """Is it the one that the bundle was exported from, and are the bundle's stages what it holds?

    Raises:
        MissingExtraError: the extra ``export`` is not installed.
        CheckpointError: it is no checkpoint.
        UsageError: it is another one, or the bundle is quantized.
    """
    manifest = bundle.manifest
    if manifest.recipe is not None:
        raise UsageError(
            f"{bundle.path} was quantized by the recipe '{manifest.recipe}'; torch-tensorrt builds what the checkpoint "
            "holds",
            fix="leave --via out, or name the bundle that was quantized",
        )
    try:
        from livemoments.reference.layout import locate
    except ImportError as error:
        raise MissingExtraError(_FEATURE, "export", missing=error.name) from None
    files, listed = dict(locate(checkpoint).walk()), manifest.source.files
    differing = sorted(files.keys() ^ listed.keys())
    if not differing:
        sizes = {name: path.stat().st_size for name, path in files.items()}
        with progress.task("Checking the checkpoint", total=sum(sizes.values())) as task:
            for name, path in files.items():
                if hash_file(path) != listed[name]:
                    differing.append(name)
                    break
                task.advance(sizes[name], note=name)
    if differing:
        raise UsageError(
            f"{checkpoint} is not the checkpoint that {bundle.path} was exported from: {differing[0]} differs",
            fix=f"name the checkpoint '{manifest.source.name}' that it was, or export this one",
        )


def torch_source(bundle: Bundle, checkpoint: Path, stage: Stage) -> TorchSource:
    """What the building process needs to make the module of a stage as the bundle's export made it."""
    manifest = bundle.manifest
    return TorchSource(
        checkpoint=str(checkpoint.absolute()),
        stage=stage,
        precision=manifest.precision,
        kv_layout=manifest.kv_layout,
        schedule=manifest.schedule,
    )
