"""The results of tools/gpu/run_kit.py as a page: what was reached of the goals, tables, and a chart (SVG).

    python benchmarks/gpu_report.py RESULTS_DIR [--output FILE.md]

Method. RESULTS_DIR holds ``call-1.json`` to ``call-4.json``, or some of them. Numbers are only compared with numbers of
the same call. Without --output the page goes to ``results/gpu-CHIP.md``, the chart and the results beside it.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LEAST_SPEEDUP = 3.0
"""Of ours over upstream's way, per tile."""
LEAST_FRACTION = 0.60
"""Of the chip's measured matrix rate, in the transformers."""
MOST_PHASE_SPLIT_BYTES = 8_000_000_000
MOST_PHOTO_S = 3.0
"""For a balanced, frozen photo of 12 megapixels."""
_BAR_PX, _LABEL_PX, _ROW_PX = 480, 330, 22


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and what was measured for it; ``value`` is ``None`` where nothing was."""

    title: str
    limit: str
    value: str | None
    is_reached: bool

    @property
    def verdict(self) -> str:
        """In words."""
        return "not measured" if self.value is None else "reached" if self.is_reached else "not reached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    calls = read_calls(options.results)
    chip = re.sub(r"[^a-z0-9]+", "-", str(calls[0]["chip"] or "cpu").lower()).strip("-")
    output = options.output or RESULTS / f"gpu-{chip}.md"
    chart = output.with_suffix(".svg")
    output.write_text(page(calls, chart.name), "utf-8")
    chart.write_text(draw_tiles(calls), "utf-8")
    output.with_suffix(".json").write_text(json.dumps(calls, indent=1) + "\n", "utf-8")
    print(output)


def read_calls(folder: Path) -> list[dict[str, Any]]:
    """The calls' results, in order."""
    calls = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("call-*.json"))]
    if not calls:
        sys.stderr.write(f"{folder} holds no call-1.json to call-4.json: run tools/gpu/run_kit.py first\n")
        sys.exit(2)
    return calls


def tiles(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cases of a call that are whole tiles."""
    for step in call["steps"]:
        yield from (case for case in step.get("results", {}).get("cases", []) if "way" in case)


def photos(calls: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Step names and records of whole photos that were timed."""
    for step in (step for call in calls for step in call["steps"]):
        if "median_s" in step.get("results", {}):
            yield step["name"], step["results"]


def goals(calls: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals of the plan, judged. A dry run reaches none: its numbers are of another size and chip."""
    measured = [call for call in calls if not call["dry_run"]]
    return [_speedup(measured), _fraction(measured), _phase_split(measured), _photo(measured)]


def _speedup(calls: Sequence[dict[str, Any]]) -> Goal:
    found: list[tuple[float, str]] = []
    for call in calls:
        cases = [case for case in tiles(call) if case["dtype"] == "float16" and case["linears"] is None]
        base = [c for c in cases if c["way"] == "upstream" and c["mode"] == "eager"]
        ours = [c for c in cases if c["way"] == "ours"]
        found += [(base[0]["latency"]["median_ms"] / c["latency"]["median_ms"], c["name"]) for c in ours if base]
    title = "per tile at float16, ours over upstream's way"
    best = max(found, default=None)
    value = None if best is None else f"{best[0]:.2f} times ({best[1]})"
    return Goal(title, f"at least {LEAST_SPEEDUP:g} times", value, best is not None and best[0] >= LEAST_SPEEDUP)


def _fraction(calls: Sequence[dict[str, Any]]) -> Goal:
    # a rate over the 16-bit ceiling says nothing of 8-bit products
    found = [
        (case["fraction_of_ceiling"], case["name"])
        for call in calls
        for case in tiles(call)
        if case["way"] == "ours" and case["linears"] is None and case["fraction_of_ceiling"] is not None
    ]
    best = max(found, default=None)
    value = None if best is None else f"{best[0]:.0%} ({best[1]})"
    title = "of the chip's measured matrix rate, in the transformers"
    return Goal(title, f"at least {LEAST_FRACTION:.0%}", value, best is not None and best[0] >= LEAST_FRACTION)


def _phase_split(calls: Sequence[dict[str, Any]]) -> Goal:
    found = []
    for case in (case for call in calls for step in call["steps"] for case in step.get("results", {}).get("cases", [])):
        if case["group"] == "phases":
            peaks = [phase["peak_memory_bytes"]["reserved"] for phase in case["phases"]]
            if None not in peaks:
                found.append((max(peaks), case["name"]))
    best = min(found, default=None)
    value = None if best is None else f"{best[0] / 1e9:.2f} GB ({best[1]})"
    limit = f"under {MOST_PHASE_SPLIT_BYTES / 1e9:g} GB"
    return Goal("peak memory, phase-split", limit, value, best is not None and best[0] < MOST_PHASE_SPLIT_BYTES)


def _photo(calls: Sequence[dict[str, Any]]) -> Goal:
    found = [(record["median_s"], name) for name, record in photos(calls) if record["policy"] == "frozen"]
    best = min(found, default=None)
    value = None if best is None else f"{best[0]:.2f} s ({best[1]})"
    title = "a balanced, frozen photo of 12 megapixels"
    return Goal(title, f"at most {MOST_PHOTO_S:g} s", value, best is not None and best[0] <= MOST_PHOTO_S)


def page(calls: Sequence[dict[str, Any]], chart: str) -> str:
    """The whole page, Markdown."""
    first = calls[0]
    dry = any(call["dry_run"] for call in calls)
    lines = [
        f"# {first['chip'] or 'A processor'}{' (a dry run at tiny size: no results)' if dry else ''}",
        "",
        f"Driver {first['driver']}, commit {', '.join(sorted({call['commit'] for call in calls}))}, "
        f"{', '.join(sorted({call['date'][:10] for call in calls}))}. Random weights; calls "
        f"{', '.join(str(call['call']) for call in calls)} of 4. Numbers of different calls are not compared.",
        "",
        *_table(
            ("goal", "limit", "measured", ""), [(g.title, g.limit, g.value or "-", g.verdict) for g in goals(calls)]
        ),
        f"![Time per tile]({chart})",
        "",
    ]
    for call in calls:
        lines += _call(call)
    return "\n".join(lines)


def _call(call: dict[str, Any]) -> list[str]:
    steps = [(s["name"], s["status"], f"{s['took_s']:.0f}", _clock(s)) for s in call["steps"]]
    lines = [f"## Call {call['call']}", "", *_table(("step", "", "s", "SM clock before, after"), steps)]
    for step in call["steps"]:
        results = step.get("results", {})
        if "cases" in results:
            lines += _cases(step["name"], results)
        if "tiles" in results and "backend" in results:
            rows = [
                (policy, f"{1e3 * tile['p50']:.1f}", f"{1e3 * tile['p90']:.1f}")
                for policy, tile in results["tiles"].items()
            ]
            lines += [
                f"### {step['name']} ({results['backend']})",
                "",
                *_table(("policy", "median ms", "p90 ms"), rows),
            ]
            stages = [
                (s["stage"], f"{1e3 * s['p50_s']:.2f}", f"{1e3 * s['p90_s']:.2f}") for s in results.get("stages", [])
            ]
            lines += _table(("stage", "median ms", "p90 ms"), stages)
    rows = [
        (
            name,
            r["provider"],
            r["policy"],
            r["flow"],
            str(r["tiles"]),
            f"{r['median_s']:.2f}",
            _gb(r.get("peak_memory_bytes")),
        )
        for name, r in photos([call])
    ]
    if rows:
        lines += ["### Whole photos", ""]
        lines += _table(("step", "provider", "policy", "flow", "tiles", "median s", "peak GB"), rows)
    return lines


def _cases(name: str, results: dict[str, Any]) -> list[str]:
    rows = []
    for case in (case for case in results["cases"] if "latency" in case):
        fraction = case.get("fraction_of_ceiling")
        error = case.get("error_against_upstream", case.get("error_against_eager"))
        rows.append(
            (
                case["name"],
                f"{case['latency']['median_ms']:.2f}",
                f"{case['latency']['p90_ms']:.2f}",
                _gb(case.get("peak_memory_bytes")),
                case.get("attention", ""),
                "" if fraction is None else f"{fraction:.0%}",
                "" if error is None else f"{error:.1e}",
            )
        )
    heads = ("case", "median ms", "p90 ms", "peak GB", "attention", "of the matrix rate", "relative error")
    lines = [f"### {name}", "", *_table(heads, rows)]
    for case in results["cases"]:
        for kind, heading in (("kernels", "kernel"), ("layers", "layer")):
            parts = [_part(part, heading) for part in case.get(kind, [])]
            lines += _table((heading, "median ms", "TFLOP/s", "relative error"), parts)
        if case["group"] == "ceilings":
            rate, speed = case["matrix_tflop_per_s"], case["copy_gb_per_s"]
            lines += [f"Matrix product {rate:.0f} TFLOP/s, copy {speed:.0f} GB/s, measured in this step.", ""]
    lines += [f"* {item['name']}: {item['reason']}" for item in (*results["skipped"], *results["left_out"])]
    lines += [f"* FAILED {item['name']}: {item['reason'].splitlines()[0]}" for item in results["failures"]]
    return [*lines, ""]


def _part(part: dict[str, Any], heading: str) -> tuple[str, ...]:
    name = part[heading] if heading == "kernel" else f"{part['layer']} {part['kind']}"
    if "skipped" in part:
        return name, part["skipped"], "", ""
    return name, f"{part['latency']['median_ms']:.3f}", f"{part['tflop_per_s']:.0f}", f"{part['relative_error']:.1e}"


def _clock(step: dict[str, Any]) -> str:
    clocks = [(step.get(when) or {}).get("clocks.sm", "-") for when in ("clocks_before", "clocks_after")]
    return ", ".join(clocks)


def _gb(peak: dict[str, Any] | None) -> str:
    return "" if peak is None or peak.get("reserved") is None else f"{peak['reserved'] / 1e9:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def draw_tiles(calls: Sequence[dict[str, Any]]) -> str:
    """Time per tile as bars, one a case, upstream's way in another colour: a whole SVG file."""
    rows = [(f"{call['call']}: {case['name']}", case) for call in calls for case in tiles(call)]
    longest = max((case["latency"]["median_ms"] for _, case in rows), default=1.0)
    height, width = _ROW_PX * (len(rows) + 1), _LABEL_PX + _BAR_PX + 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>Milliseconds per tile</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, (label, case) in enumerate(rows):
        top, time_ms = _ROW_PX * index + 8, case["latency"]["median_ms"]
        length = _BAR_PX * time_ms / longest
        colour = "#b0b7c3" if case["way"] == "upstream" else "#2f6fdb"
        parts += [
            f'<text x="{_LABEL_PX - 8}" y="{top + 12}" text-anchor="end">{html.escape(label)}</text>',
            f'<rect x="{_LABEL_PX}" y="{top}" width="{length:.1f}" height="16" fill="{colour}"/>',
            f'<text x="{_LABEL_PX + length + 6:.1f}" y="{top + 12}">{time_ms:.1f} ms</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
