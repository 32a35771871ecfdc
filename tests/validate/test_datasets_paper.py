"""The paper's rows: all of them, exactly, and consistent with what the paper says about them."""

from __future__ import annotations

import pytest

from livemoments.errors import UsageError
from livemoments.validate.datasets.descriptors import SETS, descriptor, paper_rows

HIGHER = {"psnr_y", "ssim_y", "clip_q", "dino_q"}
METHODS = (
    "TTSR", "C2-Matching", "DATSR", "MRefSR", "CoSeR", "ReFIR (SeeSR)", "ReFIR (SUPIR)", "RefVSR", "ERVSR",
    "StableSR", "DiffBIR", "SeeSR", "SUPIR", "OSEDiff", "TSD-SR", "LiveMoments",
)  # fmt: skip
NO_REFERENCE = ("niqe_re", "musiq_re", "clipiqa_re", "maniqa_re", "clip_q", "dino_q")


def test_the_known_sets() -> None:
    found = {name: (descriptor(name).title, descriptor(name).count, descriptor(name).has_truth) for name in SETS}
    assert found == {
        "synlive260": ("SynLive260", 260, True),
        "vivolive144": ("vivoLive144", 144, False),
        "iphonelive90": ("iPhoneLive90", 90, False),
    }
    assert descriptor("vivolive144").paper.columns == descriptor("iphonelive90").paper.columns == NO_REFERENCE
    full = ("psnr_y", "ssim_y", "lpips", "dists", "fid_512")
    assert descriptor("synlive260").paper.columns == full + NO_REFERENCE
    assert "Not public yet" in descriptor("synlive260").source
    with pytest.raises(UsageError, match="not a known data set"):
        paper_rows("div2k")


@pytest.mark.parametrize("name", SETS)
def test_every_method_has_every_column(name: str) -> None:
    rows = paper_rows(name)
    assert tuple(row.method for row in rows) == METHODS
    number = 2 if name == "synlive260" else 1
    assert all(row.table == f"LiveMoments, ICLR 2026, table {number}" for row in rows)
    assert all(tuple(row.values) == descriptor(name).paper.columns for row in rows)


@pytest.mark.parametrize(
    ("name", "method", "metric", "value"),
    [
        ("vivolive144", "TTSR", "niqe_re", 0.2050),
        ("vivolive144", "CoSeR", "dino_q", 0.9197),
        ("vivolive144", "DiffBIR", "clipiqa_re", 0.9547),
        ("vivolive144", "LiveMoments", "maniqa_re", 0.0556),
        ("iphonelive90", "TTSR", "niqe_re", 0.3069),
        ("iphonelive90", "ERVSR", "maniqa_re", 0.2030),
        ("iphonelive90", "SUPIR", "maniqa_re", 0.0738),
        ("iphonelive90", "LiveMoments", "dino_q", 0.9466),
        ("synlive260", "C2-Matching", "psnr_y", 31.85),
        ("synlive260", "DiffBIR", "fid_512", 36.39),
        ("synlive260", "TSD-SR", "clipiqa_re", 1.3084),
        ("synlive260", "LiveMoments", "psnr_y", 31.65),
        ("synlive260", "LiveMoments", "fid_512", 4.00),
    ],
)
def test_values_are_those_printed(name: str, method: str, metric: str, value: float) -> None:
    (row,) = [row for row in paper_rows(name) if row.method == method]
    assert row.values[metric] == value


@pytest.mark.parametrize("name", SETS)
def test_livemoments_is_best_where_the_paper_prints_it_best(name: str) -> None:
    for metric in descriptor(name).paper.columns:
        sign = 1 if metric in HIGHER else -1
        best = max(paper_rows(name), key=lambda row: sign * row.values[metric])
        assert best.method == ("C2-Matching" if metric == "psnr_y" else "LiveMoments"), metric


@pytest.mark.parametrize("name", SETS)
def test_values_are_of_their_metrics_kind(name: str) -> None:
    for row in paper_rows(name):
        for metric, value in row.values.items():
            if metric == "psnr_y":
                assert 20 < value < 40
            elif metric == "fid_512":
                assert 1 < value < 100
            else:
                assert 0 < value < (1.5 if metric == "clipiqa_re" else 1)
