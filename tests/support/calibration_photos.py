"""Calibration folders, bundles with edited weights, and what enters linears, computed plainly."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
from restore_images import shrunk, textured

from livemoments.bundle import Bundle
from livemoments.graphs.linears import LinearId, find_linears
from livemoments.ort import open_session, session_options
from livemoments.runtime.backends.base import Array, Backend, Engine
from livemoments.runtime.backends.ort import OrtBackend, OrtEngine
from livemoments.types import Size, Stage

PHOTO, VIDEO = Size(112, 128), Size(84, 96)
"""Photos that fit in one tile of the tiny bundle."""
TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)


def write_photos(folder: Path, names: Collection[str] = ("a", "b"), *, key_frames: bool = True) -> Path:
    """``lr``, ``ref`` and perhaps ``ref_lr`` with one photo per name."""
    for number, name in enumerate(names):
        photo = textured(PHOTO, 10 + number)
        images = {"ref": photo, "lr": shrunk(photo, VIDEO, shift_px=2 + number)}
        if key_frames:
            images["ref_lr"] = shrunk(photo, VIDEO)
        for part, pixels in images.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / part / f"{name}.png"), pixels[..., ::-1])
    return folder


def edited_bundle(bundle: Path, place: Path, edits: Mapping[tuple[str, str], Callable[[np.ndarray], None]]) -> Bundle:
    """A copy of a bundle with tensors (stage, name) changed in place; its hashes are not checked."""
    shutil.copytree(bundle, place)
    for (stage, name), edit in edits.items():
        graph = next((place / stage).glob("*.onnx"))
        tensor = ir.load(graph).graph.initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        shape = tuple(int(n) for n in tensor.shape.numpy())
        edit(np.memmap(tensor.path, tensor.dtype.numpy(), "r+", tensor.offset or 0, shape))
    return Bundle.open(place, verify_hashes=False)


class RecordingBackend(Backend):
    """onnxruntime, and what the transformers were fed with, by stage."""

    name = "recording"
    provider = "cpu"

    def __init__(self) -> None:
        self.plain = OrtBackend("cpu")
        self.fed: dict[Stage, list[dict[str, np.ndarray]]] = {stage: [] for stage in TRANSFORMERS}

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        engine = self.plain.open(bundle, stage, size)
        return _Recording(engine, self.fed[stage]) if stage in self.fed else engine


class _Recording(Engine):
    def __init__(self, engine: OrtEngine, log: list[dict[str, np.ndarray]]) -> None:
        super().__init__(engine.stage, engine.inputs, engine.outputs)
        self._engine = engine
        self._log = log

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        host = {
            name: np.array(array if isinstance(array, np.ndarray) else array.numpy()) for name, array in inputs.items()
        }
        self._log.append(host)
        return self._engine.run(host)


def linear_inputs(
    bundle: Bundle, stage: Stage, fed: Collection[Mapping[str, np.ndarray]]
) -> dict[LinearId, list[tuple[int, np.ndarray]]]:
    """What enters each linear: the whole graph with extra outputs, run once per feed; (point, values (rows, K))."""
    path = next((bundle.path / str(stage)).glob("*.onnx"))
    model = ir.load(path)
    linears = find_linears(model, str(stage))
    values = {value.name: value for node in model.graph for value in node.outputs}
    names = list(dict.fromkeys(linear.input_value for linear in linears))
    have = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in have)
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = open_session(ir.to_proto(model).SerializeToString(), options)
    found: dict[LinearId, list[tuple[int, np.ndarray]]] = {linear.id: [] for linear in linears}
    for feeds in fed:
        results = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        for linear in linears:
            rows = results[linear.input_value].reshape(-1, linear.in_features)
            found[linear.id].append((int(feeds["step"]), rows))
    return found
