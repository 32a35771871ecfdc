"""A report's files: JSON against its schema, CSV, Markdown, JUnit, each whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import typing
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hidden_entries import left_behind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_samples import sample_report

from livemoments.errors import FileError, OutputError, ResourceError, UsageError
from livemoments.store.files import write_file
from livemoments.validate.report import numbers
from livemoments.validate.report.gate import gate
from livemoments.validate.report.images_csv import images_csv
from livemoments.validate.report.junit import junit_xml
from livemoments.validate.report.markdown import summary_markdown
from livemoments.validate.report.report_json import decode_report, encode_report, finite, report_schema
from livemoments.validate.report.write import FILES, write_reports
from livemoments.validate.report_data import REPORT_SCHEMA, BundleInfo, Check, ImageResult, ValidationReport

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
SAFE_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def strategy(kind: Any) -> st.SearchStrategy[Any]:
    """Random values of a type that the report's structs use; what may be missing may be infinite or NaN too."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if type(None) in arguments:
        rest = [argument for argument in arguments if argument is not type(None)]
        numbers = [NUMBERS] if float in rest else []
        return st.one_of(st.none(), *numbers, *(strategy(argument) for argument in rest))
    if origin is tuple:
        return st.lists(strategy(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        entries = NUMBERS if arguments[1] is float else strategy(arguments[1])
        return st.dictionaries(TEXTS, entries, max_size=3)
    if len(arguments) > 1:
        return st.one_of(*(strategy(argument) for argument in arguments))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: strategy(hints[name]) for name in kind.__struct_fields__ if name != "schema"})
    simple = {str: TEXTS, float: SAFE_NUMBERS, int: st.integers(-(2**53), 2**53), bool: st.booleans()}
    return simple[kind]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strategy(ValidationReport))
def test_every_report_survives_json_and_fits_the_schema(report: ValidationReport) -> None:
    data = encode_report(report)
    assert decode_report(data) == finite(report)

    document = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    jsonschema.Draft202012Validator(report_schema()).validate(document)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strategy(ValidationReport))
def test_every_report_can_be_written_in_every_text_format(report: ValidationReport) -> None:
    clean = finite(report)
    root = ET.fromstring(junit_xml(clean))
    cases = root.findall(".//testcase")
    assert len(cases) == int(root.attrib["tests"])
    assert bool(root.findall(".//failure")) == bool(gate(clean))
    assert len(list(csv.reader(io.StringIO(images_csv(clean))))) >= 1
    assert summary_markdown(clean)


def test_the_schema_itself_is_valid_and_strict() -> None:
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(encode_report(sample_report(3, failed=(1,))))
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(document)
    for change in (
        {"schema": "livemoments/validation/2"},
        {"unknown": 1},
        {"checks": [document["checks"][0] | {"status": "fine"}]},
        {"bundle": {"name": "x"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(document | change)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({name: value for name, value in document.items() if name != "schema"})


def test_numbers_that_json_lacks_become_missing(tmp_path: Path) -> None:
    image = ImageResult(
        name="a",
        status="ok",
        metrics={"psnr_y": math.inf, "ssim_y": 0.5},
        pcr={"clamp_rate": math.nan, "mean_shift_px": 1.0},
        parity_psnr_db=math.inf,
        tile_seconds=(1.0, math.nan),
    )
    report = ValidationReport(bundle=_bundle(), images=(image,), settings={"x": -math.inf, "y": 1.5})
    found = decode_report(encode_report(report))
    assert found.images[0].metrics == {"psnr_y": None, "ssim_y": 0.5}
    assert found.images[0].pcr == {"mean_shift_px": 1.0}
    assert found.images[0].parity_psnr_db is None
    assert found.images[0].tile_seconds == (1.0,)
    assert found.settings == {"x": None, "y": 1.5}


def test_a_number_that_must_be_there_is_not_left_out_silently() -> None:
    report = ValidationReport(bundle=_bundle(), images=(ImageResult(name="a", status="ok", seconds=math.nan),))
    with pytest.raises(ValueError, match=r"report\.images\[0\]\.seconds is nan"):
        encode_report(report)


def test_what_is_finite_is_not_copied() -> None:
    report = sample_report(5)
    assert finite(report) is report


def test_names_that_are_no_text_can_be_written() -> None:
    name = os.fsdecode(b"photo\xff.png")
    report = ValidationReport(bundle=_bundle(), images=(ImageResult(name=name, status="ok"),))
    assert decode_report(encode_report(report)).images[0].name == "photo?.png"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is not a whole JSON document"),
        (lambda data: b"", "is not a whole JSON document"),
        (lambda data: b"\xff\xfe\x00", "is not a whole JSON document"),
        (lambda data: b"[1, 2]", "names no schema"),
        (lambda data: b'{"passed": true}', "names no schema"),
        (lambda data: data.replace(REPORT_SCHEMA.encode(), b"livemoments/validation/9"), "livemoments/validation/9"),
        (lambda data: data.replace(b'"created"', b'"cerated"'), "unknown field `cerated`"),
        (lambda data: data.replace(b'"rel_l2": 0.0,', b'"rel_l2": "small",', 1), "Expected `float | null`, got `str`"),
        (lambda data: data.replace(b'"status": "pass"', b'"status": "ok"', 1), "Invalid enum value"),
        (lambda data: data.replace(b'"rel_l2": 0.0,', b'"rel_l2": 1e999,', 1), "whole JSON document"),
    ],
)
def test_a_damaged_report_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    good = encode_report(sample_report(2))
    file.write_bytes(damage(good))
    assert file.read_bytes() != good
    with pytest.raises(FileError, match=message) as error:
        decode_report(file)
    assert str(file) in error.value.message
    assert error.value.fix


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        decode_report(tmp_path / "none.json")
    with pytest.raises(FileError, match="is a folder"):
        decode_report(tmp_path)


def test_every_format_is_written(tmp_path: Path) -> None:
    report = sample_report(4, failed=(2,))
    written = write_reports(report, tmp_path / "new" / "report")
    assert set(written) == set(FILES)
    assert {path.name for path in (tmp_path / "new" / "report").iterdir()} == set(FILES.values())
    assert decode_report(written["json"]) == report
    assert stat.S_IMODE(written["html"].stat().st_mode) == 0o644

    only = write_reports(report, tmp_path / "two", formats=("md", "json"))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"summary.md", "report.json"}
    assert list(only) == ["json", "md"]


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'pdf' is no format"):
        write_reports(sample_report(1), tmp_path / "report", formats=("json", "pdf"))
    assert not (tmp_path / "report").exists()


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_file(file, b"old")

    def broken(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        with pytest.raises(ResourceError, match=r"the disk of .*report\.json is full"):
            write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left_behind(tmp_path / ".report.json.partial-1234abcd", is_folder=False)
    write_file(tmp_path / "report.json", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_reports(sample_report(1), tmp_path / "file" / "report", formats=("json",))


def test_csv_has_a_row_per_image_and_stable_columns() -> None:
    report = sample_report(6, failed=(3,))
    rows = list(csv.DictReader(io.StringIO(images_csv(report))))
    assert [row["name"] for row in rows] == [image.name for image in report.images]
    assert list(rows[0]) == [
        "name",
        "status",
        "error",
        "width_px",
        "height_px",
        "tiles",
        "seconds",
        "parity_psnr_db",
        "seam",
        "worker",
        "pcr.mean_shift_px",
        "pcr.clamp_rate",
        "pcr.corners_differ",
        "psnr_y",
        "input.psnr_y",
        "ssim_y",
        "input.ssim_y",
        "musiq_re",
        "input.musiq_re",
    ]
    assert float(rows[0]["psnr_y"]) == report.images[0].metrics["psnr_y"]
    assert rows[3]["psnr_y"] == ""
    assert rows[3]["error"] == report.images[3].error
    other = sample_report(6, seed=5)
    assert images_csv(other).splitlines()[0] == images_csv(report).splitlines()[0]


def test_csv_keeps_names_with_separators() -> None:
    name = 'a,"b"\nc.png'
    report = ValidationReport(bundle=_bundle(), images=(ImageResult(name=name, status="ok"),))
    assert next(csv.DictReader(io.StringIO(images_csv(report))))["name"] == name


def test_markdown_is_short_whatever_the_number_of_images() -> None:
    text = summary_markdown(sample_report(260, faulty=True, failed=range(40)))
    assert len(text.splitlines()) < 60
    assert "validation failed" in text.splitlines()[0]
    assert "First divergence" in text
    assert "and 35 more failed images" in text
    good = summary_markdown(sample_report(12))
    assert "validation passed" in good.splitlines()[0]
    assert "fail" not in good.splitlines()[0]


def test_markdown_tables_are_whole_and_text_stays_text() -> None:
    bundle = msgspec.structs.replace(_bundle(), name="a|b <img src=x> *c* [d](e)\n# f")
    check = Check(name="x|y", value=2.0, limit=1.0, unit="1", better="lower", status="fail", detail="`z`\n\n| a | b |")
    text = summary_markdown(msgspec.structs.replace(sample_report(3), bundle=bundle, checks=(check,)))
    assert text.startswith(r"## ❌ a\|b \<img src=x\> \*c\* \[d\](e) \# f: validation failed")
    assert r"- x\|y: 2.000 (limit ≤ 1): \`z\` \| a \| b \|" in text
    for block in text.split("\n\n"):
        widths = {line.replace(r"\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def test_junit_has_a_suite_per_group() -> None:
    report = sample_report(6, faulty=True, failed=(1, 4))
    root = ET.fromstring(junit_xml(report))
    suites = {suite.attrib["name"]: suite for suite in root}
    assert list(suites) == ["gate", "checks", "ladder", "images"]
    assert suites["checks"].attrib["failures"] == str(sum(check.status == "fail" for check in report.checks))
    assert suites["ladder"].attrib["skipped"] == str(sum(rung.status == "info" for rung in report.ladder))
    assert suites["images"].attrib["tests"] == "6"
    broken = [case for case in suites["images"] if case.find("failure") is not None]
    assert [case.attrib["name"] for case in broken] == [report.images[1].name, report.images[4].name]
    failure = broken[0].find("failure")
    assert failure is not None
    assert failure.text == report.images[1].error
    for suite in root:
        assert int(suite.attrib["tests"]) == len(suite)
    assert int(root.attrib["failures"]) == len(root.findall(".//failure"))


def test_junit_holds_what_xml_cannot() -> None:
    image = ImageResult(name="a\x00<&>\x1b[31m", status="failed", error="bad \ud800\ufffe \x07 end")
    root = ET.fromstring(junit_xml(ValidationReport(bundle=_bundle(), images=(image,))))
    case = root.find("testsuite[@name='images']/testcase")
    assert case is not None
    assert case.attrib["name"] == "a\ufffd<&>\ufffd[31m"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.14e-4, "rel_l2", "3.1e-4"),
        (0.0, "rel_l2", "0"),
        (41.267, "dB", "41.27 dB"),
        (0.00431, "s", "4.31 ms"),
        (3.1e-5, "s", "31 µs"),
        (15.23, "s", "15.2 s"),
        (125.4, "s", "2 min 05 s"),
        (7330.0, "s", "2 h 02 min"),
        (640.0, "bytes", "640 B"),
        (1023.99 * 1024, "bytes", "1024 KiB"),
        (1.5 * 2**30, "bytes", "1.50 GiB"),
        (1234.0, "count", "1,234"),
        (0.0828, "1", "0.0828"),
        (4.0, "1", "4.000"),
        (999.96, "1", "1,000"),
        (12.5, "px", "12.50 px"),
        (None, "dB", "–"),
        (math.inf, "dB", "–"),
        (math.nan, "bytes", "–"),
    ],
)
def test_numbers_have_their_units(value: float | None, unit: str, text: str) -> None:
    assert numbers.format_value(value, unit) == text


def test_limits_and_changes_read_well() -> None:
    assert numbers.format_limit(1e-4, "rel_l2", "lower") == "≤ 1e-4"
    assert numbers.format_limit(45.0, "dB", "higher") == "≥ 45 dB"
    assert numbers.format_limit(100.0, "1", "lower") == "≤ 100"
    assert numbers.format_limit(None, "dB", "higher") == ""
    assert numbers.format_change(10.0, 11.0, "s") == "+10.0 %"
    assert numbers.format_change(40.0, 38.5, "dB") == "−1.50 dB"
    assert numbers.format_change(1e-4, 9e-4, "rel_l2") == "×9"
    assert numbers.format_change(0.0, 2.0, "count") == "+2"
    assert numbers.format_change(None, 2.0, "count") == "–"


def _bundle() -> BundleInfo:
    return BundleInfo(
        name="bundle",
        digest="00",
        precision="fp32",
        recipe=None,
        target="onnx",
        policy="per-step",
        provider="cpu",
        bytes=3,
        files={"flow": 3},
    )
