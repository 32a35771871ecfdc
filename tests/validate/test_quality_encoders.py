"""CLIP-Q's and DINO-Q's encoders, and the FID's distance, against independent implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from iqa_support import picture
from torch import nn

from livemoments.errors import EngineError, UsageError
from livemoments.validate.quality.encoders import open_encoder
from livemoments.validate.quality.frechet import FeatureSums, frechet_distance, gaussian_distance
from livemoments.validate.quality.meter import QualityMeter
from livemoments.validate.quality.vit import CLIP, DINO, Layout, load_dino_vit, vit_encoder

WIDTH, PATCH, BLOCKS, OUT = 128, 8, 3, 40


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (1 + torch.exp(-1.702 * x))


# By the families' publications and code, not by the layouts under test
ACTIVATIONS = {CLIP: QuickGelu(), DINO: nn.GELU()}
EPS = {CLIP: 1e-5, DINO: 1e-6}
PIXELS = {
    CLIP: ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    DINO: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class PlainVit(nn.Module):
    """The same architecture out of torch's own transformer layers."""

    def __init__(self, layout: Layout, *, patch_bias: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=patch_bias)
        self.cls = nn.Parameter(torch.randn(WIDTH))
        self.norm_pre = nn.LayerNorm(WIDTH, eps=EPS[layout]) if layout.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, WIDTH // 64, 4 * WIDTH, 0.0, ACTIVATIONS[layout], EPS[layout], batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH, eps=EPS[layout])
        self.projection = nn.Parameter(torch.randn(WIDTH, OUT)) if layout.projection else None
        for name, parameter in self.named_parameters():
            spread = 0.2 if parameter.ndim > 1 else 0.5
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, spread)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch(image).flatten(2).mT
        x = self.norm_pre(torch.cat([self.cls.expand(1, 1, -1), x], 1))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)[:, 0]
        return x if self.projection is None else x @ self.projection

    def named_as(self, layout: Layout) -> dict[str, torch.Tensor]:
        """The tensors under upstream's names."""
        names = {"patch": layout.patch, "norm": layout.norm, "norm_pre": layout.norm_pre}
        parts = {
            "self_attn.in_proj_weight": f"{layout.qkv}weight",
            "self_attn.in_proj_bias": f"{layout.qkv}bias",
            "self_attn.out_proj": layout.out,
            "linear1": layout.up,
            "linear2": layout.down,
            "norm1": layout.norm1,
            "norm2": layout.norm2,
        }
        found = {layout.cls: self.cls.data}
        if layout.projection and self.projection is not None:
            found[layout.projection] = self.projection.data
        for key, value in self.state_dict().items():
            module, _, kind = key.rpartition(".")
            if key.startswith("blocks."):
                _, number, inner = key.split(".", 2)
                name = parts.get(inner) or f"{parts[inner.rpartition('.')[0]]}.{kind}"
                found[layout.block.format(number) + name] = value
            elif module in names:
                found[f"{names[module]}.{kind}"] = value
        return found


def plain_features(network: nn.Module, layout: Layout, pixels: np.ndarray) -> np.ndarray:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in PIXELS[layout])
    image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return network.eval()((image - mean) / std)[0].numpy()


@pytest.mark.parametrize(("layout", "bias"), [(CLIP, False), (DINO, True)], ids=["clip", "dino"])
def test_the_encoders_equal_torchs_transformer_without_positions(layout: Layout, bias: bool) -> None:
    network = PlainVit(layout, patch_bias=bias)
    pixels = picture(43, 70, seed=1)  # a remainder at the right and bottom, another count of patches each way
    encode = vit_encoder(network.named_as(layout), layout)
    found = encode(pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(found, plain_features(network, layout, pixels), rtol=1e-4, atol=1e-5)
    assert found.std() > 0.1


def test_dino_q_from_upstreams_file(tmp_path: Path) -> None:
    network = PlainVit(DINO, patch_bias=True)
    torch.save(
        network.named_as(DINO) | {"pos_embed": torch.randn(1, 5, WIDTH)}, tmp_path / "dino_deitsmall16_pretrain.pth"
    )
    output, photo = picture(64, 64, seed=2), picture(80, 72, seed=3)
    found = QualityMeter("dino_q", weights=tmp_path).measure(output, None, photo, None).metrics["dino_q"]
    first, second = (plain_features(network, DINO, pixels) for pixels in (output, photo))
    assert found == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-5)
    meter = QualityMeter("dino_q", weights=tmp_path)
    assert meter.measure(output, None, output, None).metrics["dino_q"] == pytest.approx(1.0)


def test_clip_q_from_upstreams_archive(tmp_path: Path) -> None:
    network = PlainVit(CLIP, patch_bias=False)
    root = nn.Module()
    for key, value in network.named_as(CLIP).items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(name, nn.Parameter(value.half()))  # as OpenAI's are
    torch.jit.script(root).save(str(tmp_path / "ViT-B-32.pt"))
    output, photo = picture(64, 64, seed=4), picture(64, 64, seed=5)
    found = QualityMeter("clip_q", weights=tmp_path).measure(output, None, photo, None).metrics["clip_q"]
    first, second = (plain_features(network, CLIP, pixels) for pixels in (output, photo))
    assert found == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-3)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    tensors = PlainVit(DINO, patch_bias=True).named_as(DINO)
    del tensors["blocks.1.mlp.fc1.bias"]
    with pytest.raises(EngineError, match=r"blocks\.1\.mlp\.fc1\.bias is missing"):
        vit_encoder(tensors, DINO)
    with pytest.raises(EngineError, match="is missing"):
        vit_encoder({}, CLIP)
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"x\.pth: not a file of tensors"):
        load_dino_vit(tmp_path / "x.pth")


# Exported encoders


class Small(nn.Module):
    """Normalises, convolves, and gives the mean of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(image * 2 - 1)).mean(dim=(2, 3))


def small_graph(conv: nn.Conv2d) -> onnx.ModelProto:
    """The same as a graph; its features come as (1, 7, 1, 1)."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    tensors = {"two": np.float32(2), "one": np.float32(1)}
    tensors |= {"w": conv.weight.detach().numpy(), "b": conv.bias.detach().numpy()}  # type: ignore[union-attr]
    graph = onnx.helper.make_graph(
        [
            node("Mul", ["image", "two"], ["doubled"]),
            node("Sub", ["doubled", "one"], ["scaled"]),
            node("Conv", ["scaled", "w", "b"], ["map"], strides=[2, 2]),
            node("Relu", ["map"], ["alive"]),
            node("GlobalAveragePool", ["alive"], ["features"]),
        ],
        "small",
        [info("image", onnx.TensorProto.FLOAT, [1, 3, "height", "width"])],
        [info("features", onnx.TensorProto.FLOAT, [1, 7, 1, 1])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_exported_encoders_give_what_torch_gives(tmp_path: Path, suffix: str) -> None:
    network = Small().eval()
    file = tmp_path / f"fid_inception{suffix}"
    if suffix == ".onnx":
        onnx.save(small_graph(network.conv), file)
    else:
        torch.jit.script(network).save(str(file))
    pixels = picture(513, 530, seed=6)
    expected = network(torch.from_numpy(pixels[:512, :512].astype(np.float32) / 255).permute(2, 0, 1)[None])
    found = QualityMeter("fid_512", weights=tmp_path).measure(pixels, None, None, pixels).features
    assert found["fid_512.output"].shape == (1, 7)
    np.testing.assert_allclose(found["fid_512.output"][0], expected[0].detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clip_image_encoder.onnx", "clip_image_encoder.pt"])
def test_broken_encoders_are_a_status(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no network")
    meter = QualityMeter("clip_q", weights=tmp_path)
    meter.open()
    assert meter.problems["clip_q"].startswith("could not be loaded: ")
    assert name in meter.problems["clip_q"]
    with pytest.raises(EngineError, match=name):
        open_encoder(tmp_path / name, "cpu")


# The Frechet distance


def sums_of(features: np.ndarray, blocks: int = 1) -> FeatureSums:
    sums = FeatureSums()
    for block in np.array_split(features, blocks):
        sums.add(block)
    return sums


def test_the_distance_agrees_with_scipy() -> None:
    from scipy.linalg import sqrtm

    generator = np.random.default_rng()
    mixing = generator.normal(size=(2, 24, 24))
    sets = [
        generator.normal(size=(n, 24)) @ m + shift for n, m, shift in zip((200, 90), mixing, (0.0, 0.4), strict=True)
    ]
    means, covariances = [s.mean(0) for s in sets], [np.cov(s, rowvar=False) for s in sets]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(sums_of(sets[0]), sums_of(sets[1], blocks=7)) == pytest.approx(expected, rel=1e-8)
    first = sums_of(sets[0])
    first.add(np.zeros((0, 24)))
    assert frechet_distance(first, sums_of(sets[1])) == pytest.approx(expected, rel=1e-8)


def test_the_distance_of_gaussians_is_the_analytic_one() -> None:
    """Covariances with common axes: |m1 - m2|^2 + sum (s1 - s2)^2 of the deviations along them."""
    axes, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(9, 9)))
    s1, s2 = np.linspace(0, 3, 9), np.linspace(2, 1, 9)  # one of them flat along an axis
    covariances = [axes @ np.diag(s**2) @ axes.T for s in (s1, s2)]
    mean = np.arange(9.0)
    expected = ((mean - 1) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert gaussian_distance(mean, covariances[0], np.ones(9), covariances[1]) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_fewer_patches_than_features() -> None:
    features = np.random.default_rng(8).normal(size=(20, 64))
    same = frechet_distance(sums_of(features), sums_of(features))
    assert 0 <= same < 1e-5
    shifted = frechet_distance(sums_of(features), sums_of(features + 2))
    assert shifted == pytest.approx(64 * 4, abs=1e-5)
    with pytest.raises(UsageError, match="at least two patches"):
        frechet_distance(sums_of(features[:1]), sums_of(features))
    with pytest.raises(UsageError, match="cannot be compared"):
        frechet_distance(sums_of(features), sums_of(features[:, :5]))
    with pytest.raises(UsageError, match="cannot be added"):
        sums_of(features).add(features[:, :5])
