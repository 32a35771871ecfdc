"""Each pass's contract, on small networks and graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from livemoments.export.marks import MARK_DOMAIN
from livemoments.export.mmdit import Guidance, KeyValue, MMDiT
from livemoments.export.passes.fold_conditioning import fold_conditioning
from livemoments.export.passes.fold_text import fold_text
from livemoments.export.passes.freeze_axes import freeze_axes
from livemoments.export.passes.fuse_attention import fuse_attention
from livemoments.export.passes.name_modules import MODULE, name_modules
from livemoments.export.passes.prune_reference_tail import prune_reference_tail
from livemoments.export.passes.prune_text_query import prune_text_query
from livemoments.export.passes.remove_dead import remove_dead
from livemoments.export.passes.standard_attention import standard_attention
from livemoments.export.passes.transpose_weights import TRANSPOSED, transpose_weights
from livemoments.export.passes.unroll_iterations import unroll_iterations
from livemoments.export.weights import WeightSource
from livemoments.reference.config import TransformerConfig

EXACT = 1e-12
"""Relative error that float64 rounding stays below."""
CONFIG = TransformerConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    joint_attention_dim=12,
    caption_projection_dim=16,
    pooled_projection_dim=10,
    sample_size=8,
    pos_embed_max_size=8,
)
GRID = (3, 4)
TIMESTEPS = (200.2, 90.2, 3.0)
SD3_MEDIUM = TransformerConfig(24, 24, 64, 2, 16, 16, 4096, 1536, 2048, 128, 192)


def random_network(prompt_tokens: int = 4, config: TransformerConfig = CONFIG) -> tuple[MMDiT, dict[str, Tensor]]:
    network = MMDiT(config, GRID, prompt_tokens).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(prompt_tokens)
    for parameter in network.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return network, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def on_meta(state: dict[str, Tensor], prompt_tokens: int = 4) -> tuple[MMDiT, WeightSource]:
    with torch.device("meta"):
        network = MMDiT(CONFIG, GRID, prompt_tokens)
    return network, WeightSource(state, Path("weights"))


def inputs(batch: int = 2) -> tuple[Tensor, list[Guidance]]:
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(batch, 4, 6, 8, dtype=torch.float64, generator=generator)
    tokens, dim = GRID[0] * GRID[1], CONFIG.dim

    def draw(length: int) -> Tensor:
        return torch.randn(batch, length, dim, dtype=torch.float64, generator=generator)

    return latent, [Guidance(KeyValue(draw(tokens + 4), draw(tokens + 4)), draw(tokens)) for _ in range(3)]


def distance(value: Tensor | None, reference: Tensor | None) -> float:
    assert value is not None
    assert reference is not None
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("prompt_tokens", [4, 9], ids=["text tables", "text projections kept"])
def test_folding_changes_nothing_beyond_rounding(prompt_tokens: int) -> None:
    full, state = random_network(prompt_tokens)
    network, weights = on_meta(state, prompt_tokens)
    report = fold_conditioning(network, weights, TIMESTEPS)
    assert report.changed
    assert report.parameters_after < report.parameters_before
    second = fold_text(network, weights)
    assert second.changed
    assert second.parameters_after < second.parameters_before
    assert (network.transformer_blocks[0].text is not None) == (prompt_tokens * len(TIMESTEPS) < CONFIG.dim)
    assert set(weights) == set(network.state_dict())
    folded = weights.materialise(network, "")
    latent, guidance = inputs()
    for index, timestep in enumerate(TIMESTEPS):
        want, want_kept = full(latent, torch.tensor(timestep, dtype=torch.float64), guidance)
        got, kept = folded(latent, torch.tensor(index), guidance)
        assert distance(got, want) < EXACT
        for own, reference in zip(kept, want_kept, strict=True):
            assert distance(own.key, reference.key) < EXACT
            assert distance(own.value, reference.value) < EXACT


def test_folding_on_a_real_device_fills_the_parameters_too() -> None:
    full, state = random_network()
    network, _ = random_network()
    weights = WeightSource(state, Path("weights"))
    fold_conditioning(network, weights, TIMESTEPS)
    fold_text(network, weights)
    prune_text_query(network, weights)
    network.requires_grad_(False)
    latent, guidance = inputs()
    want, _ = full(latent, torch.tensor(TIMESTEPS[1], dtype=torch.float64), guidance)
    got, _ = network(latent, torch.tensor(1), guidance)
    assert distance(got, want) < EXACT


def test_folding_twice_does_nothing() -> None:
    _, state = random_network()
    network, weights = on_meta(state)
    fold_conditioning(network, weights, TIMESTEPS)
    fold_text(network, weights)
    names = set(weights)
    for report in (fold_conditioning(network, weights, TIMESTEPS), fold_text(network, weights)):
        assert not report.changed
        assert report.parameters_before == report.parameters_after
    assert set(weights) == names


def test_text_folding_and_pruning_need_folded_conditioning() -> None:
    _, state = random_network()
    network, weights = on_meta(state)
    with pytest.raises(ValueError, match="fold_conditioning"):
        fold_text(network, weights)
    with pytest.raises(ValueError, match="fold_conditioning"):
        prune_reference_tail(network, weights)


@pytest.mark.parametrize("layers", [3, 1])
def test_pruned_reference_gives_the_same_keys_and_values(layers: int) -> None:
    config = dataclasses.replace(CONFIG, num_layers=layers)
    full, state = random_network(config=config)
    with torch.device("meta"):
        network = MMDiT(config, GRID, 4)
    weights = WeightSource(state, Path("weights"))
    fold_conditioning(network, weights, TIMESTEPS)
    fold_text(network, weights)
    report = prune_reference_tail(network, weights)
    assert report.changed
    assert not prune_reference_tail(network, weights).changed
    assert set(weights) == set(network.state_dict())
    last = f"transformer_blocks.{layers - 1}."
    unread = ("attn.to_q", "attn.to_out", "attn.add_q_proj", "ff.", "ff_context")
    assert not [name for name in weights if name.startswith(tuple(last + part for part in unread))]
    latent, _ = inputs()
    velocity, kept = weights.materialise(network, "")(latent, torch.tensor(2))
    _, want = full(latent, torch.tensor(TIMESTEPS[2], dtype=torch.float64))
    assert velocity is None
    assert len(kept) == layers
    for own, reference in zip(kept, want, strict=True):
        assert distance(own.key, reference.key) < EXACT
        assert distance(own.value, reference.value) < EXACT


def test_pruned_text_query_keeps_the_velocity() -> None:
    full, state = random_network()
    network, weights = on_meta(state)
    fold_conditioning(network, weights, TIMESTEPS)
    assert prune_text_query(network, weights).changed
    assert not prune_text_query(network, weights).changed
    assert "transformer_blocks.2.attn.add_q_proj.weight" not in weights
    latent, guidance = inputs()
    got, _ = weights.materialise(network, "")(latent, torch.tensor(0), guidance)
    want, _ = full(latent, torch.tensor(TIMESTEPS[0], dtype=torch.float64), guidance)
    assert distance(got, want) < EXACT


def test_nan_weights_are_named_while_folding() -> None:
    from livemoments.errors import CheckpointError

    _, state = random_network()
    state["transformer_blocks.1.norm1.linear.weight"][3, 5] = float("nan")
    network, weights = on_meta(state)
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.1\.norm1\.linear\.weight"):
        fold_conditioning(network, weights, TIMESTEPS)


def test_a_weight_too_large_for_half_precision_is_named() -> None:
    from livemoments.errors import CheckpointError

    weights = WeightSource({"w": torch.tensor([1e6])}, Path("weights"))
    assert weights.get("w").item() == 1e6
    with pytest.raises(CheckpointError, match="w \\(as float16\\)"):
        weights.get("w", torch.float16)


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


LINEAR = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,2] x) => (float[B,3] y, float[B,2] z)
<float[3,2] w = {1, 2, 3, 4, 5, 6}, float[2] unused = {1, 2}, float[2] b = {1, 1}>
{
  wt = Transpose <perm = [1, 0]> (w)
  y = MatMul (x, wt)
  dead = Relu (x)
  z = Add (x, b)
}
"""


def test_remove_dead() -> None:
    model = graph(LINEAR)
    report = remove_dead(model)
    assert report.changed
    assert (report.parameters_before, report.parameters_after) == (10, 8)
    assert "unused" not in model.graph.initializers
    assert "Relu" not in {node.op_type for node in model.graph}
    assert not remove_dead(model).changed
    report = remove_dead(model, keep_outputs=["z"])
    assert report.changed
    assert [value.name for value in model.graph.outputs] == ["z"]
    assert set(model.graph.initializers) == {"b"}
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_transpose_weights() -> None:
    model = graph(LINEAR)
    x = np.array([[1, -2], [0.5, 3]], dtype=np.float32)
    want = run(graph(LINEAR), x=x)
    assert transpose_weights(model).changed
    weight = model.graph.initializers["w"]
    assert tuple(weight.shape) == (2, 3)
    assert weight.metadata_props[TRANSPOSED] == "1"
    assert "Transpose" not in {node.op_type for node in model.graph}
    assert not transpose_weights(model).changed
    for got, reference in zip(run(model, x=x), want, strict=True):
        np.testing.assert_array_equal(got, reference)


def test_transpose_weights_leaves_a_weight_that_is_also_read_as_it_is() -> None:
    text = LINEAR.replace("dead = Relu (x)", "dead = Relu (w)").replace(
        "float[B,2] z)", "float[B,2] z, float[3,2] dead)"
    )
    assert not transpose_weights(graph(text)).changed


ATTENTION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,5,8] q, float[B,7,8] k, float[B,7,8] v) => (float[B,5,8] y)
<int64[4] split = {0, 0, 2, 4}, int64[3] merge = {0, 0, 8}>
{
  q4 = Reshape (q, split)
  k4 = Reshape (k, split)
  v4 = Reshape (v, split)
  qh = Transpose <perm = [0, 2, 1, 3]> (q4)
  kh = Transpose <perm = [0, 2, 1, 3]> (k4)
  vh = Transpose <perm = [0, 2, 1, 3]> (v4)
  a = Attention <scale = 0.4> (qh, kh, vh)
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (at, merge)
}
"""


def attention_graph(text: str = ATTENTION) -> ir.Model:
    from onnx_ir.passes.common import ShapeInferencePass

    model = graph(text)
    ShapeInferencePass()(model)
    return model


def test_fuse_attention() -> None:
    rng = np.random.default_rng(3)
    feeds = {name: rng.standard_normal((2, n, 8), dtype=np.float32) for name, n in (("q", 5), ("k", 7), ("v", 7))}
    want = run(attention_graph(), **feeds)[0]
    model = attention_graph()
    assert fuse_attention(model).changed
    assert [node.op_type for node in model.graph] == ["MultiHeadAttention"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(model, **feeds)[0], want, rtol=0, atol=1e-6)
    assert not fuse_attention(model).changed


@pytest.mark.parametrize("scale", [" <scale = 0.4>", ""], ids=["scaled", "default scale"])
def test_standard_attention_undoes_the_fusing(scale: str) -> None:
    rng = np.random.default_rng()
    feeds = {name: rng.standard_normal((2, n, 8), dtype=np.float32) for name, n in (("q", 5), ("k", 7), ("v", 7))}
    model = attention_graph(ATTENTION.replace(" <scale = 0.4>", scale))
    want = run(model, **feeds)[0]
    fuse_attention(model)
    (fused,) = model.graph
    fused.metadata_props[MODULE] = "blocks.0.attn"
    report = standard_attention(model)
    assert report.changed
    assert report.note == "1 of 1 attentions became standard ones"
    assert dict(model.graph.opset_imports) == {"": 23}
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attention.outputs) == 1  # the form that TensorRT fuses
    assert {node.metadata_props[MODULE] for node in model.graph} == {"blocks.0.attn"}
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(model, **feeds)[0], want, rtol=0, atol=1e-6)
    assert not standard_attention(model).changed


def test_standard_attention_leaves_masks_and_refuses_old_opsets() -> None:
    model = attention_graph()
    fuse_attention(model)
    (node,) = model.graph
    masked = ir.Node(
        node.domain, node.op_type, [*node.inputs, None, node.inputs[0]], list(node.attributes.values()), num_outputs=1
    )
    masked.outputs[0].name = "z"
    model.graph.append(masked)
    assert standard_attention(model).note == "1 of 2 attentions became standard ones"
    assert "com.microsoft" in model.graph.opset_imports
    model.graph.opset_imports[""] = 21
    with pytest.raises(ValueError, match="opset 21 has no Attention; 23 has"):
        standard_attention(model)


def test_freeze_axes() -> None:
    model = attention_graph()
    model.graph.inputs[0].shape = ir.Shape(["batch", 5, 8])
    model.graph.inputs[1].shape = ir.Shape(["batch", "keys", 8])
    report = freeze_axes(model, {"batch": 2, "height": 64})
    assert report.changed
    assert report.note == "2 values got batch = 2, height = 64"
    assert model.graph.inputs[0].shape == ir.Shape([2, 5, 8])
    assert model.graph.inputs[1].shape == ir.Shape([2, "keys", 8])  # of a name without a length
    assert not freeze_axes(model, {"batch": 2}).changed


def test_name_modules_keeps_the_module_and_nothing_of_the_machine() -> None:
    model = graph(LINEAR)
    nodes = list(model.graph)
    scopes = "pkg.torch.onnx.name_scopes"
    for node, path in zip(
        nodes, (["", "network.blocks.0.attn", "linear"], ["", "network", "relu"], ["", "add"]), strict=False
    ):
        node.metadata_props[scopes] = repr(path)
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /somebody/x.py"
        node.doc_string = "File /somebody/x.py"
    name_modules(model)
    assert [dict(node.metadata_props) for node in nodes] == [{MODULE: "blocks.0.attn"}, {}, {}, {}][: len(nodes)]
    assert all(not node.doc_string for node in nodes)


@pytest.mark.parametrize(
    "change",
    [
        ("a = Attention <scale = 0.4> (qh, kh, vh)", "a = Attention <is_causal = 1> (qh, kh, vh)"),
        ("qh = Transpose <perm = [0, 2, 1, 3]> (q4)", "qh = Relu (q4)"),
    ],
    ids=["causal", "other form"],
)
def test_fuse_attention_leaves_what_it_does_not_know(change: tuple[str, str]) -> None:
    report = fuse_attention(graph(ATTENTION.replace(*change)))
    assert not report.changed
    assert report.note.startswith("0 of 1")


MARKED = f"""
<ir_version: 10, opset_import: ["" : 23, "{MARK_DOMAIN}" : 1]>
g (float[B] x) => (float[B] y)
<float[1] half = {{0.5}}, float[1] one = {{1}}>
{{
  shared = Add (x, one)
  a1 = Mul (x, half)
  b1 = Add (a1, shared)
  m1, n1 = {MARK_DOMAIN}.IterationEnd (a1, b1)
  a2 = Mul (m1, half)
  c2 = Add (a2, n1)
  b2 = Add (c2, shared)
  m2, n2 = {MARK_DOMAIN}.IterationEnd (a2, b2)
  y = Sub (n2, m2)
}}
"""


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_unroll_iterations(repeats: int) -> None:
    x = np.array([1.0, -3.0], dtype=np.float32)
    a, b = x * 0.5, x * 0.5 + x + 1
    for _ in range(repeats):
        a = a * 0.5
        b = a + b + x + 1
    model = graph(MARKED)
    report = unroll_iterations(model, repeats)
    assert report.changed
    assert report.note == f"3 nodes stand {repeats} times"
    assert MARK_DOMAIN not in model.graph.opset_imports
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names)) == 4 + 3 * repeats
    np.testing.assert_allclose(run(model, x=x)[0], b - a, rtol=1e-6)
    assert not unroll_iterations(model, repeats).changed


def test_unroll_iterations_refuses_a_single_mark() -> None:
    text = MARKED.replace(f"m2, n2 = {MARK_DOMAIN}.IterationEnd (a2, b2)", "m2 = Relu (a2)\n  n2 = Relu (b2)")
    with pytest.raises(ValueError, match="two marks"):
        unroll_iterations(graph(text), 3)


@pytest.mark.parametrize("role", ["reference", "restoration"])
def test_folding_removes_a_third_at_sd3_mediums_proportions(role: str) -> None:
    """By shapes alone: the tables' values are not computed, so no weight exists at any time."""
    with torch.device("meta"):
        network = MMDiT(SD3_MEDIUM, (64, 64), 154)
    state = dict(network.state_dict())
    weights = _ShapesOnly(state, Path("weights"))
    points = [float(t) for t in range(9)]
    first = fold_conditioning(network, weights, points)
    second = fold_text(network, weights)
    last = (prune_reference_tail if role == "reference" else prune_text_query)(network, weights)
    assert first.parameters_before == 2_028_328_000  # the paper's table 4: 2028.33 M
    assert last.parameters_after < 0.7 * first.parameters_before
    assert second.parameters_after <= second.parameters_before


class _ShapesOnly(WeightSource):
    """Computes on the meta device."""

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(self.shape(name), dtype=dtype, device="meta")
