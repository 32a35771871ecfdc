"""The HTML page: self-contained, safe, bounded, and in a browser as it should be."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from browser_support import needs_browser, open_browser
from report_samples import sample_report

from livemoments.errors import MissingExtraError
from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size
from livemoments.validate.report import charts, page_content, pictures
from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report.html_page import render_page
from livemoments.validate.report.write import write_reports
from livemoments.validate.report_data import BundleInfo, Check, ImageResult, ValidationReport

MEBI = 2**20


class Elements(HTMLParser):
    """Every start tag of a page, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [synthetic_photograph(Size(240, 320), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    """A report with every part of it: failures, a bisection, a baseline, pictures."""
    place = tmp_path_factory.mktemp("report")
    report = sample_report(12, faulty=True, failed=(4,), folder=place, photographs=photographs, slow=1.4)
    write_reports(msgspec.structs.replace(report, baseline=compare_with_baseline(report, sample_report(12))), place)
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


# What is in the file.


def test_the_page_asks_the_network_for_nothing(page: str) -> None:
    elements = Elements(page)
    for tag, attributes in elements.found:
        for name in ("src", "srcset", "poster", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value)
        href = attributes.get("href")
        assert href is None or not re.match(r"(?i)\s*([a-z][a-z0-9+.-]*:|//)", href) or href == "data:,", (tag, href)
    assert not elements.of("iframe")
    assert not elements.of("object")
    assert all(attributes.get("rel") == "icon" for attributes in elements.of("link"))
    text = re.sub(r"data:[a-z/]+;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.findall(r"(?i)(?:https?|wss?|ftp):", text)
    assert not re.findall(r"(?i)@import|url\(|@font-face|import\(|fetch\(|XMLHttpRequest", text)
    policy = next(meta for meta in elements.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])
    assert "'unsafe-inline'" not in str(policy["content"]).split("script-src")[1]


def test_what_a_report_says_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = '"><script>document.documentElement.dataset.evil=1</script><img src=x onerror=alert(1)>'
    report = sample_report(2, faulty=True)
    report = msgspec.structs.replace(
        report,
        bundle=msgspec.structs.replace(report.bundle, name=evil, recipe=evil, files={evil: 5}),
        images=(
            ImageResult(name=evil, status="failed", error=evil, files={"output": evil, evil: evil}, worker=evil),
            *report.images,
        ),
        checks=(Check(name=evil, value=1.0, limit=0.0, unit=evil, better="lower", status="fail", detail=evil),),
        settings={evil: evil},
        machine={"processor": evil},
        ladder=tuple(msgspec.structs.replace(rung, name=evil, size=evil, where=evil) for rung in report.ladder),
    )
    elements = Elements(render_page(report, tmp_path))
    assert len(elements.of("script")) == 2
    assert all(str(image.get("src")).startswith("data:") for image in elements.of("img"))
    assert not [attributes for _, attributes in elements.found if any(name.startswith("on") for name in attributes)]


@pytest.mark.slow
def test_260_images_stay_small(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    assert len(render_page(sample_report(260), tmp_path)) < 400_000

    rng = np.random.default_rng(0)
    noisy = [np.clip(rng.normal(128, 60, (640, 860, 3)), 0, 255).astype(np.uint8) for _ in range(2)]
    report = sample_report(260, folder=tmp_path, photographs=noisy, pictured=8)
    page = render_page(report, tmp_path)
    assert len(page) < 10 * MEBI
    shown = page.count('<figure class="compare"')
    assert 3 <= shown < 8  # noise does not compress: the budget ends the gallery early
    assert f"{8 - shown} more images have pictures in the report" in page
    assert page.count("<tr>") > 260


def test_the_worst_images_come_first_and_some_others_follow() -> None:
    report = sample_report(40)
    images = tuple(msgspec.structs.replace(image, files={"output": "x.jpg"}) for image in report.images)
    failed = ImageResult(name="bad", status="failed", error="x", files={"input": "y.jpg"})
    chosen = pictures.choose_images(msgspec.structs.replace(report, images=(*images, failed)))
    assert [why for _, why in chosen] == ["worst"] * 12 + ["typical"] * 2 + ["best"] * 2
    assert chosen[0][0] is failed
    values = [image.metrics["psnr_y"] for image, _ in chosen[1:]]
    assert values == sorted(values, key=lambda value: value or 0)
    everything = sorted(image.metrics["psnr_y"] or 0 for image in images)
    assert values[:11] == everything[:11]
    assert values[-1] == everything[-1]


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/hostname", "missing.jpg", "text.jpg", "picture.svg", "cut.png"]
)
def test_only_pictures_of_the_folder_are_embedded(tmp_path: Path, name: str, photographs: list[np.ndarray]) -> None:
    from livemoments.runtime.image_files.photo import write_image

    place = tmp_path / "report"
    place.mkdir()
    write_image(tmp_path / "secret.jpg", photographs[0])
    write_image(place / "whole.png", photographs[0])
    (place / "cut.png").write_bytes((place / "whole.png").read_bytes()[:2000])
    (place / "text.jpg").write_text("no picture")
    (place / "picture.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>')
    image = ImageResult(name="a", status="ok", width=320, height=240, files={"input": name, "output": "whole.png"})
    gallery = pictures.make_gallery(msgspec.structs.replace(sample_report(1), images=(image,)), place)
    assert gallery.unreadable == [name]
    assert list(gallery.panels[0].uris) == ["output"]


def test_an_empty_report_is_a_page_too(tmp_path: Path) -> None:
    bundle = BundleInfo(
        name="b", digest="0", precision="fp32", recipe=None, target="onnx", policy="per-step", provider="cpu", bytes=0,
        files={},
    )  # fmt: skip
    page = render_page(ValidationReport(bundle=bundle), tmp_path)
    assert "nothing was held against a limit" in page
    assert "✕ Failed" in page


def test_without_jinja_the_numbers_are_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="'validate'"):
        write_reports(sample_report(1), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "images.csv", "summary.md", "junit.xml"}


def test_tables_have_captions_and_pictures_have_words(page: str) -> None:
    elements = Elements(page)
    assert len(elements.of("caption")) == len(elements.of("table")) > 8
    assert all(image.get("alt") for image in elements.of("img"))
    assert all(line.get("aria-label") for line in elements.of("input") if line.get("type") == "range")
    assert all(
        drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in elements.of("svg") if "class" in drawing
    )
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(now - before <= 1 for before, now in itertools.pairwise(levels))
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names))
    inside = {str(link["href"])[1:] for link in elements.of("a") if str(link.get("href")).startswith("#")}
    assert inside <= set(names)


def test_text_has_enough_contrast_in_both_themes() -> None:
    style = (Path(charts.__file__).with_name("templates") / "page.css").read_text(encoding="utf-8")
    colours = {
        name: pair for name, *pair in re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    }

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for theme in (0, 1):
        for ink in ("ink", "soft", "accent", "good", "bad"):
            for ground in ("page", "card", "well", "good-wash", "bad-wash"):
                assert contrast(colours[ink][theme], colours[ground][theme]) >= 4.5, (theme, ink, ground)
        for mark in ("edge", "bar", "good", "bad"):
            minimum = 2.4 if mark == "bar" else 3.0  # a bar's length is also written beside it
            assert contrast(colours[mark][theme], colours["page"][theme]) >= minimum, (theme, mark)


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("PSNR (y, BT.601 studio)", "PSNR"),
        ("MUSIQ relative to the key photo (tiles)", "MUSIQ rel."),
        ("MUSIQ (tiles)", "MUSIQ"),
        ("FID of 512-pixel patches", "FID"),
        ("CLIP-Q", "CLIP-Q"),
    ],
)
def test_titles_are_cut_for_columns(title: str, short: str) -> None:
    assert page_content.short_title(title) == short


# Charts.


def test_a_logarithmic_scale_puts_decades_evenly() -> None:
    scale = charts.decades([3e-4, 0.02, None, 0.0])
    assert (scale.low, scale.high) == (1e-4, 0.1)
    assert scale.at(1e-3) == pytest.approx(100 / 3, abs=0.01)
    assert scale.at(0) == 0
    assert scale.at(50) == 100
    exact = charts.decades([1e-4, 1e-2])
    assert 0 < exact.at(1e-4) < exact.at(1e-2) < 100
    assert charts.decades([]).high > charts.decades([]).low


def test_a_track_shows_the_error_the_limit_and_the_verdict() -> None:
    scale = charts.Scale(1e-4, 1.0, log=True)
    drawn = charts.error_track(1e-2, 1e-1, "pass", scale)
    assert 'class="mark pass" cx="50.0%"' in drawn
    assert '<line class="limit" x1="75.0%"' in drawn
    assert '<rect class="past" x="75.0%" y="3" width="25.0%"' in drawn
    assert "circle" not in charts.error_track(0.5, 0.1, "fail", scale)  # another shape, not only another colour
    assert "mark" not in charts.error_track(None, 0.1, "fail", scale)


def test_a_histogram_counts_every_value() -> None:
    values = [0.0, 1.0, 1.0, 2.0]
    drawn = charts.histogram(values, 1.0)
    heights = [float(height) for height in re.findall(r'class="bin"[^>]* height="([\d.]+)"', drawn)]
    assert len(heights) == 3
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.11)
    assert "bin" not in charts.histogram([1.0, 1.0], 1.0)


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 820, 1440])
def test_the_page_fits_its_window_without_a_fault(browser: Any, folder: Path, width: int, dark: bool) -> None:
    browser.open(folder / "report.html", width=width, dark=dark)
    said = json.loads(browser.evaluate("JSON.stringify(document.documentElement.dataset)"))
    assert said == {"ready": "true", "overflow": "0", "rows": "12", "panels": "11"}
    # Everything open, as far as it goes.
    browser.evaluate("document.querySelectorAll('details').forEach((group) => { group.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.problems == []
    assert browser.requests == []
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 120) == dark


@needs_browser
def test_a_fault_in_the_page_would_be_seen(browser: Any, folder: Path, page: str) -> None:
    broken = folder / "broken.html"
    broken.write_text(page.replace("</main>", '<img src="https://example.org/x.png"><script>boom()</script></main>'))
    browser.open(broken, width=800)
    errors = browser.evaluate("document.documentElement.dataset.errors")
    assert "https://example.org/x.png (img-src)" in errors
    assert "script-src" in errors
    assert browser.problems


@needs_browser
def test_the_table_sorts_and_filters(browser: Any, folder: Path) -> None:
    browser.open(folder / "report.html", width=1440)
    names = "[...document.querySelectorAll('#rows tbody tr:not([hidden]) th')].map((head) => head.textContent)"
    numbers = "[...document.querySelectorAll('#rows tbody tr:not([hidden])')].map((row) => row.cells[3]?.textContent)"
    assert "0004_window.png" in browser.evaluate(names)[0]  # failed first
    press = "document.querySelectorAll('#rows thead th')[3].querySelector('button').click()"
    for order, down in (("ascending", False), ("descending", True)):
        browser.evaluate(press)
        found = browser.evaluate(numbers)
        assert found[-1] in (None, "")  # the failed one has no number
        assert [float(value) for value in found[:-1]] == sorted(map(float, found[:-1]), reverse=down)
        assert browser.evaluate("document.querySelectorAll('#rows th')[3].getAttribute('aria-sort')") == order
    shown = "document.querySelector('#filter output').textContent"

    def put(field: str, value: str) -> None:
        browser.evaluate(
            f"(() => {{ const form = document.getElementById('filter'); form.elements.{field}.value = '{value}';"
            " form.dispatchEvent(new Event('input')); })()"
        )

    put("find", "STREET")
    assert browser.evaluate(shown) == "3 of 12"
    assert all("street" in name for name in browser.evaluate(names))
    put("find", "damaged")
    assert browser.evaluate(shown) == "1 of 12"
    put("find", "")
    put("which", "failed")
    assert len(browser.evaluate(names)) == 1


@needs_browser
def test_the_slider_moves_by_keys_and_shows_what_is_asked(browser: Any, folder: Path) -> None:
    browser.open(folder / "report.html", width=1440)
    stage = "document.querySelector('.stage')"
    line = "document.querySelector('.stage input')"
    browser.evaluate(f"{line}.focus()")
    for _ in range(4):
        browser.press("ArrowRight", 39)
    assert browser.evaluate(f"{line}.value") == "52"
    assert browser.evaluate(f"{line}.getAttribute('aria-valuetext')") == "52 percent input"
    left = f"{stage}.querySelector('img.over')"
    assert "48%" in browser.evaluate(f"getComputedStyle({left}).clipPath")
    visible = f"[...{stage}.querySelectorAll('img:not([hidden])')].map((image) => image.dataset.role).sort().join()"
    assert browser.evaluate(visible) == "input,output"
    browser.evaluate("document.querySelector('button[data-show=truth]').click()")
    browser.evaluate("document.querySelector('button[data-show=error]').click()")
    assert browser.evaluate(visible) == "error,truth"
    assert browser.evaluate(f"{left}.dataset.role") == "truth"
    assert browser.evaluate("document.querySelector('[data-for=error]').hidden") is False
    loaded = f"[...{stage}.querySelectorAll('img')].every((image) => image.complete && image.naturalWidth > 0)"
    assert browser.evaluate(loaded) is True


@needs_browser
def test_the_theme_can_be_chosen(browser: Any, folder: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(folder / "report.html", width=900, dark=False, suffix="#theme=dark")
    dark = browser.evaluate(ground)
    browser.open(folder / "report.html", width=900, dark=False)
    light = browser.evaluate(ground)
    assert dark != light
    for expected in (light, dark, light):  # light, dark, as the system has it
        browser.evaluate("document.getElementById('theme').click()")
        assert browser.evaluate(ground) == expected


@needs_browser
def test_the_page_prints(browser: Any, folder: Path) -> None:
    browser.open(folder / "report.html", width=1440, dark=True)
    assert browser.print_pdf().startswith(b"%PDF-")
