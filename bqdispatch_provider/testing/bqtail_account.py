"""The stand-in BqTail's account: what became of every event, and in a sentence why it did not go through once.

:class:`Account` is what a caller gets, :class:`Ledger` what BqTail writes down as it works.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.testing.bqtail_bodies import KINDS, TraceBody, WindowBody

if TYPE_CHECKING:
    from rich.table import Table

_FIRST_EVENT_ID = 1_000_000_000_000_000
_NEXT_EVENT_ID = 7_919  # as in real ones, no ID is its neighbour's plus one


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that landed in the trigger bucket, and with it one event.

    :param event_id: ID of the storage event.
    :param dest: destination table.
    :param name: the object's name in the trigger bucket.
    :param time: when it landed, by the storage server's clock.
    :param window: name of its batch window; ``None`` without batching.
    :param location: path of the ``.loc`` object that names its folder; ``None`` unless its window gathers many folders.
    """

    event_id: str
    dest: str
    name: str
    time: datetime
    window: str | None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job as it was submitted to BigQuery.

    :param project: project of the job.
    :param location: location of the job; empty: none was given.
    :param job_id: its ID.
    :param kind: ``load``, ``copy``, ``query`` or ``extract``.
    :param chain: event ID of its chain.
    :param traced: whether it has a trace.
    :param accepted: ``False`` when BigQuery refused the ID as one that it knew already.
    """

    project: str
    location: str
    job_id: str
    kind: str
    chain: str
    traced: bool
    accepted: bool


@dataclass(frozen=True, slots=True)
class ChainAccount:
    """What became of one chain.

    :param event_id: event that began it.
    :param dest: destination table.
    :param files: URIs that its accepted load jobs read, those of failed ones left out.
    :param rows: how often its row was streamed; BigQuery does not deduplicate them.
    :param messages: what it sent.
    :param finished: how often it ran to an end.
    :param failed: whether that end was a failed job.
    """

    event_id: str
    dest: str
    files: tuple[str, ...]
    rows: int
    messages: tuple[str, ...]
    finished: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """An event that did not go through exactly once.

    :param event_id: ID of the event.
    :param file: name of its data file.
    :param kind: ``missing`` or ``doubled``.
    :param why: a sentence.
    """

    event_id: str
    file: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: event {self.event_id} ({self.file}): {self.why}"


@dataclass(frozen=True, slots=True)
class Counters:
    """Figures for a live table. The first four count events, the rest count objects taken out of the trigger bucket.

    :param events: all of them; the sum of the next three.
    :param waiting: events whose file no job has loaded yet.
    :param running: events in a chain that has not finished.
    :param finished: events in a finished chain.
    :param batches: windows that arrived under the batch prefix.
    :param dispatched: traces that arrived under the post job prefix.
    :param consumed: both of them, and what could not be read.
    """

    events: int
    waiting: int
    running: int
    finished: int
    batches: int
    dispatched: int
    consumed: int


@dataclass(frozen=True, slots=True)
class Account:
    """What became of every event ever put in.

    :param events: all of them; the sum of ``finished``, ``missing`` and ``doubled``.
    :param late_events: storage events that came again; they are not counted in ``events``.
    :param late_files: files whose first storage event was held back.
    :param finished: events in exactly one finished chain, loaded once, each row and message sent once at most.
    :param missing: events without a finished chain.
    :param doubled: events that were loaded, or whose row or message was sent, more than once.
    :param failed: those of the finished whose chain was ended by a failed job, and files that were corrupt.
    :param loads: by URI of a data file, how many accepted load jobs read it, failed ones left out.
    :param chains: every chain that began.
    :param jobs: every job, in the order of submission.
    :param problems: a sentence for each missing or doubled event.
    :param dropped: what was consumed without an effect: a firing whose rule was unknown, an action that was refused.
    :param peaks: by project and group (``jobs``, ``sql``) or kind of job, the most jobs with a trace at one time.
    :param unreadable: objects that were consumed although their body meant nothing.
    :param early: traces that arrived before their job was done; they are left until it is.
    :param errors: calls that failed; what they were for is tried again in the next step.
    """

    events: int
    late_events: int
    late_files: int
    finished: int
    missing: int
    doubled: int
    failed: int
    loads: Mapping[str, int]
    chains: tuple[ChainAccount, ...]
    jobs: tuple[SubmittedJob, ...]
    problems: tuple[Problem, ...]
    dropped: tuple[str, ...]
    peaks: Mapping[str, Mapping[str, int]]
    unreadable: tuple[str, ...]
    early: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every event went through exactly once."""
        return not self.problems

    @property
    def rows(self) -> int:
        """Streamed rows of all chains."""
        return sum(chain.rows for chain in self.chains)

    @property
    def messages(self) -> int:
        """Messages of all chains."""
        return sum(len(chain.messages) for chain in self.chains)

    def job_counts(self) -> dict[str, int]:
        """How many jobs of each kind were accepted with and without a trace, and how many IDs were refused."""
        words = {True: "with a trace", False: "without a trace"}
        counts = Counter(f"{job.kind} {words[job.traced]}" if job.accepted else "refused" for job in self.jobs)
        return dict(sorted(counts.items()))

    def to_dict(self, details: bool = True) -> dict[str, Any]:
        """The account as a JSON document.

        :param details: with every load, chain and job; otherwise with their numbers only.
        """
        document = {"ok": self.ok, **asdict(self), "rows": self.rows, "messages": self.messages}
        document["job_counts"] = self.job_counts()
        if not details:
            document |= {"loads": sum(self.loads.values()), "chains": len(self.chains), "jobs": len(self.jobs)}
        return document

    def table(self) -> Table:
        """The account as a table for a terminal."""
        from rich.table import Table  # noqa: PLC0415 - most users never print one

        table = Table("what", "number", title="every event exactly once" if self.ok else "not every event exactly once")
        for what, number in self._figures().items():
            table.add_row(what, f"{number:,}")
        for problem in self.problems:
            table.add_row(f"[red]{problem.kind}[/red] {problem.event_id}", problem.why)
        return table

    def __str__(self) -> str:
        figures = ", ".join(f"{number:,} {what}" for what, number in self._figures().items() if number)
        return "\n".join([figures or "no events", *(f"  {problem}" for problem in self.problems)])

    def _figures(self) -> dict[str, int]:
        return {
            "events": self.events,
            "finished": self.finished,
            "of them with a failed job": self.failed,
            "missing": self.missing,
            "doubled": self.doubled,
            "late events": self.late_events,
            "late files": self.late_files,
            "chains": len(self.chains),
            "rows": self.rows,
            "messages": self.messages,
            **{f"jobs: {what}": number for what, number in self.job_counts().items()},
            **{f"most loads at one time in {project}": peaks["load"] for project, peaks in self.peaks.items()},
            "dropped": len(self.dropped),
            "unreadable": len(self.unreadable),
            "early traces": len(self.early),
            "failed calls": len(self.errors),
        }


JobKey = tuple[str, str, str]
"""Project, location and ID of a job."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An event without a finished chain, as far as the ledger knows.

    :param file: its data file.
    :param trace: the last trace of its chain; ``None`` when no job loaded the file.
    :param window_consumed: whether its window was taken out of the trigger bucket.
    :param heard_of: whether its storage event came.
    """

    file: DataFile
    trace: TraceBody | None
    window_consumed: bool
    heard_of: bool


@dataclass(frozen=True, slots=True)
class Places:
    """Where objects lie.

    :param task_folder: names in the task folder.
    :param arrived: by name of a trace or window, the name under which it lies in the trigger bucket.
    """

    task_folder: frozenset[str]
    arrived: Mapping[str, str]


class Ledger:
    """Everything that happened, in the order in which BqTail tells it; safe to use from several threads.

    Nothing in here talks to a service.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_event_id = _FIRST_EVENT_ID
        self._files: dict[str, DataFile] = {}
        self._heard_of: set[str] = set()
        self._late_files: set[str] = set()
        self._set_aside: set[str] = set()
        self._loads: dict[JobKey, _Load] = {}
        self._loads_of: dict[str, list[_Load]] = {}
        self._chains: dict[str, _Chain] = {}
        self._openings: dict[str, list[str]] = {}
        self._windows: Counter[str] = Counter()
        self._jobs: list[SubmittedJob] = []
        self._known_ids: set[JobKey] = set()
        self._traces = 0
        self._late_events = 0
        self._dropped: list[str] = []
        self._unreadable: list[str] = []
        self._early: dict[str, None] = {}
        self._errors: list[str] = []

    def new_event_id(self, late: bool = False) -> str:
        """Return the ID of a storage event.

        :param late: whether it is the event of a file that had one before.
        """
        with self._lock:
            self._last_event_id += _NEXT_EVENT_ID
            self._late_events += late
            return str(self._last_event_id)

    def landed(self, file: DataFile, uri: str) -> None:
        """Note that a data file is there."""
        with self._lock:
            self._files[uri] = file

    def heard_of(self, uri: str, late: bool) -> None:
        """Note that a storage event of a file came, the first one ``late``."""
        with self._lock:
            if late and uri not in self._heard_of:
                self._late_files.add(uri)
            self._heard_of.add(uri)

    def opened(self, window: WindowBody) -> None:
        """Note that a window was put into the task folder."""
        with self._lock:
            self._openings.setdefault(window.name, []).append(window.event_id)

    def window_arrived(self, window: WindowBody) -> None:
        """Note that a window was acted on."""
        with self._lock:
            self._windows[window.name] += 1
            if window.event_id in self._chains:
                self._chains[window.event_id].arrivals[f"window {window.name}"] += 1

    def wrote_trace(self, trace: TraceBody) -> None:
        """Note that a trace was put into the task folder."""
        with self._lock:
            self._chain(trace).last_trace = trace

    def trace_arrived(self, trace: TraceBody) -> None:
        """Note that a trace was acted on."""
        with self._lock:
            self._traces += 1
            self._chain(trace).arrivals[f"trace {trace.name}"] += 1

    def submitted(self, trace: TraceBody, refused: bool) -> None:
        """Note that a job was submitted, and that BigQuery took it or ``refused`` its ID."""
        key = (trace.project, trace.location, trace.job_id)
        with self._lock:
            # Refused although new to us: an earlier try got through and only its answer was lost.
            accepted = not refused or key not in self._known_ids
            self._known_ids.add(key)
            self._jobs.append(SubmittedJob(*key, KINDS[trace.action], trace.event_id, trace.is_traced, accepted))
            if accepted and trace.is_load:
                load = self._loads[key] = _Load(trace, self._chain(trace))
                load.chain.loads.append(load)
                for uri in trace.sources:
                    self._loads_of.setdefault(uri, []).append(load)

    def load_ended(self, trace: TraceBody, failed: bool) -> None:
        """Note how a load job ended."""
        with self._lock:
            load = self._loads.get((trace.project, trace.location, trace.job_id))
            if load:
                load.failed = failed

    def set_aside(self, uri: str) -> None:
        """Note that a corrupt file was moved away: this is its end."""
        with self._lock:
            self._set_aside.add(uri)

    def streamed_row(self, trace: TraceBody) -> None:
        """Note that the chain's row was streamed."""
        with self._lock:
            self._chain(trace).rows += 1

    def sent_message(self, trace: TraceBody, message: str) -> None:
        """Note that the chain's message was sent."""
        with self._lock:
            self._chain(trace).messages.append(message)

    def finished(self, trace: TraceBody, failed: bool) -> None:
        """Note that the chain ran to its end, or to a ``failed`` job."""
        with self._lock:
            chain = self._chain(trace)
            chain.finished += 1
            chain.failed |= failed

    def dropped(self, what: str) -> None:
        """Note that an object was consumed without an effect."""
        with self._lock:
            self._dropped.append(what)

    def could_not_read(self, what: str) -> None:
        """Note that an object was given up because of its body."""
        with self._lock:
            self._unreadable.append(what)

    def arrived_early(self, name: str) -> None:
        """Note that a trace lies in the trigger bucket before its job is done."""
        with self._lock:
            self._early[name] = None  # once, however often it is looked at

    def failed_call(self, what: str) -> None:
        """Note that a call failed, and that what it was for is left for later."""
        with self._lock:
            self._errors.append(what)

    def traced_jobs(self) -> dict[JobKey, str]:
        """Return the accepted jobs that have a trace, each with its kind."""
        with self._lock:
            return {
                (job.project, job.location, job.job_id): job.kind for job in self._jobs if job.traced and job.accepted
            }

    def loads_in_question(self) -> list[TraceBody]:
        """Return those loads of files with several loads whose end is not known."""
        with self._lock:
            return [
                load.trace
                for load in self._loads.values()
                if load.failed is None and any(len(self._loads_of[uri]) > 1 for uri in load.trace.sources)
            ]

    def counters(self) -> Counters:
        """Return how far things are."""
        with self._lock:
            finished = sum(self._is_finished(uri) for uri in self._files)
            waiting = sum(uri not in self._loads_of and uri not in self._set_aside for uri in self._files)
            batches = self._windows.total()
            return Counters(
                events=len(self._files),
                waiting=waiting,
                running=len(self._files) - waiting - finished,
                finished=finished,
                batches=batches,
                dispatched=self._traces,
                consumed=batches + self._traces + len(self._unreadable),
            )

    def account(self) -> tuple[Account, list[Missing]]:
        """Return the account with a sentence for what is doubled, and what is missing: see :func:`whereabouts`."""
        with self._lock:
            doubled, missing, failed = [], [], 0
            for uri, file in self._files.items():
                why = self._why_doubled(uri, file)
                if why:
                    doubled.append(Problem(file.event_id, file.name, "doubled", why))
                elif not self._is_finished(uri):
                    missing.append(self._missing(uri, file))
                else:
                    failed += self._is_failed(uri)
            account = Account(
                events=len(self._files),
                late_events=self._late_events,
                late_files=len(self._late_files),
                finished=len(self._files) - len(doubled) - len(missing),
                missing=len(missing),
                doubled=len(doubled),
                failed=failed,
                loads={uri: len(self._good_loads(uri)) for uri in self._files},
                chains=tuple(chain.account() for chain in self._chains.values()),
                jobs=tuple(self._jobs),
                problems=tuple(doubled),
                dropped=tuple(self._dropped),
                peaks={},
                unreadable=tuple(self._unreadable),
                early=tuple(self._early),
                errors=tuple(self._errors),
            )
            return account, missing

    def _chain(self, trace: TraceBody) -> _Chain:
        return self._chains.setdefault(trace.event_id, _Chain(trace.event_id, trace.dest))

    def _good_loads(self, uri: str) -> list[_Load]:
        return [load for load in self._loads_of.get(uri, ()) if not load.failed]

    def _chains_of(self, uri: str) -> list[_Chain]:
        """Return the chains that loaded a file; those that tried to and failed only if there is no other."""
        chains = [load.chain for load in self._good_loads(uri) or self._loads_of.get(uri, [])]
        return list({chain.event_id: chain for chain in chains}.values())

    def _is_finished(self, uri: str) -> bool:
        return uri in self._set_aside or any(chain.finished for chain in self._chains_of(uri))

    def _is_failed(self, uri: str) -> bool:
        return uri in self._set_aside or any(chain.failed for chain in self._chains_of(uri))

    def _missing(self, uri: str, file: DataFile) -> Missing:
        chains = self._chains_of(uri)
        consumed = bool(file.window and self._windows[file.window])
        return Missing(file, chains[0].last_trace if chains else None, consumed, uri in self._heard_of)

    def _why_doubled(self, uri: str, file: DataFile) -> str:
        chains = [load.chain.event_id for load in self._good_loads(uri)]
        reasons = []
        if len(chains) > 1:
            reasons.append(f"loaded {_times(len(chains))}, by chains {' and '.join(chains)}")
            again = self._openings.get(file.window or "", [])[1:]
            if again:
                late = " and ".join(again)
                reasons[0] += f", because window {file.window} was opened again by the late event {late}"
        reasons += [chain.why_doubled() for chain in self._chains_of(uri)]
        return "; ".join(filter(None, reasons))


@dataclass(slots=True)
class _Load:
    """What the ledger keeps of a load job that BigQuery accepted; ``failed`` is ``None`` until its end is known."""

    trace: TraceBody
    chain: _Chain
    failed: bool | None = None


@dataclass(slots=True)
class _Chain:
    """What the ledger keeps of a chain."""

    event_id: str
    dest: str
    loads: list[_Load] = field(default_factory=list)
    rows: int = 0
    messages: list[str] = field(default_factory=list)
    finished: int = 0
    failed: bool = False
    last_trace: TraceBody | None = None
    arrivals: Counter[str] = field(default_factory=Counter)
    """How often its window and each trace arrived, in the order in which they first did."""

    def account(self) -> ChainAccount:
        files = tuple(uri for load in self.loads if not load.failed for uri in load.trace.sources)
        messages = tuple(self.messages)
        return ChainAccount(self.event_id, self.dest, files, self.rows, messages, self.finished, self.failed)

    def why_doubled(self) -> str:
        """Return what happened more than once, and the first arrival that did; empty when nothing did."""
        counts = {"row streamed": self.rows, "message sent": len(self.messages)}
        what = [f"{done} {_times(number)}" for done, number in counts.items() if number > 1]
        if not what and self.finished > 1:
            what = [f"finished {_times(self.finished)}"]
        if not what:
            return ""
        again = (f" because {name} arrived {_times(number)}" for name, number in self.arrivals.items() if number > 1)
        return f"{' and '.join(what)} in chain {self.event_id}{next(again, '')}"


def whereabouts(missing: Missing, places: Places, job_state: Callable[[TraceBody], str]) -> str:
    """Return where an event without a finished chain stands, as a sentence.

    :param missing: what the ledger knows of it.
    :param places: where objects lie now.
    :param job_state: tells how a trace's job is doing, such as ``its job is RUNNING``.
    """
    if missing.trace:
        name = missing.trace.name
        if name in places.arrived:
            where = f"lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
        elif name in places.task_folder:
            where = "waits in the task folder"
        else:
            where = "vanished without being consumed: it lies neither in the task folder nor in the trigger bucket"
        return f"trace {name} {where}; {job_state(missing.trace)}"
    name = missing.file.window or ""
    if not name:
        return "no load job was accepted for it"
    return f"{_where_is_window(missing, name, places)}{_unheard(missing, places)}"


def _where_is_window(missing: Missing, name: str, places: Places) -> str:
    if name in places.arrived:
        return f"window {name} was fired and lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
    if missing.window_consumed:
        return f"window {name} was consumed, but no load job took this file"
    if name in places.task_folder:
        return f"window {name} waits unfired in the task folder"
    return f"window {name} vanished without a load: it lies neither in the task folder nor in the trigger bucket"


def _unheard(missing: Missing, places: Places) -> str:
    if not missing.heard_of:
        return "; its storage event has not come"
    location = missing.file.location
    return f"; {location} still names its folder" if location in places.task_folder else ""


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"
