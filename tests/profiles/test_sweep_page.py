"""The page of a sweep: one file that asks for nothing; in a browser, the point under the cursor shows its crop."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from browser_support import needs_browser, open_browser
from sweep_samples import sample_point

from livemoments.profiles.sweeps.objectives import compared_by, find_objectives, front_of
from livemoments.profiles.sweeps.page import PagePictures, render_page
from livemoments.profiles.sweeps.report_data import Exact, Pick, Point, SweepReport
from livemoments.runtime.image_files.encode import Metadata, encode
from livemoments.validate.report.offline_page import data_uri
from livemoments.validate.report_data import DatasetInfo

EVIL = '"></script><script>document.documentElement.dataset.evil=1</script><img src=x onerror=alert(1)>'


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    large = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_CUBIC)
    return encode("crop.jpg", large, Metadata(), 90)[0]


def sample_report(points: list[Point], *, pick: str | None = None) -> SweepReport:
    objectives = find_objectives(points)
    compared = compared_by(objectives)
    front = front_of(points, [one for one in objectives if one.name in compared])
    return SweepReport(
        livemoments="0",
        created="2026-11-27T19:00:00+00:00",
        command="livemoments profile",
        dataset=DatasetInfo(name="photos", descriptor=None, images=2, has_truth=True, sha256="0" * 64),
        photo="coffee",
        exact_bundle="bundle",
        machine={"processor": "a processor", "cores": 2},
        runs=3,
        merged=2,
        objectives=objectives,
        compared=compared,
        exacts=(Exact(id="exact", settings={}, metrics=()),),
        points=tuple(msgspec.structs.replace(point, front=point.id in front) for point in points),
        pick=None if pick is None else Pick(expression="memory<8GB", point=pick, detail="the fastest"),
    )


def sample_points() -> list[Point]:
    """Two bundles with four settings each, on a curve with some points above it; one failed."""
    points = []
    for number, (bundle, steps) in enumerate(itertools.product(("bundle", "bundle-int8"), (6, 4, 3, 2))):
        points.append(
            sample_point(
                f"p{number}",
                bundle=bundle,
                latency_s=0.4 + 0.9 * steps * (0.6 if number > 3 else 1.0),
                memory_bytes=int(4e9) if number < 4 else int(2.2e9),
                bytes=int(3e9) if number < 4 else int(1.1e9),
                drop=0.9 / steps - 0.15 + (0.05 if number > 3 else 0.0),
                fidelity_db=math.inf if number == 0 else 60.0 - 30 / steps,
                values={"steps": str(steps)},
                crop="points/x.jpg",
            )
        )
    return [*points, sample_point("failed", bundle="bundle-fp8", error="an engine failed", values={"steps": "6"})]


@pytest.fixture(scope="module")
def crops() -> dict[str, bytes]:
    return {point.id: jpeg(number) for number, point in enumerate(sample_points()) if point.result.status == "ok"}


@pytest.fixture(scope="module")
def page(crops: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = PagePictures(crops, {"exact": jpeg(100)}, {"input": jpeg(101), "ground truth": jpeg(102)})
    file = tmp_path_factory.mktemp("page") / "sweep.html"
    file.write_text(render_page(sample_report(sample_points(), pick="p5"), pictures), "utf-8")
    return file


def test_the_page_is_one_file_that_asks_for_nothing(page: Path) -> None:
    text = re.sub(r"data:[a-z/]+;base64,[A-Za-z0-9+/=]+", "", page.read_text("utf-8"))
    assert set(re.findall(r"(?i)(?:https?|wss?|ftp)://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name
    assert not re.findall(
        r"(?i)@import|url\(|@font-face|import\(|fetch\(|XMLHttpRequest|<iframe|<object|<link (?!rel=\"icon\")", text
    )
    assert "default-src 'none'" in html.unescape(text)
    assert "an engine failed" in text


def test_what_a_sweep_says_is_text_and_never_markup() -> None:
    point = sample_point(EVIL, bundle=EVIL, values={EVIL: EVIL}, crop="x")
    failed = sample_point("failed", bundle=EVIL, error=EVIL)
    pictures = PagePictures({EVIL: jpeg(0)}, {}, {EVIL: jpeg(1)})
    text = render_page(sample_report([point, failed], pick=EVIL), pictures)
    assert len(re.findall(r"<script", text)) == 4  # ours three, and the data
    assert "<img src=x" not in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["points"][0]["id"] == EVIL


def test_a_sweep_of_which_every_point_failed_has_a_page() -> None:
    text = render_page(sample_report([sample_point("a", error="it broke")]), PagePictures({}, {}, {}))
    assert "it broke" in text


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def place_of(browser: Any, point: str) -> tuple[float, float]:
    box = browser.evaluate(
        f"(() => {{ const box = document.querySelector('#plot [data-point=\"{point}\"] .dot').getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    return box[0], box[1]


CROP = "document.getElementById('crop').src"


@needs_browser
def test_the_point_under_the_cursor_shows_its_crop_and_a_click_its_command(
    browser: Any, page: Path, crops: dict[str, bytes]
) -> None:
    browser.open(page, width=1440)
    assert browser.evaluate(CROP) == data_uri(crops["p5"], "image/jpeg")  # what was picked, to begin with
    assert browser.evaluate("document.getElementById('pinned').hidden") is True
    for point in crops:
        x, y = place_of(browser, point)
        browser.point_at(x + 2, y - 2)
        assert browser.evaluate(CROP) == data_uri(crops[point], "image/jpeg")
        assert browser.evaluate("document.querySelector('#plot .shown').dataset.point") == point
    assert browser.evaluate("document.getElementById('crop').naturalWidth") == 256
    browser.point_at(*place_of(browser, "p2"), click=True)
    assert browser.evaluate("document.getElementById('command').textContent") == "livemoments restore p2"
    browser.point_at(*place_of(browser, "p6"))  # pointing elsewhere leaves the command, and says whose it is
    assert browser.evaluate(CROP) == data_uri(crops["p6"], "image/jpeg")
    assert browser.evaluate("document.getElementById('command').textContent") == "livemoments restore p2"
    assert browser.evaluate("document.querySelector('#pinned strong').textContent") == "bundle steps=3"
    assert browser.problems == []
    assert browser.requests == []


@needs_browser
def test_the_axes_can_be_chosen_and_the_front_is_theirs(browser: Any, page: Path) -> None:
    browser.open(page, width=1440)

    def front(x: str, y: str) -> set[str]:
        for place, name in (("x", x), ("y", y)):
            browser.evaluate(
                f"(() => {{ const select = document.getElementById('axes').elements.{place}; select.value = '{name}';"
                " select.dispatchEvent(new Event('change')); })()"
            )
        found = "[...document.querySelectorAll('#plot .point')].filter((one) => !one.querySelector('.beaten'))"
        return set(browser.evaluate(f"{found}.map((one) => one.dataset.point)"))

    points = [point for point in sample_points() if point.result.status == "ok"]
    objectives = {one.name: one for one in find_objectives(points)}
    for x, y in itertools.permutations(objectives, 2):
        assert front(x, y) == front_of(points, [objectives[x], objectives[y]]), (x, y)


@needs_browser
def test_the_other_picture_can_be_chosen(browser: Any, page: Path) -> None:
    browser.open(page, width=1440)
    beside = "document.getElementById('beside').src"
    for name, seed in (("exact fp32", 100), ("input", 101), ("ground truth", 102)):
        browser.evaluate(
            f"(() => {{ const select = document.getElementById('with'); select.value = '{name}';"
            " select.dispatchEvent(new Event('change')); })()"
        )
        assert browser.evaluate(beside) == data_uri(jpeg(seed), "image/jpeg")


@needs_browser
def test_a_point_can_be_reached_by_keys(browser: Any, page: Path, crops: dict[str, bytes]) -> None:
    browser.open(page, width=1440)
    browser.evaluate("document.querySelector('#plot [data-point=p3]').focus()")
    assert browser.evaluate(CROP) == data_uri(crops["p3"], "image/jpeg")
    browser.press("Enter", 13)
    assert browser.evaluate("document.getElementById('command').textContent") == "livemoments restore p3"


@needs_browser
@pytest.mark.parametrize("width", [375, 820, 1440])
def test_the_page_fits_its_window_without_a_fault(browser: Any, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("document.documentElement.dataset.errors") is None
    assert browser.evaluate("document.querySelectorAll('#plot .point').length") == 8
    assert browser.problems == []
