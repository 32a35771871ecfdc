"""What is different where a bundle holds Core ML packages: its back-end, the ladder's rungs, sizes of the flow."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from livemoments.errors import UsageError
from livemoments.progress import SILENT
from livemoments.runtime.flow import EngineFlow
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size
from livemoments.validate.report_data import LEVELS
from livemoments.validate.run import _whole_stages


def bundle_for(target: str) -> Any:
    manifest = types.SimpleNamespace(target=target)
    return types.SimpleNamespace(path=Path("bundle"), manifest=manifest, has_onnx_graphs=target != "coreml")


def test_the_bundles_target_chooses_the_back_end() -> None:
    assert RestoreOptions().open_backend(bundle_for("coreml")).name == "coreml"
    assert RestoreOptions().open_backend(bundle_for("onnx")).name == "onnxruntime"
    assert RestoreOptions().open_backend().name == "onnxruntime"
    assert RestoreOptions(provider="interpreter").open_backend(bundle_for("coreml")).provider == "interpreter"


def test_rungs_that_look_into_a_stage_are_left_out() -> None:
    left = _whole_stages(bundle_for("coreml"), LEVELS, False, SILENT)
    assert set(LEVELS) - set(left) == {"block"}
    with pytest.raises(UsageError, match="no ONNX graphs, which alone are bisected"):
        _whole_stages(bundle_for("coreml"), LEVELS, True, SILENT)


@pytest.mark.parametrize(("target", "words"), [("coreml", "with --flow-size 104x80"), ("onnx", "without --stages")])
def test_a_frame_of_another_size_than_the_flows_is_refused_with_the_remedy(target: str, words: str) -> None:
    bundle = bundle_for(target)
    graphs = (types.SimpleNamespace(size="128x128"),)
    bundle.stage = lambda stage: types.SimpleNamespace(graphs=graphs, graph=lambda size: None)
    pool: Any = types.SimpleNamespace(bundle=bundle)
    with pytest.raises(UsageError, match="takes images of 128x128 only, not 104x80") as caught:
        EngineFlow(pool)._check_size(Size(80, 104))
    assert words in (caught.value.fix or "")
