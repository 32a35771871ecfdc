"""For the tests of the quality metrics: pictures, piq without its torchvision half, stand-ins for the deep packages."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator

import cv2
import numpy as np


def picture(height: int, width: int, seed: int, dtype: type = np.uint8) -> np.ndarray:
    """Structure at every scale and fine noise: (H, W, 3), the full range of the type."""
    generator = np.random.default_rng(seed)
    unit = np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        coarse = generator.uniform(0, 1, (cells, cells, 3))
        unit += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) / cells**0.5
    unit += generator.normal(0, 0.02, unit.shape)
    unit = np.clip((unit - unit.min()) / (unit.max() - unit.min()), 0, 1)
    if np.issubdtype(dtype, np.floating):
        return unit.astype(dtype)
    return np.rint(unit * np.iinfo(dtype).max).astype(dtype)


def degraded(pixels: np.ndarray, seed: int, noise: float = 0.03) -> np.ndarray:
    """Blurred and noisy, of the same type."""
    top = 1.0 if np.issubdtype(pixels.dtype, np.floating) else float(np.iinfo(pixels.dtype).max)
    blurred = cv2.GaussianBlur(pixels.astype(np.float64), (0, 0), 1.2)
    noisy = np.clip(blurred + np.random.default_rng(seed).normal(0, noise * top, pixels.shape), 0, top)
    return noisy.astype(pixels.dtype)


@contextlib.contextmanager
def piq_modules(*names: str) -> Iterator[list[types.ModuleType]]:
    """Modules of piq, imported without the package's own start, which wants the torchvision that is not here."""
    spec = importlib.util.find_spec("piq")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("these tests need piq: pip install --no-deps piq", name="piq")
    package = types.ModuleType("piq")
    package.__path__ = list(spec.submodule_search_locations)
    with modules(piq=package):
        yield [importlib.import_module(f"piq.{name}") for name in names]


@contextlib.contextmanager
def modules(**planted: types.ModuleType) -> Iterator[None]:
    """Put modules where ``import`` finds them; afterwards they and their submodules are what they were."""
    roots = {name.split(".")[0] for name in planted}
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] in roots}
    for name in kept:
        del sys.modules[name]
    for name, module in planted.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(kept)


def fake_packages() -> dict[str, types.ModuleType]:
    """lpips, DISTS_pytorch, piq, pyiqa and timm with the real ones' interfaces, and arithmetic for networks.

    Each asks torch's hub for the weights by URL, as the real ones do through torchvision or by themselves.
    """
    import torch

    def trunk(url: str) -> torch.Tensor:
        return torch.hub.load_state_dict_from_url(url, progress=False)["scale"]

    class LPIPS(torch.nn.Module):
        def __init__(self, net: str = "alex", version: str = "0.1", verbose: bool = True) -> None:
            super().__init__()
            assert (net, version, verbose) == ("alex", "0.1", False)
            self.scale = trunk("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")

        def forward(self, in0: torch.Tensor, in1: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            assert normalize, "pixels in [0, 1] are to be scaled to [-1, 1]"
            return (self.scale * (in0 - in1).abs()).mean(dim=(1, 2, 3), keepdim=True)

    class DISTS(torch.nn.Module):
        def __init__(self, load_weights: bool = True) -> None:
            super().__init__()
            assert not load_weights, "they would be looked for below sys.prefix"
            self.scale = trunk("https://download.pytorch.org/models/vgg16-397923af.pth")
            self.alpha = torch.nn.Parameter(torch.zeros(1, 2, 1, 1))
            self.beta = torch.nn.Parameter(torch.zeros(1, 2, 1, 1))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.scale * (self.alpha.sum() + self.beta.sum()) * (x.mean() - y.mean()).abs()

    class InceptionV3(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = trunk("https://host.invalid/fid_weights/pt_inception-2015-12-05-6726825d.pth")

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.scale * torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)[..., None, None]]

    lpips, dists, piq, features = (
        types.ModuleType(name) for name in ("lpips", "DISTS_pytorch", "piq", "piq.feature_extractors")
    )
    lpips.LPIPS = LPIPS
    dists.DISTS = DISTS
    piq.__path__ = []
    features.InceptionV3 = InceptionV3
    return {"lpips": lpips, "DISTS_pytorch": dists, "piq": piq, "piq.feature_extractors": features, **fake_pyiqa()}


def fake_pyiqa() -> dict[str, types.ModuleType]:
    """pyiqa 0.1.16's interface: ``create_metric``, a cache folder settled at import, MANIQA's call of timm."""
    import torch

    pyiqa, utils, download, timm = (
        types.ModuleType(name) for name in ("pyiqa", "pyiqa.utils", "pyiqa.utils.download_util", "timm")
    )
    pyiqa.__path__ = utils.__path__ = []
    download.DEFAULT_CACHE_DIR = "/nowhere"
    files = {"musiq": "musiq_koniq_ckpt-e95806b9.pth", "niqe": "niqe_modelparameters.mat", "maniqa": "ckpt_koniq10k.pt"}

    def create_model(name: str, pretrained: bool = False) -> None:
        if pretrained:
            torch.hub.download_url_to_file("https://host.invalid/vit.pth", "vit.pth")

    def create_metric(name: str, device: str | None = None) -> object:
        from pathlib import Path

        if name == "clipiqa":
            file = Path(torch.hub.get_dir()) / "clip" / "RN50.pt"
        else:
            file = Path(download.DEFAULT_CACHE_DIR) / files[name]
        if not file.exists():
            torch.hub.download_url_to_file(f"https://host.invalid/{file.name}", str(file))
        if name == "maniqa":
            timm.create_model("vit_base_patch8_224", pretrained=True)  # type: ignore[attr-defined]
        scale = torch.load(file, weights_only=False)["scale"]

        def score(x: torch.Tensor) -> torch.Tensor:
            assert x.dim() == 4, x.shape
            assert 0 <= x.min() <= x.max() <= 1
            return (scale * x.mean()).reshape(1, 1)

        return score

    timm.create_model = create_model
    pyiqa.create_metric = create_metric
    utils.download_util = download
    return {"pyiqa": pyiqa, "pyiqa.utils": utils, "pyiqa.utils.download_util": download, "timm": timm}
