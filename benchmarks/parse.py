"""Measure how long the sample DAG and an empty one take to parse: ``python benchmarks/parse.py``, beside Airflow."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 7
SAMPLE = Path(__file__).parents[1] / "dags" / "bqdispatch.py"
EMPTY = """
import pendulum
from airflow.providers.common.compat.sdk import DAG
with DAG("empty", schedule=None, start_date=pendulum.datetime(2024, 1, 1, tz="UTC"), catchup=False):
    pass
"""
PARSE = """
import json, runpy, sys, time
began = time.perf_counter()
runpy.run_path(sys.argv[1])
print(json.dumps([time.perf_counter() - began, len(sys.modules)]))
"""


def parse(file: Path) -> tuple[float, int]:
    """Parse a file in a process of its own.

    :returns: seconds, and number of loaded modules.
    """
    done = subprocess.run([sys.executable, "-c", PARSE, str(file)], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, modules


def main() -> None:
    """Print medians over interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        parse(SAMPLE), parse(empty)
        rounds = [(parse(empty), parse(SAMPLE)) for _ in range(ROUNDS)]
    before, ours = (statistics.median(each[side][0] for each in rounds) for side in (0, 1))
    more = statistics.median(each[1][0] - each[0][0] for each in rounds)
    print(f"empty DAG {before:.2f} s, sample DAG {ours:.2f} s, more by {more:.2f} s (medians of {ROUNDS})")
    print(f"modules: {rounds[0][0][1]} and {rounds[0][1][1]}")


if __name__ == "__main__":
    main()
