"""What ``livemoments restore`` says of a result: one document for machines, some lines for people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livemoments.cli.output import human_seconds, plural

if TYPE_CHECKING:
    from livemoments.runtime.restore import RestoreResult


def result_document(result: RestoreResult, output: Path, seconds: float) -> dict[str, Any]:
    """The result with ``--json``."""
    height, width = result.image.shape[:2]
    timings = {
        "stages": {
            name: {"seconds": round(timing.seconds, 4), "count": timing.count}
            for name, timing in result.timings.stages.items()
        },
        "tile_seconds": [round(tile_s, 4) for tile_s in result.timings.tile_seconds],
    }
    return {
        "output": output,
        "width": width,
        "height": height,
        "seconds": round(seconds, 3),
        "metadata": result.metadata,
        "timings": timings,
        **({} if result.cache is None else {"kv_cache": asdict(result.cache)}),
    }


def result_summary(result: RestoreResult, output: Path, seconds: float) -> str:
    """The result in words."""
    height, width = result.image.shape[:2]
    made = result.metadata
    lines = [
        f"wrote {output}: {width}x{height} in {human_seconds(seconds)}",
        f"  {plural(made['tiles'], 'tile')} of {made['tile']}, {plural(made['steps'], 'step')}, "
        f"reference {made['reference_policy']}, flow by {made['flow']}, photo frame {made['photo_frame']}",
    ]
    if (cache := result.cache) is not None:
        lines.append(f"  keys and values: {cache.hits} of {cache.hits + cache.misses} (a tile at a step) were kept")
    if lost := made.get("not_carried_over"):
        lines.append(f"  not carried over from the photo: {', '.join(lost)}")
    return "\n".join(lines)
