"""Write what growth costs, as tables: ``python benchmarks/scale.py``; ``--write`` for ``docs/scale.md``.

The figures come from a task folder in virtual time (``simulated_folder.py``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cost
from marks import write
from rich.console import Console
from rich.table import Table
from simulated_folder import HOUR_S, REQUEST_S, WARM_UP_S, Folder, Setup

from bqdispatch_provider.core.windows import ENTRY_RETENTION
from bqdispatch_provider.names import counted

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
OBJECT_KIB, SOFT_DELETE_DAYS, GIB_HOUR_DOLLARS = 4, 7, 0.000027397
"""KiB of a trace or window, days for which a bucket keeps deleted objects, and dollars for a GiB for an hour."""
BASE_MB, OBJECT_KB, JOB_KB, NAME_KB = 66, 1.2, 0.45, 1.17
"""Memory of a process, of an object in its folder, of a job, and of an event that a run's document names while it is
written."""

DAY_S = 86_400


def lag(folder: Folder, part: float) -> str:
    """Return how many seconds after they could, a part of the events had been dispatched.

    :param part: of the events: 0.5, or 1 for all.
    """
    wanted, so_far = part * folder.lags.total(), 0
    for seconds in sorted(folder.lags):
        so_far += folder.lags[seconds]
        if so_far >= wanted:
            return str(seconds)
    return "-"


def figures(setup: Setup, dispatchers: int = 1) -> list[str]:
    """Return the cells of a row: one day.

    :param dispatchers: that share the tables, each with a folder of its own.
    """
    folder = Folder(replace(setup, tables=setup.tables // dispatchers)).run()
    days = folder.clock / DAY_S / dispatchers
    a, b = (number / days for number in folder.cost.billed)
    events = folder.lags.total() * dispatchers * DAY_S / (folder.clock - WARM_UP_S)
    deleted = folder.cost.calls["storage.objects.delete"] / days + events  # BqTail deletes what it has consumed
    remembered = 2 * folder.windows_a_second * dispatchers * ENTRY_RETENTION.total_seconds()
    kept = (deleted * SOFT_DELETE_DAYS + remembered) * OBJECT_KIB / 2**20 * 24 * GIB_HOUR_DOLLARS
    memory = BASE_MB + (folder.objects * OBJECT_KB + folder.traces * JOB_KB + folder.named * NAME_KB) / 1000
    shown = [f"{folder.objects:,}", f"{max(folder.looks):.0f} s"]
    if folder.falls_behind:
        return [*shown, "falls behind", *("-",) * 7]
    return [
        *shown,
        f"{lag(folder, 0.5)} / {lag(folder, 0.95)} / {lag(folder, 1)} s",
        f"{events:,.0f}",
        f"{folder.most:,}",
        f"{folder.cost.requests.total() / days:,.0f}",
        f"{a:,.0f} + {b:,.0f}",
        f"{a * cost.A + b * cost.B:,.2f} + {kept:,.2f}",
        f"{memory:,.0f} MB",
        f"{folder.cpu / days / HOUR_S:.1f} h",
    ]


HEAD = ["objects in a folder", "a look", "lag: half, 95 %, all", "events a day", "most at one time", "requests a day"]
HEAD += ["billed, class A + B", "$ a day + what is kept", "memory", "CPU a day"]
MANY = (1, 2, 4, 8)
MODES = {
    "every minute": Setup(0),
    "back to back": Setup(0, back_to_back=True),
    "back to back, 30 min": Setup(0, back_to_back=True, minutes=30),
}


def growth() -> Iterator[list[str]]:
    """Yield rows: one dispatcher, ever more tables."""
    for times in (1, 10, 40, 100):
        for mode, setup in MODES.items():
            work = f"{1.4 * times:g} million, {100 * times:,} tables"
            yield [work, mode, *figures(replace(setup, tables=100 * times))]


def shared() -> Iterator[list[str]]:
    """Yield rows: the same work for more dispatchers."""
    for times, dispatchers in ((10, 1), (10, 2), (10, 10), (100, 1), (100, 10), (100, 50)):
        yield [f"{1.4 * times:g} million", f"{dispatchers}", *_of(times, dispatchers)]
    yield ["140 million", "50, Kubernetes: 25 s until a task works", *_of(100, 50, task=25, gap=25)]
    yield ["140 million", "50, a page takes 150 ms, a batch 500 ms", *_of(100, 50, page=0.15, batch=0.5)]
    yield ["140 million", "50, fired windows kept for 10 minutes", *_of(100, 50, keep=600)]


def _of(times: int, dispatchers: int, **more: Any) -> list[str]:
    return figures(replace(Setup(100 * times), **more), dispatchers)


def outages() -> Iterator[list[str]]:
    """Yield rows: how long it takes to dispatch what has gathered in an hour without a dispatcher."""
    for writes, batch in ((1000, REQUEST_S), (5000, REQUEST_S), (5000, 0.5), (20_000, 0.5)):
        setup = Setup(1000, writes=writes, batch=batch, outage=HOUR_S, hours=0)
        parts = [replace(setup, tables=setup.tables // many, writes=writes // many) for many in MANY]
        after = [Folder(part).run().caught_up for part in parts]
        yield [f"{writes:,} writes a second, a batch takes {batch} s", *(f"{seconds:.0f} s" for seconds in after)]


TABLES = {
    "growth": (["files a day", "runs", *HEAD], growth),
    "shared": (["files a day", "dispatchers", *HEAD], shared),
    "outages": (["the buckets take", *(counted(number, "dispatcher") for number in MANY)], outages),
}


def main() -> None:
    """Print the tables, and with ``--write`` write the page."""
    parser = argparse.ArgumentParser(description="Count what growth costs.")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    options = parser.parse_args()
    for name, (head, lines) in TABLES.items():
        rows = list(lines())
        shown = Table(*head, title=name)
        for row in rows:
            shown.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 220).print(shown)
        if options.write:
            write(PAGE, name, "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))


if __name__ == "__main__":
    main()
