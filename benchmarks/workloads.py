"""Workloads of the benchmarks: what fills a task folder, and what a cycle has to make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

from bqdispatch_provider.core.targets import ledger_entry_name
from bqdispatch_provider.testing.standin import StandInControl

TASKS = "gs://ops/tasks/"
DOCUMENT = {
    "ProjectID": "p",
    "AsyncTaskURL": TASKS,
    "JournalURL": "gs://journal/journal/",
    "ErrorURL": "gs://journal/errors/",
}
HOUR = 3600
"""Traces were written, and their jobs submitted, evenly over this many seconds before now."""


@dataclass(frozen=True)
class Workload:
    """Work for one cycle.

    :param title: for the table.
    :param listed: objects in the task folder.
    :param finished: of these, how many have to be dispatched.
    :param fill: fills the task folder.
    :param target: what must be reached at 30 ms a request: seconds, requests, and perhaps CPU milliseconds an event
        or megabytes.
    :param changes: whether a cycle changes the folder, so that it has to be filled anew for each.
    :param status: what the response document has to say.
    """

    title: str
    listed: int
    finished: int
    fill: Callable[[StandInControl, int, int], None]
    target: str
    runs: int = 5
    changes: bool = True
    status: str = "ok"


def traces(projects: int) -> Callable[[StandInControl, int, int], None]:
    """Return what writes traces of several projects; the finished ones are spread evenly among them."""

    def fill(control: StandInControl, listed: int, finished: int) -> None:
        now, every = control.now(), listed // finished if finished else 0

        def each() -> Iterator[tuple[str, str, float, bool]]:
            for number in range(listed):
                project = f"p{number % projects}" if projects > 1 else "p"
                name = f"ds.t{number % 100}--{10**15 + number}_00001_load--dispatch"
                yield project, name, now - 60 - HOUR * (1 - number / listed), bool(every) and number % every == 0

        for chunk in _chunks(each()):
            control.seed_objects(
                "ops",
                [
                    {"name": f"tasks/proj:{project}:US/{name}", "content": BODY, "timeCreated": created}
                    for project, name, created, _ in chunk
                ],
            )
            control.seed_jobs(
                {
                    "project": project,
                    "jobId": name.replace(".", "_"),
                    "creationTime": created + 1,
                    "runningMs": 0 if done else 10**9,
                }
                for project, name, created, done in chunk
            )

    return fill


def windows(control: StandInControl, listed: int, finished: int) -> None:
    """Write due windows."""
    now = control.now()
    for chunk in _chunks(iter(range(listed))):
        control.seed_objects(
            "ops",
            [
                {
                    "name": f"tasks/ds.t{n}_{10**9 + n}_{int(now) - 60 - n % 60}.win",
                    "content": BODY,
                    "timeCreated": now - 200,
                }
                for n in chunk
            ],
        )


def both(due: int) -> Callable[[StandInControl, int, int], None]:
    """Return what writes finished traces of one project, and due windows beside them."""
    ended = traces(1)

    def fill(control: StandInControl, listed: int, finished: int) -> None:
        ended(control, listed - due, finished - due)
        windows(control, due, due)

    return fill


def behind(days: int) -> Callable[[StandInControl, int, int], None]:
    """Return what writes traces with running jobs in two projects, and a ledger with days of 100 tables.

    The windows that were fired in the last two minutes are still there.
    """
    a_day, waiting = 120_000, traces(2)

    def fill(control: StandInControl, listed: int, finished: int) -> None:
        now, kept = control.now(), listed - WAITING
        every = 86_400 / a_day

        def fired() -> Iterator[tuple[str, float]]:
            for number in range(a_day * days):
                end = now - 10 - number * every
                yield f"ds.t{number % 100}_{10**9 + number}_{int(end)}.win", end + 8

        there = control.seed_objects(
            "ops",
            [{"name": f"tasks/{name}", "content": BODY, "timeCreated": at - 90} for name, at in islice(fired(), kept)],
        )
        control.seed_objects("journal", ["journal/ledger.json"])  # nobody has to clean up within the hour
        generations = chain(there, repeat(1))
        for chunk in _chunks(fired()):
            control.seed_objects(
                "ops",
                [
                    {
                        "name": f"tasks/{ledger_entry_name(name, generation, what, TASKS)}",
                        "content": BODY,
                        "timeCreated": at,
                    }
                    for (name, at), generation in zip(chunk, generations, strict=False)
                    for what in ("claim", "fired")
                ],
            )
        waiting(control, WAITING, finished)

    return fill


def old(jobs: int, region: str) -> Callable[[StandInControl, int, int], None]:
    """Return what writes traces of six hours ago whose jobs are still running.

    :param jobs: submitted in the project since.
    :param region: in the traces' names; empty when only their content says it, as BqTail writes it.
    """

    def fill(control: StandInControl, listed: int, finished: int) -> None:
        created = control.now() - 6 * HOUR
        names = [f"ds.old--{10**15 + number}_00001_load--dispatch" for number in range(listed)]
        ids = [name.replace(".", "_") for name in names]
        reference = [{"projectId": "p", "location": "asia-northeast1", "jobId": job} for job in ids]
        control.seed_objects(
            "ops",
            [
                {
                    "name": f"tasks/proj:p:{region}/{name}",
                    "content": json.dumps({"Job": {"jobReference": each}}),
                    "timeCreated": created,
                }
                for name, each in zip(names, reference, strict=True)
            ],
        )
        control.seed_jobs(
            {**each, "creationTime": created + 1, "runningMs": 10**9}
            for each in ({"project": "p", "location": "asia-northeast1", "jobId": job} for job in ids)
        )
        for chunk in _chunks(iter(range(jobs))):
            control.seed_jobs(
                {"project": "p", "jobId": f"other-{n}", "creationTime": created + 5 + (6 * HOUR - 10) * n / jobs}
                for n in chunk
            )

    return fill


def one_dead(projects: int) -> Callable[[StandInControl, int, int], None]:
    """Return what writes finished traces in several projects, one of which answers every request with 503."""
    healthy = traces(projects)

    def fill(control: StandInControl, listed: int, finished: int) -> None:
        healthy(control, listed, listed)
        control.add_fault("bigquery.*", "status", status=503, project=f"p{projects - 1}")

    return fill


def nothing(control: StandInControl, listed: int, finished: int) -> None:
    """Leave the folder empty."""
    control.seed_objects("ops", [])


WAITING, KEPT = 200, 160
"""Traces that wait in a folder with days behind it, and windows that were fired in the last two minutes."""

BODY = json.dumps({"Actions": [{"Action": "delete", "Request": {"URLs": [f"gs://data/{n}.csv" for n in range(10)]}}]})

WORKLOADS = {
    "finished": Workload(
        "10,000 finished traces, one project", 10_000, 10_000, traces(1), "6 s, 300 requests, 0.5 ms CPU an object"
    ),
    "projects": Workload("the same, spread over 50 projects", 10_000, 10_000, traces(50), "8 s"),
    "waiting": Workload("5,000 waiting, 2 % finished", 5_000, 100, traces(1), "1.5 s, 30 requests"),
    "backlog": Workload(
        "100,000 waiting, 1 % finished", 100_000, 1_000, traces(1), "10 s, 300 requests, 300 MB", runs=3
    ),
    "windows": Workload("2,000 due windows", 2_000, 2_000, windows, "5 s, 250 requests"),
    "both": Workload("10,000 finished traces and 100 due windows", 10_100, 10_100, both(100), "6 s"),
    "day": Workload(
        "200 waiting traces, a day of 100 tables behind them", 360, 0, behind(1), "0.5 s, 8 requests", changes=False
    ),
    "week": Workload("the same, eight days behind them", 360, 0, behind(8), "0.5 s, 8 requests", changes=False),
    "old": Workload(
        "60 old running traces, 38,000 jobs submitted since",
        60,
        0,
        old(38_000, "asia-northeast1"),
        "5 s",
        changes=False,
    ),
    "unplaced": Workload(
        "a running trace without region, 250,000 jobs since", 1, 0, old(250_000, ""), "5 s", runs=3, changes=False
    ),
    "dead": Workload(
        "1,000 finished traces in ten projects, one of which answers 503",
        1_000,
        900,
        one_dead(10),
        "5 s",
        runs=15,  # the pauses before it is asked again are random, and most of the time
        status="error",
    ),
    "idle": Workload("an idle cycle", 0, 0, nothing, "1 request"),
}


def fill(workload: Workload, control: StandInControl) -> None:
    """Reset a stand-in, and fill it for a workload."""
    control.reset()
    for bucket in ("p_bqtail", "journal"):
        control.seed_objects(bucket, [])
    workload.fill(control, workload.listed, workload.finished)


def _chunks(items: Iterator[Any], size: int = 10_000) -> Iterator[list[Any]]:
    while chunk := [item for _, item in zip(range(size), items, strict=False)]:
        yield chunk
