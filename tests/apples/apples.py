"""One bad apple: a fault of one kind of call, for one object, one project or everything, and what comes of all events.

A cell is a task folder with ten good events of two projects and, of a third, bad ones and two that only stand beside
them; three cycles while the fault stays or passes, and more cycles without it. BqTail consumes what it is given between
two cycles.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from world import JOURNAL, TASKS, TRIGGER

TOO_SLOW = "slower than anyone waits"
HTML = "<html><body>Bad gateway</body></html>"
ANSWERS: dict[str, dict[str, Any]] = {
    **{str(status): {"kind": "status", "status": status} for status in (400, 401, 403, 404, 409, 412, 413, 429)},
    **{str(status): {"kind": "status", "status": status} for status in (500, 503)},
    "412 as conditionNotMet": {"kind": "status", "status": 412, "reason": "conditionNotMet"},
    "no answer": {"kind": "reset"},
    "no answer, but carried out": {"kind": "reset", "after": True},
    "503, but carried out": {"kind": "status", "status": 503, "after": True},
    "cut": {"kind": "cut"},
    "HTML": {"kind": "text", "status": 200, "text": HTML},
    "HTML and 502": {"kind": "text", "status": 502, "text": HTML},
    "JSON of another shape": {"kind": "text", "status": 200, "text": '{"kind": "storage#odd", "items": 7, "jobs": 7}'},
    "no object": {"kind": "text", "status": 200, "text": "[1]"},
    "slow": {"kind": "slow", "ms": 1500},
    TOO_SLOW: {"kind": "slow", "ms": 2600},
}
REFUSALS = {"400", "401", "403", "404", "409", "412", "412 as conditionNotMet"}
"""The answers that say that nothing was done, and that asking again is of no use."""

BAD, BAD_PROJECT = "*ds.bad*", "*bad*"
CALLS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "list": ("storage.objects.list", {"bucket": TASKS}, ("everything",)),
    "versions": ("storage.objects.list", {"bucket": TRIGGER}, ("everything",)),
    "get": ("storage.objects.get", {"bucket": TASKS}, ("object", "project", "everything")),
    "intent": ("storage.objects.insert", {"bucket": TASKS}, ("everything",)),
    "journal": ("storage.objects.insert", {"bucket": JOURNAL}, ("everything",)),
    "claim": ("storage.objects.compose", {"bucket": TASKS, "name": "*.claim"}, ("object", "project", "everything")),
    "mark": ("storage.objects.compose", {"bucket": TASKS, "name": "*.fired"}, ("object", "project", "everything")),
    "fence": ("storage.objects.compose", {"bucket": TASKS, "name": "*--dispatch"}, ("object", "project", "everything")),
    "copy": ("storage.objects.copy", {}, ("object", "project", "everything")),
    "rewrite": ("storage.objects.rewrite", {}, ("object", "project", "everything")),
    "delete": ("storage.objects.delete", {"bucket": TASKS}, ("object", "project", "everything")),
    "settings": ("storage.buckets.get", {}, ("everything",)),
    "permissions": ("storage.buckets.testIamPermissions", {}, ("everything",)),
    "batch": ("storage.batch", {}, ("everything",)),
    "jobs.list": ("bigquery.jobs.list", {}, ("project", "everything")),
    "jobs.get": ("bigquery.jobs.get", {}, ("object", "project", "everything")),
}
"""By a short word: the method, where it is made, and whose it may be."""

STAYS, PASSES = "stays", "passes"


@dataclass(frozen=True)
class Cell:
    """One fault.

    :param call: key of ``CALLS``.
    :param answer: key of ``ANSWERS``.
    :param whose: ``object``, ``project`` or ``everything``.
    :param lasts: ``stays`` for three cycles, or ``passes`` after the first call.
    :param limit: ``MaxConcurrentJobs``; 0: none.
    """

    call: str
    answer: str
    whose: str
    lasts: str
    limit: int = 0

    def __str__(self) -> str:
        limit = f", limit {self.limit}" if self.limit else ""
        return f"{self.call}: {self.answer}, {self.whose}, {self.lasts}{limit}"

    def is_alone(self) -> bool:
        """Tell whether what is not concerned does not notice anything.

        Calls to Cloud Storage are sent in batches: a connection, and the time until the answer, are those of all of it.
        """
        kind = ANSWERS[self.answer]["kind"]
        too_slow = kind == "slow" and (self.whose == "project" or self.answer == TOO_SLOW)
        return self.call.startswith("jobs.") or not (kind in ("reset", "cut") or too_slow)

    def is_failure(self) -> bool:
        """Tell whether a call fails. That there is no such job is an answer: its trace waits by name, for a time."""
        return (self.call, self.answer) != ("jobs.get", "404")

    def fault(self) -> tuple[str, dict[str, Any]]:
        """The stand-in's rule."""
        method, where, _ = CALLS[self.call]
        rule = {**where, **ANSWERS[self.answer]}
        if self.whose == "project" and method.startswith("bigquery."):
            rule["project"] = "bad"
        elif self.whose != "everything":
            bad = BAD if self.whose == "object" else BAD_PROJECT
            # Of calls that have a pattern of their own, those for what is bad.
            rule["name"] = bad + where["name"].removeprefix("*") if "name" in where else bad
        if self.lasts == PASSES:
            rule["times"] = 1
        return method, rule


def cells(limits: tuple[int, ...]) -> list[Cell]:
    """All cells that there are.

    A part of a batch cannot be cut by itself.
    """
    return [
        Cell(call, answer, whose, lasts, limit)
        for limit, (call, (_, _, scopes)), answer, lasts in itertools.product(
            limits, CALLS.items(), ANSWERS, (STAYS, PASSES)
        )
        for whose in scopes
    ]


CYCLES = 3
"""Cycles while the fault is there."""


@dataclass
class CellResult:
    """Result of a cell.

    :param struck: how often the fault was met.
    :param first: which events the first cycle has dispatched.
    :param statuses: status of each cycle while the fault was there, and of the last one after it.
    :param errors: of each cycle while the fault was there, and what it tells of by name as waiting in trouble.
    :param delivered: how often each event was delivered, after all.
    :param late: which events were not delivered while the fault was there.
    :param good: the good events.
    :param bad: those of the project that is bad.
    :param passed: cycles that have delivered more of a project than its limit.
    """

    struck: int
    first: set[str]
    statuses: list[str]
    errors: list[list[str]]
    delivered: Counter[str]
    late: set[str]
    good: list[str]
    bad: list[str]
    passed: list[str]

    def wrong(self, cell: Cell) -> list[str]:
        """Name what is not as it has to be."""
        found = [
            f"{name} was delivered {self.delivered[name]} times"
            for name in (*self.good, *self.bad)
            if self.delivered[name] != 1
        ]
        found += self.passed
        if not self.struck:
            found.append("the call was never made")
        if self.statuses[-1] != "ok":
            found.append("the fault is over, and a cycle does not say ok")
        must_fail = cell.lasts == STAYS and cell.is_failure() and bool(self.held_up(cell))
        if must_fail and "error" not in self.statuses[:2]:
            found.append(f"an event waited, and two cycles said {self.statuses[:2]}")
        found += self._idle_slots(cell)
        if cell.whose != "everything":
            for project in ("good", "fine") if cell.is_alone() else ():
                mine = [name for name in self.good if project in name]
                least = min(len(mine), cell.limit or len(mine))
                if (went := len(self.first.intersection(mine))) < least:
                    found.append(f"{went} of {least} good events of project {project} went in the first cycle")
                least = min(len(mine), CYCLES * cell.limit)
                if cell.limit and (went := len(mine) - len(self.late.intersection(mine))) < least:
                    found.append(f"{went} of {least} good events of project {project} went in {CYCLES} cycles")
            if cell.lasts == STAYS and (late := self.held_up(cell)) and not any("bad" in each for each in self.early()):
                found.append(f"{sorted(late)} waited, and two cycles have not named it: {self.early()}")
        elif cell.lasts == STAYS and self.late and not self.early() and not cell.limit:
            found.append(f"{sorted(self.late)} waited, and two cycles said ok")
        return found

    def _idle_slots(self, cell: Cell) -> list[str]:
        """Name the projects that had a slot left in the first cycle while an event waited that nothing was wrong with.

        What was refused for sure takes no slot. What may have been delivered does.
        """
        if cell.whose != "object" or cell.answer not in REFUSALS or cell.call not in ("claim", "copy", "get"):
            return []
        everybody, found = (*self.good, *self.bad), []
        for project in {project_of(name) for name in everybody}:
            mine = [name for name in everybody if project_of(name) == project]
            well = [name for name in mine if "ds.bad" not in name]
            least = min(len(well), cell.limit or len(well))
            # Under a limit one that was refused once may have its slot, too.
            if (went := len(self.first.intersection(mine if cell.limit else well))) < least:
                found.append(f"{went} of {least} events beside the bad ones of {project} went in the first cycle")
        return found

    def held_up(self, cell: Cell) -> set[str]:
        """The events that the fault has held up; under a limit some wait for their turn only."""
        if not cell.limit:
            return self.late
        everybody, held = (*self.good, *self.bad), set()
        for project in {project_of(name) for name in everybody}:
            mine = [name for name in everybody if project_of(name) == project]
            late = self.late.intersection(mine)
            if len(late) > max(0, len(mine) - CYCLES * cell.limit):
                held |= late.intersection(self.bad)
        return held

    def early(self) -> list[str]:
        """The errors of the first two cycles."""
        return [*self.errors[0], *self.errors[1]]


class Folder:
    """A task folder with good and bad events."""

    def __init__(self, world: Any, limit: int) -> None:
        self.world, self.more = world, {"MaxConcurrentJobs": limit} if limit else {}
        self.good = [name for project in ("good", "fine") for name in world.traces(4, project=project)]
        self.good += [world.window(f"{project}:ds.w", due=30) for project in ("good", "fine")]
        self.bad = [
            world.trace(project="bad", dest="ds.bad", age=200),
            world.window("bad:ds.bad", due=40),
            world.trace(project="bad", dest="ds.near"),
            world.window("bad:ds.near", due=30),
        ]
        self.delivered: Counter[str] = Counter()
        self.passed: list[str] = []

    def put_many(self) -> None:
        """Put so many bad traces there that their jobs are listed, and not looked up one by one."""
        self.bad += self.world.traces(5, project="bad", dest="ds.bad", age=200)

    def put_doubt(self) -> None:
        """Let a dispatcher that has died leave doubt, so that there is something to fence."""
        moves = [[name, int(self.world.blob(name).generation)] for name in (self.bad[0], self.good[0])]
        document = {"version": 1, "owner": "gone", "moves": moves}
        self.world.put("intents/gone-000001.json", age=100, content=json.dumps(document))

    def cycle(self) -> dict[str, Any]:
        """Run one dispatcher, and let BqTail consume what it has delivered."""
        with self.world.dispatcher(**self.more) as dispatcher:
            document = dispatcher.run(time_to_live=0).to_dict()
        self.consume()
        return document

    def consume(self) -> None:
        """Consume without the fault, which is the dispatcher's."""
        faults = self.world.control.faults()
        self.world.control.clear_faults()
        delivered = self.world.names(TRIGGER)
        self.world.control.advance(1)
        limit = self.more.get("MaxConcurrentJobs", 0)
        projects = Counter(project_of(event_of(path)) for path in delivered)
        self.passed += [f"{each} of {project}, over {limit}" for project, each in projects.items() if each > limit > 0]
        for path in delivered:
            self.delivered[event_of(path)] += 1
            self.world.client.bucket(TRIGGER).blob(path).delete()
        self.world.control.advance(40)
        for fault in faults:
            self.world.control.add_fault(**{name: value for name, value in fault.items() if value is not None})


def event_of(path: str) -> str:
    """The name of the event that was delivered to a path of the trigger bucket."""
    if path.startswith("_batch_/"):
        return path.removeprefix("_batch_/")
    return path.split("/", 2)[2].removesuffix(".json")


def project_of(event: str) -> str:
    """The project under whose limit an event counts: windows load in the configuration's."""
    return event.split(":")[1] if event.startswith("proj:") else "p"


def carry_out(world: Any, cell: Cell) -> CellResult:
    """Carry out one cell in an empty world."""
    folder = Folder(world, cell.limit)
    if cell.call in ("fence", "versions", "settings"):
        folder.put_doubt()
    if cell.call == "jobs.list":
        folder.put_many()
    method, rule = cell.fault()
    world.control.reset_counters()
    if cell.call == "rewrite":
        # What is too large for one copy is written by rewrites.
        world.control.add_fault("storage.objects.copy", kind="status", status=413, name=rule.get("name", "*"))
    world.control.add_fault(method, **rule)
    errors: list[list[str]] = []
    statuses: list[str] = []
    first: set[str] = set()
    for number in range(CYCLES):
        document = folder.cycle()
        if not number:
            first = {url.removeprefix(world.url_of("")) for url in (*document["Jobs"], *document["Batched"])}
        statuses.append(document["Status"])
        errors.append([*document["Errors"], *(name for name, each in document["Waiting"].items() if "Times" in each)])
    struck = world.control.calls().get(method, 0)
    late = {name for name in (*folder.good, *folder.bad) if not folder.delivered[name]}
    world.control.clear_faults()
    for _ in range(12 if cell.limit else 5):
        world.control.advance(200)
        document = folder.cycle()
    statuses.append(document["Status"])
    return CellResult(struck, first, statuses, errors, folder.delivered, late, folder.good, folder.bad, folder.passed)


def table(rows: list[tuple[str, str, str, int, str]]) -> list[str]:
    """Return the lines of a table of cells: of how many all events went while the fault was there, or were named.

    :param rows: of each cell its call, whose it was, how long it lasted, the limit, and ``dispatched``, ``named`` or
        ``wrong``.
    """
    counted = Counter((call, whose, lasts, limit, result) for call, whose, lasts, limit, result in rows)
    limits = sorted({limit for _, _, _, limit, _ in rows})
    columns = [(lasts, limit) for limit in limits for lasts in (PASSES, STAYS)]
    names = [f"{lasts}{f', limit {limit}' if limit else ''}" for lasts, limit in columns]
    lines = [f"| call | of | {' | '.join(names)} |", f"| --- | --- |{' --- |' * len(names)}"]
    for call, (_, _, scopes) in CALLS.items():
        for whose in scopes:
            told = []
            for lasts, limit in columns:
                went, named, wrong = (
                    counted[call, whose, lasts, limit, result] for result in ("dispatched", "named", "wrong")
                )
                told.append(f"{went} + {named}" + (f", **{wrong} wrong**" if wrong else ""))
            lines.append(f"| `{call}` | {'one ' if whose != 'everything' else ''}{whose} | {' | '.join(told)} |")
    total = Counter(result for *_, result in rows)
    lines += ["", f"{len(rows):,} cells, of which {total['wrong']} are wrong."]
    return lines
