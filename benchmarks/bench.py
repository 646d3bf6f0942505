"""Measure how long a dispatcher and its peers take: ``make bench``, or ``python benchmarks/bench.py [workload …]``.

Each figure is the median of several runs, with the lowest and the highest; a run is a process of its own, measured from
its start to its end. Everything goes to a stand-in Google Cloud in another process, which answers each request 0 or 30
ms late, and lets a name be changed once a second: without that limit each run is made once more, for comparison.
``--write`` puts the table into ``README.md`` beside this file, and its figures into docs/performance.md.
"""

from __future__ import annotations

import argparse
import compileall
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marks import write
from page_answers import page_answers
from rich.console import Console
from rich.table import Table
from surroundings import BIN, stand_in
from task_start import task_start
from workloads import DOCUMENT, WORKLOADS, Workload, fill, traces

from bqdispatch_provider.testing.standin import StandInControl

HERE = Path(__file__).parent
LATENCIES = (0, 30)
PEERS = {"loop": "a plain loop over the client libraries", "operators": "BigQueryHook.get_job, then GCSToGCSOperator"}
PEER_TRACES, PEER_RUNS = 100, 3
IN_AIRFLOW = {"start": task_start, "page": page_answers}
"""Measurements in a real Airflow, each of which is told in a sentence."""

CYCLE = """
import json, sys
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.dispatcher import Dispatcher
with Dispatcher(DispatchConfig.from_url(sys.argv[1])) as dispatcher:
    print(json.dumps(dispatcher.cycle().to_dict()))
"""
KINDS = {
    "storage.batch": "batches",
    "storage.objects.list": "lists",
    "bigquery.jobs.list": "job lists",
    "bigquery.jobs.get": "look-ups",
    "storage.objects.insert": "writes",
}
"""Methods by the word that the table has for them; others are "single calls"."""


@dataclass
class Run:
    """Time, memory and requests of one process."""

    seconds: float
    cpu: float
    megabytes: float
    requests: dict[str, int]
    answer: dict[str, Any]


@dataclass
class Row:
    """A row of the table: several runs of the same."""

    title: str
    latency: int
    target: str
    listed: int
    runs: list[Run] = field(default_factory=list)
    unlimited: list[Run] = field(default_factory=list)
    """Runs without the limit on changes of a name, in turn with the others."""

    @property
    def limit(self) -> str:
        """Return how many times as long it takes because of the limit of one change a second for each name."""
        if not self.unlimited:
            return ""
        return f"{self.spread('seconds')[1] / statistics.median(run.seconds for run in self.unlimited):.2f}"

    def spread(self, figure: str) -> tuple[float, float, float]:
        """Return the lowest, the median and the highest of a figure."""
        values = [getattr(run, figure) for run in self.runs]
        return min(values), statistics.median(values), max(values)

    @property
    def requests(self) -> int:
        """Return the number of requests of the run that made the most."""
        return max(sum(run.requests.values()) for run in self.runs)

    @property
    def kinds(self) -> str:
        """Return the requests of the last run by kind, in words."""
        words: dict[str, int] = {}
        for method, number in self.runs[-1].requests.items():
            word = KINDS.get(method, "single calls")
            words[word] = words.get(word, 0) + number
        return ", ".join(f"{number} {word}" for word, number in sorted(words.items(), key=lambda each: -each[1]))

    def cells(self) -> list[str]:
        """Return the cells of the table."""
        low, middle, high = self.spread("seconds")
        cpu = self.spread("cpu")[1]
        each = f" ({1000 * cpu / self.listed:.2f} ms an object)" if self.listed else ""
        return [
            self.title,
            f"{self.latency} ms",
            f"{middle:.2f} s ({low:.2f} to {high:.2f})",
            f"{cpu:.2f} s{each}",
            f"{self.spread('megabytes')[1]:.0f} MB",
            f"{self.requests:,}: {self.kinds}",
            self.limit,
            self.target if self.latency else "",
        ]


HEAD = [
    "work",
    "each request",
    "from start to end",
    "CPU",
    "memory",
    "requests",
    "limit on names",
    "to be reached",
]


def run(command: Sequence[str | Path], url: str, control: StandInControl, *, exits: int = 0) -> Run:
    """Run a process, and measure it from its start to its end.

    :param exits: the expected exit code.
    :raises RuntimeError: when it exits with another one.
    """
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": url, "BIGQUERY_EMULATOR_HOST": url}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled, and so is this one by now
    control.reset_counters()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=said)
        kilobytes = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            kilobytes = max(kilobytes, peak(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, said):
            file.seek(0)
        if process.returncode != exits:
            raise RuntimeError(f"{command} ended with {process.returncode}: {said.read()[-2000:]}")
        printed = out.read()
    # Airflow logs to standard output, too.
    answer = json.loads(printed if printed.startswith("{") else printed.splitlines()[-1])
    cpu = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu, kilobytes / 1024, control.requests_by_method(), answer)


def peak(pid: int) -> int:
    """Return the peak memory of a process in KiB; 0 once it has ended.

    The figure of ``wait4`` would include the process that it was forked from.
    """
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0


def measure(name: str, work: Workload, config: Path, latency: int) -> Row:
    """Measure our dispatcher at one workload."""
    row = Row(work.title, latency, work.target, work.listed)
    command: list[str | Path] = [BIN / "bqdispatch", "run", "--once", "--config", config]
    if name == "idle":  # a run writes performance.json besides
        command = [sys.executable, "-c", CYCLE, config.as_uri()]
    with stand_in() as (url, control):
        for number, limited in itertools.product(range(work.runs), (True, False) if latency else (True,)):
            if work.changes or (limited and not number):
                control.set_latency(0)
                fill(work, control)
            control.set_latency(latency)
            control.set_name_limit(limited)
            control.advance(2)  # the run before has written performance.json, which is written once a second
            done = run(command, url, control, exits=int(work.status == "error"))
            dispatched = done.answer["Outcomes"].get("dispatched", 0)
            if dispatched != work.finished or done.answer["Status"] != work.status:
                raise RuntimeError(f"{work.title}: {dispatched} were dispatched, {done.answer.get('Error')}")
            (row.runs if limited else row.unlimited).append(done)
    return row


def measure_peer(name: str, latency: int) -> Row:
    """Measure a peer at finished traces; its time does not count its imports."""
    work = Workload(f"peer: {PEERS[name]}, {PEER_TRACES} finished traces", PEER_TRACES, PEER_TRACES, traces(1), "")
    row = Row(work.title, latency, "", PEER_TRACES)
    with stand_in() as (url, control):
        for _ in range(PEER_RUNS):
            fill(work, control)
            control.set_latency(latency)
            done = run([sys.executable, HERE / "peers.py", name, url], url, control)
            if done.answer["moved"] != PEER_TRACES:
                raise RuntimeError(f"{name} moved {done.answer['moved']}")
            done.seconds = done.answer["seconds"]
            row.runs.append(done)
    return row


def ratios(rows: Sequence[Row]) -> list[str]:
    """Return how much longer a trace takes the peers than us at the same latency, a sentence each."""
    ours = {
        row.latency: row.spread("seconds")[1] / row.listed for row in rows if row.title == WORKLOADS["finished"].title
    }
    return [
        f"{row.title.partition(',')[0].removeprefix('peer: ')}, {row.latency} ms a request: "
        f"{row.spread('seconds')[1] / row.listed / ours[row.latency]:.0f} times as long for a trace"
        for row in rows
        if row.title.startswith("peer") and row.latency in ours
    ]


def table(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    shown = Table(*HEAD)
    for row in rows:
        shown.add_row(*row.cells())
    return shown


def as_markdown(rows: Sequence[Row], more: Sequence[str]) -> str:
    """Return the table for a page, with further figures and the machine."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return "\n".join([*lines, "", *(f"- {each}" for each in more), "", f"{datetime.now(UTC):%Y-%m-%d}, {machine}."])


def summary_table(rows: Sequence[Row], more: Sequence[str]) -> str:
    """Return the table for the project's page: medians at 30 ms a request."""
    lines = ["| work | from start to end | requests |", "| --- | --- | --- |"]
    for row in rows:
        if row.latency and not row.title.startswith("peer"):
            lines.append(f"| {row.title} | {row.spread('seconds')[1]:.2f} s | {row.requests:,} |")
    return "\n".join([*lines, "", *(f"- {each}" for each in more)])


def main() -> None:
    """Measure, print, and with ``--write`` write the pages."""
    parser = argparse.ArgumentParser(description="Measure how long a dispatcher takes.")
    known = [*WORKLOADS, *PEERS, *IN_AIRFLOW]
    parser.add_argument("names", nargs="*", metavar="workload", help=f"of {', '.join(known)}; by default all")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    names = options.names or known
    compileall.compile_dir(HERE.parent / "bqdispatch_provider", quiet=2)
    console, notes = Console(width=None if sys.stdout.isatty() else 200), Console(stderr=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(DOCUMENT))
        for latency in LATENCIES:
            for name in names:
                with notes.status(f"{name}, {latency} ms a request"):
                    if name in WORKLOADS:
                        rows.append(measure(name, WORKLOADS[name], config, latency))
                    elif name in PEERS:
                        rows.append(measure_peer(name, latency))
    more = ratios(rows)
    for name in filter(IN_AIRFLOW.__contains__, names):
        with notes.status(f"{name}, in a real Airflow"):
            more.append(IN_AIRFLOW[name]())
    if rows:
        console.print(table(rows))
    for each in more:
        console.print(each, highlight=False)
    if options.write:
        write(HERE / "README.md", "bench", as_markdown(rows, more))
        write(HERE.parent / "docs" / "performance.md", "bench", summary_table(rows, more))


if __name__ == "__main__":
    main()
