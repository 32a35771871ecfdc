"""Reports for the tests: realistic ones, with every part filled, and pictures on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np

from livemoments.runtime.image_files.photo import Photo
from livemoments.validate.harness.previews import make_previews
from livemoments.validate.report_data import (
    Bisection,
    BundleInfo,
    Check,
    Cost,
    DatasetInfo,
    ImageResult,
    Memory,
    Metric,
    PaperRow,
    Rung,
    StageCost,
    Suspect,
    ValidationReport,
)

STAGES = ("flow", "vae_encoder", "motion", "reference", "restoration", "vae_decoder")
MEBI = 2**20
_SIZES = (118, 62, 9, 1985, 2092, 95)


def sample_report(
    count: int = 12,
    *,
    faulty: bool = False,
    failed: Sequence[int] = (),
    truth: bool = True,
    folder: Path | None = None,
    photographs: Sequence[np.ndarray] = (),
    pictured: int | None = None,
    seed: int = 0,
    blocks: int = 8,
    slow: float = 1.0,
) -> ValidationReport:
    """A report of ``count`` images.

    Args:
        count: of images.
        faulty: a wrong operator in block 3 of the restoration network: rungs fail, a bisection names it.
        failed: images that could not be read.
        truth: whether there is ground truth.
        folder: where the images' pictures are written; ``None``: no pictures.
        photographs: (H, W, 3) uint8, of which the pictures are made in turn.
        pictured: how many images get pictures; all by default.
        seed: of the numbers.
        blocks: of the transformers, in the ladder.
        slow: factor on all latencies.
    """
    rng = np.random.default_rng(seed)
    ladder = _ladder(rng, faulty, blocks)
    images = _images(rng, count, failed, truth)
    if folder is not None:
        images = [
            _with_pictures(image, folder, photographs[number % len(photographs)], rng)
            if image.status == "ok" and (pictured is None or number < pictured)
            else image
            for number, image in enumerate(images)
        ]
    return ValidationReport(
        livemoments="0.2.0",
        created="2026-11-24T18:40:12+00:00",
        bundle=BundleInfo(
            name="livemoments-int8-1024",
            digest="3f9ac1" + "0b" * 29,
            precision="int8",
            recipe="int8-transformers",
            target="onnx",
            policy="phase-split",
            provider="cpu",
            bytes=sum(_SIZES) * MEBI + 20480,
            files={name: size * MEBI for name, size in zip(STAGES, _SIZES, strict=True)},
        ),
        reference="checkpoint sd3-medium, float32",
        dataset=DatasetInfo(
            name="SynLive260" if count == 260 else "synlive-style set",
            descriptor="synlive260" if count == 260 else None,
            images=count,
            has_truth=truth,
            sha256="9d" * 32,
        ),
        settings={"steps": 6, "seed": 0, "tile": "1024x1024", "batch": 1, "reference": None, "pad_small": False},
        machine={
            "processor": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "cores": 2,
            "memory_bytes": 24 * 1024 * MEBI,
            "system": "Linux x86_64",
            "python": "3.11.2",
            "onnxruntime": "1.32.0",
            "numpy": "2.4.6",
        },
        checks=_checks(ladder, images),
        ladder=tuple(ladder),
        bisection=_bisection() if faulty else Bisection(suspects=(), boundaries=2 * blocks + 2),
        metrics=_metrics(images, truth),
        images=tuple(images),
        cost=_cost(rng, slow),
        paper=_paper(),
    )


def _ladder(rng: np.random.Generator, faulty: bool, blocks: int) -> list[Rung]:
    rungs = []

    def add(level: str, name: str, size: str, error: float, limit: float | None, where: str = "") -> None:
        status = "info" if limit is None else "pass" if error <= limit else "fail"
        rungs.append(
            Rung(
                level=level,  # type: ignore[arg-type]
                name=name,
                size=size,
                rel_l2=error,
                sqnr_db=-20 * float(np.log10(error)) if error else None,
                cosine=1 - error**2 / 2,
                max_abs=error * 7.3,
                limit=limit,
                status=status,  # type: ignore[arg-type]
                where=where,
            )
        )

    for stage in ("reference", "restoration"):
        for block in range(blocks):
            error = 0.012 + 0.004 * block + rng.uniform(0, 0.003)
            broken = faulty and stage == "restoration" and block >= 3
            point = int(rng.integers(0, 6))
            add("block", f"{stage}.block{block}", "1024x1024", error * (9 if broken else 1), 0.1, f"point {point}")
    for stage, error, limit in (
        ("flow", 0.0, 1e-4),
        ("vae_encoder", 8.1e-4, 1e-2),
        ("motion", 1.6e-3, 1e-2),
        ("reference", 4.4e-2, 0.1),
        ("restoration", 0.31 if faulty else 5.2e-2, 0.1),
        ("vae_decoder", 1.1e-3, 1e-2),
    ):
        for size in ("512x512", "1024x1024"):
            add("network", stage, size, error * rng.uniform(0.9, 1.0), limit, "" if stage == "flow" else "point 5")
    for step in range(6):
        add("step", f"step{step}.velocity", "1024x1024", (0.2 if faulty else 0.03) * (1 + 0.3 * step), None)
    for tile in range(2):
        add("tile", f"tile{tile}.decoded", "1024x1024", 0.08 if faulty else 0.011, None)
    psnr = 29.4 if faulty else 41.3
    rungs.append(
        Rung(
            level="photo",
            name="photo",
            size="1440x1080",
            rel_l2=0.071 if faulty else 0.0178,
            sqnr_db=23.0 if faulty else 35.0,
            cosine=0.9984,
            max_abs=61.0 if faulty else 14.0,
            psnr_db=psnr,
            limit=38.0,
            limit_of="psnr_db",
            status="fail" if faulty else "pass",
            where="8-bit result",
        )
    )
    return rungs


def _images(rng: np.random.Generator, count: int, failed: Sequence[int], truth: bool) -> list[ImageResult]:
    images = []
    for number in range(count):
        name = f"{number:04d}_{('street', 'harbour', 'portrait', 'dog', 'window')[number % 5]}.png"
        if number in failed:
            error = f"lr/{name}: is damaged after row 312"
            images.append(ImageResult(name=name, status="failed", error=error, worker=f"worker-{number % 2}"))
            continue
        psnr, gain = float(rng.normal(31.2, 2.1)), float(rng.normal(3.4, 0.7))
        metrics: dict[str, float | None] = {"musiq_re": abs(float(rng.normal(0.08, 0.03)))}
        of_input: dict[str, float | None] = {"musiq_re": abs(float(rng.normal(0.41, 0.06)))}
        if truth:
            metrics |= {"psnr_y": psnr, "ssim_y": float(np.clip(rng.normal(0.9, 0.02), 0, 1))}
            of_input |= {"psnr_y": psnr - gain, "ssim_y": float(np.clip(rng.normal(0.83, 0.03), 0, 1))}
        images.append(
            ImageResult(
                name=name,
                status="ok",
                width=1440,
                height=1080,
                tiles=4,
                metrics=metrics,
                input_metrics=of_input,
                parity_psnr_db=float(rng.normal(41, 1.2)),
                seam=float(rng.normal(1.01, 0.02)),
                pcr={"mean_shift_px": float(rng.gamma(3, 4)), "clamp_rate": float(rng.choice([0, 0, 0.25]))},
                seconds=float(rng.normal(61, 2)),
                tile_seconds=tuple(map(float, rng.normal(15, 0.4, 4))),
                worker=f"worker-{number % 2}",
            )
        )
    return images


def _metrics(images: Sequence[ImageResult], truth: bool) -> tuple[Metric, ...]:
    rows = []
    for name, title, better, unit in (
        ("psnr_y", "PSNR (y, BT.601 studio)", "higher", "dB"),
        ("ssim_y", "SSIM (y, BT.601 studio)", "higher", "1"),
        ("lpips", "LPIPS (VGG)", "lower", "1"),
        ("fid_512", "FID of 512-pixel patches", "lower", "1"),
        ("musiq_re", "MUSIQ relative to the key photo (tiles)", "lower", "1"),
        ("dino_q", "DINO-Q", "higher", "1"),
    ):
        values = [value for image in images if (value := image.metrics.get(name)) is not None]
        inputs = [value for image in images if (value := image.input_metrics.get(name)) is not None]
        status = "ok"
        if not values:
            needs = not truth and name in ("psnr_y", "ssim_y", "lpips")
            status = "needs ground truth" if needs else f"weights not found: put {name}.safetensors into --weights DIR"
        rows.append(
            Metric(
                name=name,
                title=title,
                better=better,  # type: ignore[arg-type]
                unit=unit,
                count=len(values),
                mean=float(np.mean(values)) if values else None,
                std=float(np.std(values)) if values else None,
                input_mean=float(np.mean(inputs)) if inputs else None,
                status=status,
            )
        )
    return tuple(rows)


def _checks(ladder: Sequence[Rung], images: Sequence[ImageResult]) -> tuple[Check, ...]:
    checks = []
    for rung in ladder:
        if rung.level not in ("network", "photo"):
            continue
        of_psnr = rung.limit_of == "psnr_db"
        checks.append(
            Check(
                name=f"parity.{rung.level}.{rung.name}.{rung.size}",
                value=rung.psnr_db if of_psnr else rung.rel_l2,
                limit=rung.limit,
                unit="dB" if of_psnr else "rel_l2",
                better="higher" if of_psnr else "lower",
                status=rung.status,
                detail=rung.where,
            )
        )
    lost = sum(image.status == "failed" for image in images)
    checks += [
        Check(name="self.rows_of_a_batch", value=0.0, limit=1e-6, unit="rel_l2", better="lower", status="pass"),
        Check(name="self.tile_order", value=0.0, limit=0.0, unit="count", better="lower", status="pass"),
        Check(name="self.second_run", value=0.0, limit=0.0, unit="count", better="lower", status="pass"),
        Check(
            name="images.failed",
            value=float(lost),
            limit=0.0,
            unit="count",
            better="lower",
            status="fail" if lost else "pass",
            detail=f"{lost} of {len(images)} images could not be restored" if lost else "",
        ),
        Check(name="cost.tile.p50_s", value=15.2, limit=None, unit="s", better="lower", status="info"),
    ]
    return tuple(checks)


def _bisection() -> Bisection:
    suspect = Suspect(
        stage="restoration",
        point=5,
        block="transformer_blocks.3",
        module="transformer_blocks.3.ff.net.0",
        node="/transformer_blocks.3/ff/net.0/Gelu",
        op="Gelu",
        output="gelu_3",
        rel_l2=0.267,
        limit=0.1,
        before=0.0213,
    )
    return Bisection(suspects=(suspect,), boundaries=18)


def _cost(rng: np.random.Generator, slow: float) -> Cost:
    stages = []
    for name, size, seconds in zip(STAGES, _SIZES, (0.41, 0.92, 0.031, 5.1, 6.4, 1.7), strict=True):
        p50 = seconds * slow
        spread = float(rng.uniform(1.02, 1.06))
        stages.append(
            StageCost(
                stage=name,
                size="1024x1024",
                runs=10,
                p50_s=p50,
                p90_s=p50 * spread,
                p99_s=p50 * spread * 1.05,
                load_s=size / 900,
                bytes=size * MEBI,
            )
        )
    return Cost(
        stages=tuple(stages),
        tile_s={"p50": 15.2 * slow, "p90": 15.9 * slow, "p99": 16.4 * slow},
        tiles_per_s=1 / 15.2 / slow,
        photo_s=61.3 * slow,
        photo="1440x1080",
        load_s=4.9,
        memory=(
            Memory(kind="peak_rss", bytes=3890 * MEBI, method="ru_maxrss of a fresh process"),
            Memory(kind="vram", bytes=None, method="no NVIDIA driver on this machine"),
        ),
        clocks={"cpu_start_mhz": 2700.0, "cpu_end_mhz": 2690.0},
        load_average=(0.31, 1.94),
    )


def _paper() -> tuple[PaperRow, ...]:
    table = "LiveMoments, ICLR 2026, table 2"
    names = ("psnr_y", "ssim_y", "lpips", "fid_512", "musiq_re", "dino_q")
    rows = {
        "TTSR": (31.74, 0.8778, 0.2416, 18.53, 0.3885, 0.8373),
        "CoSeR": (27.60, 0.8136, 0.2436, 13.92, 0.2548, 0.8924),
        "SUPIR": (25.96, 0.7309, 0.3660, 31.53, 0.3741, 0.7869),
        "LiveMoments": (31.65, 0.8990, 0.0828, 4.00, 0.0720, 0.9740),
    }
    return tuple(
        PaperRow(method=name, table=table, values=dict(zip(names, values, strict=True)))
        for name, values in rows.items()
    )


def _with_pictures(image: ImageResult, folder: Path, photograph: np.ndarray, rng: np.random.Generator) -> ImageResult:
    height, width = photograph.shape[:2]
    small = cv2.resize(photograph, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    noisy = np.clip(small + rng.normal(0, 4, small.shape), 0, 255).astype(np.uint8)
    frame = cv2.imdecode(cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1)[..., ::-1]
    upscaled = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    rough = rng.normal(0, 3, (height // 8 + 1, width // 8 + 1, 3)).astype(np.float32)
    smooth = cv2.resize(rough, (width, height), interpolation=cv2.INTER_LINEAR)
    output = np.clip(cv2.GaussianBlur(photograph, (0, 0), 0.7) + smooth, 0, 255).astype(np.uint8)
    key_photo = np.roll(photograph, (height // 40, width // 30), (0, 1))
    place = Path("pictures", Path(image.name).stem)
    (folder / place).mkdir(parents=True, exist_ok=True)
    files = {}
    for role, data in make_previews(Photo(output), upscaled, Photo(key_photo), Photo(photograph), None).items():
        files[role] = str(place / f"{role}.jpg")
        (folder / files[role]).write_bytes(data)
    return msgspec.structs.replace(image, files=files)
