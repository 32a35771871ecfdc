"""``junit.xml``: the report as test results, for CI systems that show those."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from livemoments.validate.report.gate import FAILED_IMAGES, gate
from livemoments.validate.report.numbers import format_measured, format_value
from livemoments.validate.report_data import Status, ValidationReport

_CLASS = "livemoments.validate"
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    status: Status
    message: str
    seconds: float = 0.0


def junit_xml(report: ValidationReport) -> bytes:
    """A test suite for the gate's verdict, and one each for checks, ladder, images and the baseline.

    What no limit applies to is marked as skipped. Suites without a case are left out.
    """
    suites = {
        "gate": _gate_cases(report),
        "checks": _check_cases(report),
        "ladder": _ladder_cases(report),
        "images": _image_cases(report),
        "baseline": _baseline_cases(report),
    }
    root = ET.Element("testsuites", name=_CLASS)
    totals = [_add_suite(root, name, list(cases)) for name, cases in suites.items()]
    for attribute, numbers in zip(("tests", "failures", "skipped"), zip(*totals, strict=True), strict=True):
        root.set(attribute, str(sum(numbers)))
    root.set("errors", "0")
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _add_suite(root: ET.Element, name: str, cases: list[_Case]) -> tuple[int, int, int]:
    counts = (
        len(cases),
        sum(case.status == "fail" for case in cases),
        sum(case.status == "info" for case in cases),
    )
    if not cases:
        return counts
    suite = ET.SubElement(root, "testsuite", name=name, errors="0", time=f"{sum(case.seconds for case in cases):.3f}")
    for attribute, number in zip(("tests", "failures", "skipped"), counts, strict=True):
        suite.set(attribute, str(number))
    for case in cases:
        element = ET.SubElement(
            suite, "testcase", classname=f"{_CLASS}.{name}", name=_text(case.name), time=f"{case.seconds:.3f}"
        )
        message = _text(case.message)
        if case.status == "fail":
            ET.SubElement(element, "failure", message=message.split("\n")[0], type="limit").text = message
        elif case.status == "info":
            ET.SubElement(element, "skipped", message=message)
    return counts


def _gate_cases(report: ValidationReport) -> Iterator[_Case]:
    reasons = gate(report)
    yield _Case("verdict", "fail" if reasons else "pass", "\n".join(reasons))


def _check_cases(report: ValidationReport) -> Iterator[_Case]:
    for check in report.checks:
        yield _Case(check.name, check.status, _sentence(format_measured(check), check.detail))


def _ladder_cases(report: ValidationReport) -> Iterator[_Case]:
    for rung in report.ladder:
        name = f"{rung.level} {rung.name} {rung.size}"
        yield _Case(name, rung.status, _sentence(format_measured(rung), rung.where))


def _image_cases(report: ValidationReport) -> Iterator[_Case]:
    allowed = any(check.name == FAILED_IMAGES and check.status == "pass" for check in report.checks)
    for image in report.images:
        status: Status = "pass" if image.status == "ok" else "info" if allowed else "fail"
        yield _Case(image.name, status, image.error or "failed", image.seconds)


def _baseline_cases(report: ValidationReport) -> Iterator[_Case]:
    for difference in report.baseline:
        was, now = (format_value(value, difference.unit) for value in (difference.before, difference.now))
        yield _Case(difference.name, difference.status, _sentence(f"was {was}, is {now}", difference.detail))


def _sentence(measured: str, detail: str) -> str:
    return f"{measured}: {detail}" if detail else measured


def _text(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
