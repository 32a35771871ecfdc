"""How long `import livemoments.runtime` takes in a fresh, warm process, beside the interpreter's own start.

    python benchmarks/import_time.py [--runs 15]

Method. `python -c "import livemoments.runtime"` and `python -c pass` take turns in fresh processes after one warm-up of
each; quoted are medians of wall time and the median difference.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from common import summary, write_record

from livemoments.validate.cost.fresh_process import measure_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    codes = {"import": "import livemoments.runtime", "interpreter": "pass"}
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for number in range(runs + 1):
        for name, code in codes.items():
            cost = measure_process([sys.executable, "-c", code])
            if number:
                seconds[name].append(cost.wall_s)
    added = [a - b for a, b in zip(seconds["import"], seconds["interpreter"], strict=True)]
    record = {name: summary(values) for name, values in seconds.items()} | {"added": summary(added)}
    path = write_record("import-time", {"seconds": record, "runs": runs})
    print(f"import livemoments.runtime: {statistics.median(added):.3f} s beyond the interpreter's start; {path}")


if __name__ == "__main__":
    main()
