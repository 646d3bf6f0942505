"""Carry out every case of a storage event that comes after its window was fired, and write the table of them.

``python tests/tools/late.py --write docs/reliability.md`` writes the table between its marks there; with ``--kills``
each case is carried out again and again, a dispatcher being killed before and after each of its calls in turn.
Exits 1 when a file is lost, or loaded twice.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, repeat
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "support"), str(TESTS / "late"), str(TESTS.parent / "benchmarks")]

from cells import CELLS, Cell, Result, run, run_killed, table, totals  # noqa: E402
from marks import write  # noqa: E402

from bqdispatch_provider.testing.standin import StandIn, StandInControl  # noqa: E402

REAL = TESTS / "late" / "real_bqtail.jsonl"
"""Results of the real BqTail in some of the cells. They were made by hand, so each line has its date."""


def carry_out(cells: list[Cell], kills: bool, every: int) -> tuple[list[Result], list[str], list[int]]:
    """Carry cells out against a stand-in of their own.

    :param cells: the cells.
    :param kills: kill dispatchers as well.
    :param every: kill at every n-th call.
    :returns: the results without kills, a text for each bad result with a kill, and the numbers of kills and of good
        results among them.
    """
    results, bad, counts = [], [], [0, 0]
    with StandIn() as cloud, StandInControl(cloud.url) as control:
        os.environ["STORAGE_EMULATOR_HOST"] = os.environ["BIGQUERY_EMULATOR_HOST"] = cloud.url
        for cell in cells:
            results.append(run(cloud.url, control, cell))
            if not kills:
                continue
            for kill_at, after, result in run_killed(cloud.url, control, cell, range(1, 10_000, every)):
                counts[0] += 1
                counts[1] += result.ok
                if not result.ok:
                    bad.append(f"killed {'after' if after else 'before'} call {kill_at}: {result}")
    # What a process gives back: the account has threads' locks behind it.
    return [Result(r.cell, r.files, r.first, r.errors, str(r.account), r.calls, r.killed) for r in results], bad, counts


def text(results: list[Result], kills: list[int] | None) -> str:
    """Return the text between the marks.

    :param results: of all cells, without kills.
    :param kills: the number of kills, and after how many of them nothing was lost or doubled; ``None``: not tried.
    """
    lines = [*table(results), "", f"{len(results)} cells: {totals(results)}."]
    if kills is not None:
        lines.append(
            f"{kills[0]:,} kills between any two calls of them: {kills[0] - kills[1]:,} with a file lost or doubled."
        )
    if REAL.exists():
        lines += ["", *real(results)]
    return "\n".join(lines)


def real(results: list[Result]) -> list[str]:
    """Return the lines that compare the real BqTail with the stand-in: numbers, and a table of what differs.

    :param results: of all cells.
    """
    ours = {result.cell: result.worst for result in results}
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    theirs = {Cell(**row["cell"]): row["result"] for row in rows}
    dates = sorted({row["date"] for row in rows})
    others = [cell for cell, result in sorted(theirs.items()) if result != ours[cell]]
    lines = [
        f"{len(theirs)} of these cells were run with the real BqTail, too, from {dates[0]} to {dates[-1]}: "
        f"{len(theirs) - len(others)} came to the same."
    ]
    if others:
        lines += ["", "| cell | with the real BqTail | with the stand-in |", "| --- | --- | --- |"]
        lines += [f"| {cell} | {theirs[cell]} | {ours[cell]} |" for cell in others]
    return lines


def main() -> int:
    """Carry all cells out.

    :returns: the exit code: 0 when no file was lost or loaded twice.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between its marks there")
    parser.add_argument("--kills", action="store_true", help="kill dispatchers, too: about an hour")
    parser.add_argument("--points-every", type=int, default=1, help="kill at every n-th call (default: %(default)s)")
    parser.add_argument("--cells-every", type=int, default=1, help="every n-th cell only (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="side by side (default: %(default)s)")
    options = parser.parse_args()
    cells = CELLS[:: options.cells_every]
    parts = [part for start in range(options.processes * 4) if (part := cells[start :: options.processes * 4])]
    with ProcessPoolExecutor(options.processes, initializer=logging.disable, initargs=(logging.WARNING,)) as pool:
        done = list(pool.map(carry_out, parts, repeat(options.kills), repeat(options.points_every)))
    results = sorted(chain.from_iterable(results for results, _, _ in done), key=lambda result: result.cell)
    bad = [*(str(result) for result in results if not result.ok), *chain.from_iterable(bad for _, bad, _ in done)]
    for each in bad:
        print(each)
    kills = [sum(counts[i] for _, _, counts in done) for i in range(2)] if options.kills else None
    content = text(results, kills)
    print(content)
    if options.write:
        write(options.write, "late", content)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
