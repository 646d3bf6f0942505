"""What a cycle costs: its requests, and the calls in them, as the dispatcher makes them. Counted, nothing is sent.

``tests/dispatch/test_scale.py`` holds these against what the dispatcher really asks for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil

from bqdispatch_provider.dispatcher import ROUND
from bqdispatch_provider.intents import MOST
from bqdispatch_provider.search import FEW, SLICE, SLICES
from bqdispatch_provider.storage import _PAGE, BATCH_SIZE

A, B = 0.005 / 1000, 0.0004 / 1000
"""Dollars of an operation of either class (docs/scale.md says where from)."""

CLASS_A = [f"storage.objects.{each}" for each in ("list", "insert", "copy", "rewrite", "compose")]
CLASS_B = ["storage.objects.get", "storage.buckets.testIamPermissions"]
"""Deletes, and BigQuery's lists of jobs, are free."""


@dataclass
class Cost:
    """HTTP requests by method, and calls, of which a batch holds many; each of them is billed."""

    requests: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, method: str, number: int = 1) -> None:
        """Requests of one call each."""
        self.requests[method] += number
        self.calls[method] += number

    def together(self, method: str, number: int) -> None:
        """Calls in batches; one alone is sent as it is, and a copy then as a rewrite."""
        whole, rest = divmod(number, BATCH_SIZE)
        if rest == 1:
            self.add("storage.objects.rewrite" if method == "storage.objects.copy" else method)
        self.requests["storage.batch"] += whole + (rest > 1)
        self.calls[method] += number - (rest == 1)

    def __iadd__(self, other: Cost) -> Cost:
        self.requests += other.requests
        self.calls += other.calls
        return self

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.requests - other.requests, self.calls - other.calls)

    @property
    def billed(self) -> tuple[int, int]:
        """Operations of class A, and of class B."""
        return sum(self.calls[each] for each in CLASS_A), sum(self.calls[each] for each in CLASS_B)


def look(
    objects: int, traces: int, projects: int = 1, *, minutes: int = 0, bodies: int = 0, limited: bool = False
) -> Cost:
    """List a task folder, and the jobs of its traces, which belong to the projects in equal parts.

    Jobs whose traces are gone are left out: at BigQuery's 100,000 load jobs a day and project, those of the last
    minutes are less than a page.

    :param minutes: of the ledger: those in which windows ended that are due, and of which nothing is known yet.
    :param bodies: windows of which has to be read by which event their loads are known: each of them once.
    :param limited: whether there is a limit, at which counts what BqTail has not consumed.
    """
    cost = Cost()
    cost.add("storage.objects.list", max(1, ceil(objects / _PAGE)) + limited)
    cost.together("storage.objects.list", minutes)
    cost.add("storage.objects.get", bodies)
    each, more = divmod(traces, projects)
    for number, of_projects in ((each, projects - more), (each + 1, more)):
        if number > FEW:
            slices = min(SLICES, ceil(number / SLICE))
            cost.add("bigquery.jobs.list", of_projects * slices * ceil(number / slices / _PAGE))
        else:
            cost.add("bigquery.jobs.get", of_projects * number)
    return cost


def dispatch(traces: int, windows: int, *, first: bool = True, folders: int = 1, limited: bool = False) -> Cost:
    """Move traces and fire windows.

    Completed intents are deleted a second later (:func:`tidy`), or noted by a process that ends before (:func:`end`).

    :param first: whether this process has not asked before what it may do.
    :param folders: in which the traces lie: in each of them it is seen whether a delete works.
    :param limited: whether windows have a limit, so that it is looked who else has written down that it fires some.
    """
    cost = Cost()
    if first and (traces or windows):
        cost.requests["storage.batch"] += 1
        cost.calls["storage.buckets.testIamPermissions"] += 2
        cost.together("storage.objects.delete", folders if traces else 0)
    cost.add("storage.objects.insert", ceil(windows / MOST))
    cost.add("storage.objects.list", 1 if windows and limited else 0)
    for method in ("compose", "copy", "compose"):
        cost.together(f"storage.objects.{method}", windows)
    for left in range(traces, 0, -ROUND):
        moved = min(left, ROUND)
        intents = ceil(moved / MOST)
        cost.add("storage.objects.insert", intents)
        cost.add("storage.objects.list")
        cost.together("storage.objects.copy", moved)
        cost.together("storage.objects.delete", moved)
    return cost


def end(intents: int) -> Cost:
    """End a process that has completed so many intents less than a second ago: each is noted, and deleted later on."""
    cost = Cost()
    cost.add("storage.objects.insert", intents)
    return cost


def tidy(stale: int) -> Cost:
    """Delete windows and intents that were kept long enough."""
    cost = Cost()
    cost.together("storage.objects.delete", stale)
    return cost


def clean_up(objects: int, firings: int) -> Cost:
    """Forget so many firings that the ledger has remembered long enough, two entries each: once an hour.

    :param objects: in the task folder, which is listed for it.
    """
    cost = Cost()
    cost.add("storage.objects.get", 2)
    cost.add("storage.objects.list", max(1, ceil(objects / _PAGE)) + ceil(2 * firings / _PAGE) + 1)
    for left in range(firings, 0, -_PAGE // 2):
        for _ in ("claim", "fired"):
            cost.together("storage.objects.delete", min(left, _PAGE // 2))
    cost.add("storage.objects.insert")
    return cost


def journal(tasks: int) -> Cost:
    """Read and write what the tasks of one DAG run leave for each other, of which so many dispatch something, once."""
    cost = Cost()
    cost.add("storage.objects.list")
    cost.add("storage.objects.insert", 2 * tasks + 3)
    cost.add("storage.objects.get", 4 * tasks + 1)
    cost.add("storage.objects.get")  # when the ledger was cleaned last
    cost.add("storage.objects.delete", 2 * tasks + 1)
    return cost
