"""Count what a cycle costs: its requests, and the calls in them, as the dispatcher makes them. Nothing is sent.

``tests/dispatch/test_scale.py`` holds these against what the dispatcher really asks for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil

from bqdispatch_provider.cycle.dispatching import MAX_TRACES_PER_ROUND
from bqdispatch_provider.delivery.own_intents import MAX_EVENTS_PER_INTENT
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE
from bqdispatch_provider.gcp.job_search import MAX_LISTS, MAX_LOOKUPS_WITHOUT_LIST, TRACES_PER_LIST
from bqdispatch_provider.gcp.storage_calls import PAGE_SIZE

A, B = 0.005 / 1000, 0.0004 / 1000
"""Dollars of an operation of either class (docs/scale.md says where from)."""

CLASS_A = [f"storage.objects.{each}" for each in ("list", "insert", "copy", "rewrite", "compose")]
CLASS_B = ["storage.objects.get", "storage.buckets.testIamPermissions"]
"""Deletes, and BigQuery's lists of jobs, are free."""


@dataclass
class Cost:
    """HTTP requests and calls, by method. A batch holds many calls, and each call is billed."""

    requests: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, method: str, number: int = 1) -> None:
        """Add requests of one call each."""
        self.requests[method] += number
        self.calls[method] += number

    def together(self, method: str, number: int) -> None:
        """Add calls in batches. A single one is sent as it is, and a single copy as a rewrite."""
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
        """Return the number of operations of class A, and of class B."""
        return sum(self.calls[each] for each in CLASS_A), sum(self.calls[each] for each in CLASS_B)


def look(
    objects: int, traces: int, projects: int = 1, *, minutes: int = 0, bodies: int = 0, limited: bool = False
) -> Cost:
    """List a task folder, and the jobs of its traces, which belong to the projects in equal parts.

    Jobs whose traces are gone are left out: at BigQuery's 100,000 load jobs a day and project, those of the last
    minutes are less than a page.

    :param minutes: minutes of the ledger to list: those in which due windows ended that are not known yet.
    :param bodies: windows to read, to learn by which event their loads are known: each window once.
    :param limited: there is a limit, so what BqTail has not consumed counts and is listed.
    """
    cost = Cost()
    cost.add("storage.objects.list", max(1, ceil(objects / PAGE_SIZE)) + limited)
    cost.together("storage.objects.list", minutes)
    cost.add("storage.objects.get", bodies)
    each, more = divmod(traces, projects)
    for number, of_projects in ((each, projects - more), (each + 1, more)):
        if number > MAX_LOOKUPS_WITHOUT_LIST:
            slices = min(MAX_LISTS, ceil(number / TRACES_PER_LIST))
            cost.add("bigquery.jobs.list", of_projects * slices * ceil(number / slices / PAGE_SIZE))
        else:
            cost.add("bigquery.jobs.get", of_projects * number)
    return cost


def dispatch(traces: int, windows: int, *, first: bool = True, folders: int = 1, limited: bool = False) -> Cost:
    """Move traces and fire windows.

    Completed intents are deleted a second later (:func:`clean_up`), or marked by a process that ends before
    (:func:`end`).

    :param first: this process has not tested its permissions yet.
    :param folders: number of folders with traces: in each one, the first delete is a test.
    :param limited: windows have a limit, so the intents of other dispatchers are listed.
    """
    cost = Cost()
    if first and (traces or windows):
        cost.requests["storage.batch"] += 1
        cost.calls["storage.buckets.testIamPermissions"] += 2
        cost.together("storage.objects.delete", folders if traces else 0)
    cost.add("storage.objects.insert", ceil(windows / MAX_EVENTS_PER_INTENT))
    cost.add("storage.objects.list", 1 if windows and limited else 0)
    for method in ("compose", "copy", "compose"):
        cost.together(f"storage.objects.{method}", windows)
    for left in range(traces, 0, -MAX_TRACES_PER_ROUND):
        moved = min(left, MAX_TRACES_PER_ROUND)
        intents = ceil(moved / MAX_EVENTS_PER_INTENT)
        cost.add("storage.objects.insert", intents)
        cost.add("storage.objects.list")
        cost.together("storage.objects.copy", moved)
        cost.together("storage.objects.delete", moved)
    return cost


def end(intents: int) -> Cost:
    """End a process.

    :param intents: those that it completed less than a second ago: each is noted, and deleted later.
    """
    cost = Cost()
    cost.add("storage.objects.insert", intents)
    return cost


def clean_up(stale: int) -> Cost:
    """Delete windows and intents that were kept long enough."""
    cost = Cost()
    cost.together("storage.objects.delete", stale)
    return cost


def delete_old_entries(objects: int, firings: int) -> Cost:
    """Remove old firings from the ledger, once an hour.

    :param objects: objects in the task folder, which is listed.
    :param firings: firings to remove, with two entries each.
    """
    cost = Cost()
    cost.add("storage.objects.get", 2)
    cost.add("storage.objects.list", max(1, ceil(objects / PAGE_SIZE)) + 1)
    while firings:
        more = firings > PAGE_SIZE // 2  # then the last firing of the page is left to the next one
        deleted = PAGE_SIZE // 2 - 1 if more else firings
        cost.add("storage.objects.list", more)
        for _ in ("claim", "fired"):
            cost.together("storage.objects.delete", deleted)
        firings -= deleted
    cost.add("storage.objects.insert")
    return cost


def history(*, first: bool = False) -> Cost:
    """Write the figures of a run into the history, and see what BqTail has not consumed, of traces and of windows.

    It also asks whether old documents were looked for within an hour.

    :param first: whether it is the first run of an hour: it finds no document, and looks for old ones.
    """
    cost = Cost()
    cost.add("storage.objects.get", 2 if first else 3)
    cost.add("storage.objects.insert", 2 if first else 1)
    cost.add("storage.objects.list", 4 if first else 2)
    return cost


def journal(tasks: int) -> Cost:
    """Read and write what the tasks of one DAG run leave for each other.

    :param tasks: those that dispatch something, each once.
    """
    cost = Cost()
    cost.add("storage.objects.list", tasks + 1)
    cost.add("storage.objects.insert", 2 * tasks + 3)
    cost.add("storage.objects.get", 2 * tasks + 1)
    cost.add("storage.objects.get")  # when the ledger was cleaned last
    cost.add("storage.objects.delete", 2 * tasks + 1)
    return cost
