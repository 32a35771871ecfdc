"""Adapters of the extra ``iqa``: the packages lpips, DISTS-pytorch and piq. All of them need a torchvision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.errors import EngineError
from livemoments.validate.quality.weights import hub_cache, offline


def batch_of(tile: np.ndarray, device: str) -> Any:
    """A (h, w, 3) tile as a torch tensor (1, 3, h, w)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1)))[None].to(device)


def _distance(network: Callable[[Any, Any], Any], device: str) -> Callable[[np.ndarray, np.ndarray], float]:
    import torch

    def distance(value: np.ndarray, reference: np.ndarray) -> float:
        with torch.inference_mode():
            return float(network(batch_of(value, device), batch_of(reference, device)))

    return distance


def load_lpips(file: Path, device: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """LPIPS of version 0.1 on AlexNet (Zhang et al. 2018); the linear layers' weights come with the package.

    Args:
        file: torchvision's ``alexnet-owt-7be5be79.pth``.
        device: torch's.

    Raises:
        EngineError: the package wants something from the network.
    """
    with hub_cache(file) as hub, offline(hub):
        import lpips

        network = lpips.LPIPS(net="alex", version="0.1", verbose=False).to(device).eval()
    return _distance(functools.partial(network, normalize=True), device)


def load_dists(file: Path, device: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """DISTS (Ding et al. 2020) on VGG-16, at the tiles' own resolution; alpha and beta come with the package.

    Args:
        file: torchvision's ``vgg16-397923af.pth``.
        device: torch's.

    Raises:
        EngineError: the package wants something from the network, or its own weights are not beside it.
    """
    with hub_cache(file) as hub, offline(hub):
        import DISTS_pytorch
        import torch

        network = DISTS_pytorch.DISTS(load_weights=False)
        # The package would look below sys.prefix, where not every installation puts the file.
        own = Path(str(DISTS_pytorch.__file__)).parent / "weights.pt"
        if not own.is_file():
            raise EngineError(f"DISTS-pytorch is incomplete: {own} is not there", fix="install it again")
        weights = torch.load(own, map_location="cpu")
        network.alpha.data, network.beta.data = weights["alpha"], weights["beta"]
        network = network.to(device).eval()
    return _distance(network, device)


def load_inception(file: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """The Inception network of the FID (TensorFlow's weights, 2048 features), through piq.

    Args:
        file: pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``.
        device: torch's.

    Raises:
        EngineError: the package wants something from the network.
    """
    with hub_cache(file) as hub, offline(hub):
        from piq.feature_extractors import InceptionV3

        network = InceptionV3().to(device).eval()
    import torch

    def encode(patch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features: np.ndarray = network(batch_of(patch, device))[0].flatten().float().cpu().numpy()
        return features

    return encode


LOADERS: dict[str, Callable[[Path, str], Callable[..., Any]]] = {
    "lpips": load_lpips,
    "dists": load_dists,
    "piq_inception": load_inception,
}
