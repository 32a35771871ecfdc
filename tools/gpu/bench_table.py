"""The results as a short table on standard output."""

from __future__ import annotations

from typing import Any


def print_table(results: dict[str, Any]) -> None:
    """Print every timed case, then what was skipped, left out or went wrong."""
    heads = (
        ("median ms", 10),
        ("p90 ms", 9),
        ("peak GB", 8),
        ("TFLOP", 8),
        ("TFLOP/s", 8),
        ("of chip", 7),
        ("error", 9),
    )
    print(f"{'case':38} " + " ".join(f"{head:>{width}}" for head, width in heads))
    for case in results["cases"]:
        if case["group"] == "ceilings":
            print(
                f"{'matrix product (ceiling)':38} {case['matrix_latency']['median_ms']:10.3f} {'':9} {'':8} {'':8} "
                f"{case['matrix_tflop_per_s']:8.1f}"
            )
            copy = case["copy_latency"]["median_ms"]
            print(f"{'copy on the device':38} {copy:10.3f}   {case['copy_gb_per_s']:.0f} GB/s")
        elif case["group"] == "micro":
            for layer in case["layers"]:
                print(_layer(layer))
        elif "kernels" in case:
            for kernel in case["kernels"]:
                print(_kernel(kernel))
        elif case["group"] == "phases":
            print(_row(case["name"], case, peak=None))
            for phase in case["phases"]:
                print(_row(f"  {phase['network']} alone", phase, peak=phase["peak_memory_bytes"]["reserved"]))
        else:
            print(_row(case["name"], case, peak=case.get("peak_memory_bytes", {}).get("reserved")))
    for item in results["skipped"]:
        print(f"skipped   {item['name']}: {item['reason']}")
    for item in results["left_out"]:
        print(f"left out  {item['name']}: {item['reason']}")
    for item in results["failures"]:
        print(f"FAILED    {item['name']}: {item['reason'].splitlines()[0]}")
    print(f"{results['elapsed_s']:.0f} s in all")


def _row(name: str, record: dict[str, Any], *, peak: int | None) -> str:
    latency = record.get("latency")
    times = f"{latency['median_ms']:10.2f} {latency['p90_ms']:9.2f}" if latency else f"{'':10} {'':9}"
    fraction = record.get("fraction_of_ceiling")
    error = record.get("error_against_upstream", record.get("error_against_eager"))
    return " ".join(
        (
            f"{name:38}",
            times,
            f"{peak / 1e9:8.2f}" if peak is not None else f"{'':8}",
            f"{record['tflop']:8.2f}" if "tflop" in record else f"{'':8}",
            f"{record['tflop_per_s']:8.1f}" if "tflop_per_s" in record else f"{'':8}",
            f"{fraction:7.1%}" if fraction is not None else f"{'':7}",
            f"{error:9.1e}" if error is not None else "",
        )
    ).rstrip()


def _kernel(kernel: dict[str, Any]) -> str:
    name = f"attention {kernel['kernel']}"
    if "skipped" in kernel:
        return f"{name:38} skipped: {kernel['skipped']}"
    if kernel["chosen"] != kernel["kernel"]:
        name += f" ({kernel['chosen']})"
    return _row(name, {**kernel, "error_against_eager": kernel["relative_error"]}, peak=None)


def _layer(layer: dict[str, Any]) -> str:
    name = f"{layer['layer']} {layer['rows']}x{layer['inputs']}x{layer['outputs']} {layer['kind']}"
    if "skipped" in layer:
        return f"{name:38} skipped: {layer['skipped']}"
    return _row(name, {**layer, "error_against_eager": layer["relative_error"]}, peak=None)
