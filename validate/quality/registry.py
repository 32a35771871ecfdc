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
        loader: which adapter reads it (:mod:`networks`).
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


_TORCHVISION = "https://download.pytorch.org/models"
_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights"
_OPENAI_CLIP = "https://github.com/openai/CLIP"
_DINO = "https://github.com/facebookresearch/dino"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"


def _pyiqa(file: str, origin: str = _PYIQA) -> Weights:
    return Weights((file,), origin, "pyiqa", ("torch", "pyiqa"), "iqa-nc")


def _exported(stem: str) -> Weights:
    return Weights((f"{stem}.onnx", f"{stem}.pt"), "exported as docs/quality.md says", "encoder")


_ALEXNET = Weights(("alexnet-owt-7be5be79.pth",), _TORCHVISION, "lpips", ("torch", "lpips"), "iqa")
_VGG = Weights(("vgg16-397923af.pth",), _TORCHVISION, "dists", ("torch", "DISTS_pytorch"), "iqa")
_CLIP_VIT = Weights(("ViT-B-32.pt",), _OPENAI_CLIP, "clip_vit", ("torch",), "reference")
_DINO_VIT = Weights(("dino_deitsmall16_pretrain.pth",), _DINO, "dino_vit", ("torch",), "reference")
_INCEPTION = Weights(("pt_inception-2015-12-05-6726825d.pth",), _FID, "piq_inception", ("torch", "piq"), "iqa")


def _deep(
    name: str, label: str, better: Better, kind: Kind, least_side_px: int, *sources: Weights, base: str | None = None
) -> MetricSpec:
    """A metric of a network: it has no unit, and is restricted where its package's licence is."""
    licence = NON_COMMERCIAL if any(source.extra == "iqa-nc" for source in sources) else None
    return MetricSpec(name, label, better, "1", kind, sources, base, least_side_px, licence)


_NO_REFERENCE: tuple[MetricSpec, ...] = (
    _deep("niqe", "NIQE (tiles)", "lower", "solo", 192, _pyiqa("niqe_modelparameters.mat")),
    _deep("musiq", "MUSIQ (tiles)", "higher", "solo", 32, _pyiqa("musiq_koniq_ckpt-e95806b9.pth")),
    _deep("clipiqa", "CLIP-IQA (tiles)", "higher", "solo", 32, _pyiqa("RN50.pt", _OPENAI_CLIP)),
    _deep("maniqa", "MANIQA (tiles)", "higher", "solo", 224, _pyiqa("ckpt_koniq10k.pt")),
)


def _relative(solo: MetricSpec) -> MetricSpec:
    label = solo.label.replace(" (tiles)", " relative to the key photo (tiles)")
    return _deep(f"{solo.name}_re", label, "lower", "relative", solo.least_side_px, *solo.sources, base=solo.name)


SPECS: tuple[MetricSpec, ...] = (
    MetricSpec("psnr_y", "PSNR", "higher", "dB", "fidelity"),
    MetricSpec("ssim_y", "SSIM", "higher", "1", "fidelity", least_side_px=WINDOW_PX),
    MetricSpec("ms_ssim_y", "MS-SSIM", "higher", "1", "fidelity", least_side_px=LEAST_SIDE_PX),
    _deep("lpips", "LPIPS (AlexNet 0.1, tiles)", "lower", "pair", 64, _ALEXNET),
    _deep("dists", "DISTS (tiles)", "lower", "pair", 32, _VGG),
    *map(_relative, _NO_REFERENCE),
    _deep("clip_q", "CLIP-Q (tiles)", "higher", "cosine", 32, _exported("clip_image_encoder"), _CLIP_VIT),
    _deep("dino_q", "DINO-Q (tiles)", "higher", "cosine", 16, _exported("dino_image_encoder"), _DINO_VIT),
    _deep(
        "fid_512", "FID of 512-pixel patches", "lower", "frechet", FID_PATCH_PX, _exported("fid_inception"), _INCEPTION
    ),
    *_NO_REFERENCE,
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
