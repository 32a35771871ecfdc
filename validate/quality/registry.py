"""Every quality metric as data: what it needs, where its weights come from, under which licence its package is.

The deep metrics come from packages that are extras, and from weights that nobody downloads for the user:
``--iqa-weights DIR`` names a folder, in which the files are called as their own packages call them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from livemoments.errors import UsageError
from livemoments.validate.quality.luma import Luma
from livemoments.validate.quality.ms_ssim import LEAST_SIDE_PX
from livemoments.validate.quality.ssim import WINDOW_PX
from livemoments.validate.report_data import Better

DEFAULT = ("psnr_y", "ssim_y", "ms_ssim_y")
FID_PATCH_PX = 512
NON_COMMERCIAL = "pyiqa: PolyForm-Noncommercial-1.0.0 and S-Lab, not for commercial use"

Kind = Literal["fidelity", "pair", "solo", "relative", "cosine", "frechet"]
"""What a metric compares.

- ``fidelity``: the result's y with the ground truth's, our own code;
- ``pair``: a network's distance of the result from the ground truth;
- ``solo``: a score of the result alone;
- ``relative``: ``|solo(result) - solo(key photo)| / |solo(key photo)|`` (the paper's equation 7);
- ``cosine``: of an image encoder's features of the result and of the key photo;
- ``frechet``: between the features of all results' patches and of all ground truths'.
"""


@dataclass(frozen=True, slots=True)
class Weights:
    """One place from which a metric's network can be taken.

    Attributes:
        files: of the weights; one of them is enough.
        origin: where the user gets the files.
        loader: which adapter reads it (:mod:`deep`).
        modules: what must be installed for it.
        extra: of this package that brings the modules; ``None`` if nothing beyond this package is needed.
    """

    files: tuple[str, ...]
    origin: str
    loader: str
    modules: tuple[str, ...] = ()
    extra: Literal["iqa", "iqa-nc", "reference"] | None = None


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: of its column and its row.
        label: for people; ``title`` adds the convention of y.
        better: whether higher or lower values are good.
        unit: ``dB`` or ``1``.
        kind: what it compares.
        sources: of its network; our own metrics have none.
        base: the ``solo`` metric that a ``relative`` one is made of.
        least_side_px: pictures with a shorter side have no number.
        licence: where the package's licence restricts the use.
    """

    name: str
    label: str
    better: Better
    unit: str
    kind: Kind
    sources: tuple[Weights, ...] = ()
    base: str | None = None
    least_side_px: int = 1
    licence: str | None = None

    @property
    def needs_truth(self) -> bool:
        """Whether it compares with the ground truth."""
        return self.kind in ("fidelity", "pair", "frechet")

    @property
    def needs_photo(self) -> bool:
        """Whether it compares with the key photo."""
        return self.kind in ("relative", "cosine")

    def title(self, luma: Luma = Luma.BT601_STUDIO) -> str:
        """For people, with the convention of y where there is one."""
        return f"{self.label} ({luma.label})" if self.kind == "fidelity" else self.label

    @property
    def why_no_image(self) -> str:
        """Why a metric whose network is there could be measured on none of the images."""
        needs = ["ground truth"] if self.needs_truth else ["the key photo"] if self.needs_photo else []
        if self.least_side_px > 1:
            needs.append(f"pictures of at least {self.least_side_px}x{self.least_side_px} pixels")
        return "needs " + " and ".join(needs or ["a picture on which the score is finite"])


def _pyiqa(
    file: str, source: str = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights", loader: str = ""
) -> Weights:
    return Weights((file,), source, loader or "pyiqa", ("torch", "pyiqa"), "iqa-nc")


_NIQE = _pyiqa("niqe_modelparameters.mat")
_MUSIQ = _pyiqa("musiq_koniq_ckpt-e95806b9.pth")
_CLIPIQA = _pyiqa("RN50.pt", "https://github.com/openai/CLIP")
_MANIQA = _pyiqa("ckpt_koniq10k.pt")
_NO_REFERENCE: tuple[tuple[str, str, Better, Weights, int], ...] = (
    ("niqe", "NIQE", "lower", _NIQE, 192),
    ("musiq", "MUSIQ", "higher", _MUSIQ, 32),
    ("clipiqa", "CLIP-IQA", "higher", _CLIPIQA, 32),
    ("maniqa", "MANIQA", "higher", _MANIQA, 224),
)
_TORCHVISION_MODELS = "https://download.pytorch.org/models"
_EXPORT = "exported as docs/quality.md says"


def _encoder(stem: str) -> Weights:
    return Weights((f"{stem}.onnx", f"{stem}.pt"), _EXPORT, "encoder")


SPECS: tuple[MetricSpec, ...] = (
    MetricSpec("psnr_y", "PSNR", "higher", "dB", "fidelity"),
    MetricSpec("ssim_y", "SSIM", "higher", "1", "fidelity", least_side_px=WINDOW_PX),
    MetricSpec("ms_ssim_y", "MS-SSIM", "higher", "1", "fidelity", least_side_px=LEAST_SIDE_PX),
    MetricSpec(
        "lpips",
        "LPIPS (AlexNet 0.1, tiles)",
        "lower",
        "1",
        "pair",
        sources=(Weights(("alexnet-owt-7be5be79.pth",), _TORCHVISION_MODELS, "lpips", ("torch", "lpips"), "iqa"),),
        least_side_px=64,
    ),
    MetricSpec(
        "dists",
        "DISTS (tiles)",
        "lower",
        "1",
        "pair",
        sources=(Weights(("vgg16-397923af.pth",), _TORCHVISION_MODELS, "dists", ("torch", "DISTS_pytorch"), "iqa"),),
        least_side_px=32,
    ),
    *(
        MetricSpec(
            f"{name}_re",
            f"{label} relative to the key photo (tiles)",
            "lower",
            "1",
            "relative",
            base=name,
            sources=(source,),
            least_side_px=side,
            licence=NON_COMMERCIAL,
        )
        for name, label, _, source, side in _NO_REFERENCE
    ),
    MetricSpec(
        "clip_q",
        "CLIP-Q (tiles)",
        "higher",
        "1",
        "cosine",
        sources=(
            _encoder("clip_image_encoder"),
            Weights(("ViT-B-32.pt",), "https://github.com/openai/CLIP", "clip_vit", ("torch",), "reference"),
        ),
        least_side_px=32,
    ),
    MetricSpec(
        "dino_q",
        "DINO-Q (tiles)",
        "higher",
        "1",
        "cosine",
        sources=(
            _encoder("dino_image_encoder"),
            Weights(
                ("dino_deitsmall16_pretrain.pth",),
                "https://github.com/facebookresearch/dino",
                "dino_vit",
                ("torch",),
                "reference",
            ),
        ),
        least_side_px=16,
    ),
    MetricSpec(
        "fid_512",
        "FID of 512-pixel patches",
        "lower",
        "1",
        "frechet",
        sources=(
            _encoder("fid_inception"),
            Weights(
                ("pt_inception-2015-12-05-6726825d.pth",),
                "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
                "piq_inception",
                ("torch", "piq"),
                "iqa",
            ),
        ),
        least_side_px=FID_PATCH_PX,
    ),
    *(
        MetricSpec(
            name,
            f"{label} (tiles)",
            better,
            "1",
            "solo",
            sources=(source,),
            least_side_px=side,
            licence=NON_COMMERCIAL,
        )
        for name, label, better, source, side in _NO_REFERENCE
    ),
)
BY_NAME = {spec.name: spec for spec in SPECS}


def select(names: str | Iterable[str] = DEFAULT) -> tuple[MetricSpec, ...]:
    """The metrics that were asked for, in the registry's order.

    Args:
        names: a list, or ``NAME,NAME``; ``default`` and ``all`` stand for several.

    Raises:
        UsageError: a name is unknown, or there is none.
    """
    asked = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    wanted: set[str] = set()
    for name in filter(None, asked):
        if name == "all":
            wanted.update(BY_NAME)
        elif name == "default":
            wanted.update(DEFAULT)
        elif name in BY_NAME:
            wanted.add(name)
        else:
            raise UsageError(f"'{name}' is no metric", fix=f"choose from {', '.join(BY_NAME)}, default, all")
    if not wanted:
        raise UsageError("no metric was named", fix=f"choose from {', '.join(BY_NAME)}, default, all")
    return tuple(spec for spec in SPECS if spec.name in wanted)
