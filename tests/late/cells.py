"""Storage events that come after their window was fired: every case of docs/protocol.md, "Late events", as a cell.

A cell lets files land, has their window fired and carried out, sends a late event, and goes on until nothing moves any
more: stand-in cloud, stand-in BqTail and dispatcher, by the stand-in's clock. It tells what became of each file.
"""

import itertools
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace

import requests
from world import SOFT_DELETE, TASKS, World

from bqdispatch_provider.testing.bqtail import BqTailSettings, Rule, StandInBqTail

ONE_FOLDER, MANY_FOLDERS = "one folder", "many folders"
KNOWN, KNOWN_TOO, NEW = "known folder", "known folder, not the source's", "new folder"
KNOWN_THEN_NEW, NEW_THEN_KNOWN = "known, then new", "new, then known"
FOLDERS = {
    KNOWN: [("known", "f1")],
    KNOWN_TOO: [("known", "f2")],
    NEW: [("new", "f3")],
    KNOWN_THEN_NEW: [("known", "f1"), ("new", "f3")],
    NEW_THEN_KNOWN: [("new", "f3"), ("known", "f2")],
}
"""By kind of a late event, the files whose events come late, in their order, and the folder of each. The first window's
source lies in f1; a window of many folders knows f2 by a ``.loc`` object."""
KINDS = ((ONE_FOLDER, KNOWN), *((MANY_FOLDERS, late) for late in FOLDERS))
DELAYS = {5: "+5 s", 90: "+90 s", 30 * 60: "+30 min", 20 * 3600: "+20 h"}
RUNNING, LOADED, FAILED, RETRIED, DROPPED = FIRSTS = ("running", "loaded", "failed", "retried", "dropped")
"""``failed``: for good, its files stay. ``retried``: BqTail has loaded them again under an event ID of its own."""

ONCE, BADLY, NAMED, DOUBLED, LOST = "once", "failed", "named", "DOUBLED", "LOST"
"""What becomes of a file: loaded once; its only load failed, as BqTail says itself; an error of a report names it or
its window; loaded twice; nothing at all, and nobody says so. From good to bad: a cell is as good as its worst file."""
RESULTS = (ONCE, BADLY, NAMED, DOUBLED, LOST)

WINDOW_S = 60
NOON = 1_772_366_400
"""A moment at which a window begins."""

BETWEEN = (3.5, 30, 75, 150, 200, 700, 1500, 3700, 20_000)
"""Seconds after the firing at which a dispatcher runs, until the event comes."""

AFTERWARDS = (2, 10, 40, 130, 200, 420, 700, 1100, 1800, 3700, 7400, 15_000, 90_000)
"""Seconds after the event at which one runs: by the last, whatever can be decided is."""

RUNS_ON_S = 120
"""Seconds for which a load that is running when the event comes still goes on."""


@dataclass(frozen=True, order=True)
class Cell:
    """One case.

    :param rule: whether a window has one folder or many.
    :param late: which folders' events come late.
    :param delay: seconds between the firing and the event.
    :param deletes: whether the chain deletes what it has loaded.
    :param first: what became of the first firing by then.
    """

    rule: str
    late: str
    delay: int
    deletes: bool
    first: str

    def __str__(self):
        deletes = "deleted" if self.deletes else "kept"
        return f"{self.rule}, {self.late}, {DELAYS[self.delay]}, {deletes}, {self.first}"


CELLS = [
    Cell(rule, late, delay, deletes, first)
    for (rule, late), delay, deletes, first in itertools.product(KINDS, DELAYS, (True, False), FIRSTS)
]


class Killed(BaseException):
    """The process is dead: nothing that it would send gets out any more."""


class Calls:
    """The requests of dispatchers, counted, one of which is the last.

    :param kill_at: the request at which the dispatcher dies; ``None``: it does not.
    :param after: whether that request still gets through.
    """

    def __init__(self, kill_at=None, after=False):
        self.count = 0
        self.killed = False
        self._dead = False
        self._kill_at, self._after = kill_at, after
        self._lock = threading.Lock()

    @contextmanager
    def of_a_dispatcher(self):
        """Count, and kill; pauses are about load, which nobody has here."""
        send, sleep = requests.Session.send, time.sleep
        self._dead = False
        requests.Session.send = lambda session, request, **more: self._send(send, session, request, **more)
        time.sleep = lambda seconds: sleep(min(seconds * 0.02, 0.1))
        try:
            yield
        except Killed:
            self.killed = True
        finally:
            requests.Session.send, time.sleep = send, sleep

    def _send(self, send, session, request, **more):
        with self._lock:
            self.count += 1
            mine = self.count == self._kill_at
            self._dead = self._dead or mine
            if self._dead and not (mine and self._after):
                raise Killed
        response = send(session, request, **more)
        if self._dead:
            raise Killed
        return response


@dataclass(frozen=True)
class Result:
    """What became of a cell.

    :param cell: the cell.
    :param files: by file, what became of it.
    :param first: what had become of the first firing when the event came; empty: it had not been carried out.
    :param errors: the errors of all reports, each once.
    :param account: BqTail's account.
    :param calls: how many requests dispatchers made.
    :param killed: whether one was killed.
    """

    cell: Cell
    files: dict
    first: str
    errors: tuple
    account: object
    calls: int
    killed: bool

    @property
    def worst(self):
        """What became of the file that fared worst."""
        return max(self.files.values(), key=RESULTS.index)

    @property
    def ok(self):
        """Whether no file is lost, and none loaded twice, in the case that was to be tried."""
        return self.worst not in (LOST, DOUBLED) and (self.killed or self.first == self.cell.first)

    def __str__(self):
        files = ", ".join(f"{name} {what}" for name, what in self.files.items())
        first = f"the first firing was {self.first or 'not carried out'} by then"
        return "\n".join(
            [f"{self.cell}: {files}; {first}", *(f"  error: {each}" for each in self.errors), str(self.account)]
        )


class Trial:
    """A cell that is carried out, once.

    :param url: scheme and host of the stand-in cloud, which is emptied.
    :param control: its control.
    :param cell: the cell.
    :param dispatch: runs a cycle over a :class:`~world.World` and gives its errors; ours when left out.
    :param calls: counts the dispatchers' requests, and kills them.
    :param one_run: whether one dispatcher makes all cycles; otherwise each has one of its own.
    """

    DEST = "ds.t"

    def __init__(self, url, control, cell, dispatch=None, calls=None, one_run=False):
        control.reset()
        self.world = World(url, control, SOFT_DELETE)
        control.set_clock(NOON + 5)
        self.cell, self.control, self.calls = cell, control, calls or Calls()
        self._dispatch, self._one_run, self._dispatcher = dispatch or self._cycle, one_run, None
        self._errors, self._first = {}, ""
        lasts_ms = (cell.delay + RUNS_ON_S) * 1000 if cell.first == RUNNING else 1000
        settings = BqTailSettings.for_dispatcher(
            self.world.config(),
            window_s=WINDOW_S,
            rules={self.DEST: Rule(multi_path=cell.rule == MANY_FOLDERS)},
            chain=("load",),
            then=("delete", "notify") if cell.deletes else ("notify",),
            pending_ms=(0, 0),
            running_ms=(lasts_ms, lasts_ms),
            failing=1.0 if cell.first in (FAILED, RETRIED) else 0.0,
            failing_by="backendError" if cell.first == RETRIED else "invalid",
        )
        self.bqtail = StandInBqTail(self.world.client, requests.Session(), url, settings)
        self.files = {}

    def run(self):
        """Carry the cell out, and tell what became of it."""
        try:
            late = self._land()
            self.control.advance(WINDOW_S + 5)  # ten seconds after the window's end
            if self.cell.first == DROPPED:
                self.bqtail.forget_rule(self.DEST)
            self._cycle_and_consume()
            fired = self.control.now()
            self._cycles(fired, [each for each in BETWEEN if each < self.cell.delay])
            self._wait_until(fired + self.cell.delay)
            self._first = self._became_of_the_first_firing()
            for file in late:
                self.bqtail.late_event(file)
                self.control.advance(1.2)
            self._cycles(fired + self.cell.delay, AFTERWARDS)
        finally:
            if self._dispatcher is not None:
                self._dispatcher.close()
        return self._result()

    def _land(self):
        """Let files land; gives those whose events come late, in their order."""
        put = self.bqtail.put_file
        self.files["first"] = put(self.DEST, folder="f1")
        if self.cell.rule == MANY_FOLDERS:
            self.control.advance(1.2)
            self.files["second"] = put(self.DEST, folder="f2")
        late = FOLDERS[self.cell.late]
        for name, folder in late:
            self.files[name] = put(self.DEST, folder=folder, event_delay=None)
        return [self.files[name] for name, _ in late]

    def _cycles(self, since, offsets):
        for offset in offsets:
            self._wait_until(since + offset)
            self._cycle_and_consume()

    def _wait_until(self, moment):
        self.control.advance(max(moment - self.control.now(), 0))

    def _cycle_and_consume(self):
        for error in self._dispatch(self.world):
            self._errors[error] = None
        self.control.advance(1.2)  # no name changes twice within a second
        while self.bqtail.step():
            self.control.advance(1.2)
        if self.bqtail.account().jobs:  # the first load was submitted: those that come after it do well
            self.bqtail.settings = replace(self.bqtail.settings, failing=0.0, running_ms=(1000, 1000))

    def _cycle(self, world):
        """Run a cycle of our dispatcher; a dead one gives nothing, and another comes after it."""
        errors = []
        with self.calls.of_a_dispatcher():
            dispatcher = self._dispatcher or world.dispatcher()
            self._dispatcher = dispatcher if self._one_run else None
            alive = False
            try:
                errors = dispatcher.cycle().errors
                alive = True
            finally:
                if not (alive and self._one_run):
                    self._dispatcher = None
                    dispatcher.close()
        return errors

    def _result(self):
        account = self.bqtail.account()
        kinds = {problem.file: problem.kind for problem in account.problems}
        files = {name: self._became(file, kinds, account) for name, file in self.files.items()}
        return Result(self.cell, files, self._first, tuple(self._errors), account, self.calls.count, self.calls.killed)

    def _became_of_the_first_firing(self):
        account = self.bqtail.account()
        if account.dropped or not account.jobs:
            return DROPPED if account.dropped else ""
        job = account.jobs[0]
        url = f"{self.world.url}/bigquery/v2/projects/{job.project}/jobs/{job.job_id}"
        status = self.world.session.get(url, params={"location": job.location}).json()["status"]
        if status["state"] != "DONE":
            return RUNNING
        if "errorResult" not in status:
            return LOADED
        return RETRIED if len(account.jobs) > 1 else FAILED

    def _became(self, file, kinds, account):
        kind = kinds.get(file.name)
        if kind == "doubled":
            return DOUBLED
        if kind == "missing":
            return NAMED if self._is_named(file) else LOST
        return ONCE if account.loads[f"gs://{self.bqtail.settings.trigger_bucket}/{file.name}"] else BADLY

    def _is_named(self, file):
        names = [file.name, file.window.removesuffix(".win"), *filter(None, [file.location])]
        return any(name in error for error in self._errors for name in names)


def run(url, control, cell, **more):
    """Carry a cell out.

    :param url: scheme and host of the stand-in cloud.
    :param control: its control.
    :param cell: the cell.
    """
    return Trial(url, control, cell, **more).run()


def run_killed(url, control, cell, points=None):
    """Carry a cell out again and again, killing the dispatcher before and after each of its calls in turn.

    :param url: scheme and host of the stand-in cloud.
    :param control: its control.
    :param cell: the cell.
    :param points: which of the calls; all when left out.
    """
    for kill_at in itertools.count(1) if points is None else points:
        for after in (False, True):
            result = run(url, control, cell, calls=Calls(kill_at, after))
            if not result.killed:
                return
            yield kill_at, after, result


def table(results):
    """Lines of a table: a row for each kind and delay, a column for what became of the first firing.

    :param results: of all cells.
    """
    by_cell = {result.cell: result.worst for result in results}
    columns = [(first, deletes) for first in FIRSTS for deletes in (True, False)]
    heads = [f"{first}, files {'deleted' if deletes else 'kept'}" for first, deletes in columns]
    lines = [
        f"| window | late event | after the firing | {' | '.join(heads)} |",
        f"| {' | '.join(['---'] * (3 + len(heads)))} |",
    ]
    for (rule, late), (delay, words) in itertools.product(KINDS, DELAYS.items()):
        found = [by_cell.get(Cell(rule, late, delay, deletes, first), "") for first, deletes in columns]
        lines.append(f"| {' | '.join([rule, late, words, *found])} |")
    return lines


def totals(results):
    """How many cells came to what, in words.

    :param results: of cells.
    """
    counts = Counter(result.worst for result in results)
    words = {
        ONCE: "with each file loaded exactly once",
        BADLY: "in which a file's only load failed, as BqTail's journal says",
        NAMED: "in which a report names what was not loaded",
        DOUBLED: "in which a file was loaded twice",
        LOST: "in which a file was lost",
    }
    return ", ".join(f"{counts[each]:,} {words[each]}" for each in RESULTS if counts[each] or each in (DOUBLED, LOST))


__all__ = ["CELLS", "TASKS", "Calls", "Cell", "Result", "Trial", "run", "run_killed", "table", "totals"]
