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

from bqdispatch_provider.names import WindowName
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
    """

    event_id: str
    dest: str
    name: str
    time: datetime
    window: str | None


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
    :param files: URIs that its accepted load jobs read.
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
    :param finished: events in exactly one finished chain, loaded once, each row and message sent once at most.
    :param missing: events without a finished chain.
    :param doubled: events that were loaded, or whose row or message was sent, more than once.
    :param failed: those of the finished whose chain was ended by a failed job.
    :param loads: by URI of a data file, how many accepted load jobs read it.
    :param chains: every chain that began.
    :param jobs: every job, in the order of submission.
    :param problems: a sentence for each missing or doubled event.
    :param unreadable: objects that were consumed although their body meant nothing.
    :param early: traces that arrived before their job was done; they are left until it is.
    :param errors: calls that failed; what they were for is tried again in the next step.
    """

    events: int
    late_events: int
    finished: int
    missing: int
    doubled: int
    failed: int
    loads: Mapping[str, int]
    chains: tuple[ChainAccount, ...]
    jobs: tuple[SubmittedJob, ...]
    problems: tuple[Problem, ...]
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
            "chains": len(self.chains),
            "rows": self.rows,
            "messages": self.messages,
            **{f"jobs: {what}": number for what, number in self.job_counts().items()},
            "unreadable": len(self.unreadable),
            "early traces": len(self.early),
            "failed calls": len(self.errors),
        }


@dataclass(frozen=True, slots=True)
class Missing:
    """An event without a finished chain, as far as the ledger knows.

    :param file: its data file.
    :param trace: the last trace of its chain; ``None`` when no job loaded the file.
    :param window_consumed: whether its window was taken out of the trigger bucket.
    """

    file: DataFile
    trace: TraceBody | None
    window_consumed: bool


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
        self._loaded_by: dict[str, list[str]] = {}
        self._chains: dict[str, _Chain] = {}
        self._openings: dict[str, list[str]] = {}
        self._windows: Counter[str] = Counter()
        self._jobs: list[SubmittedJob] = []
        self._known_ids: set[tuple[str, str, str]] = set()
        self._traces = 0
        self._late_events = 0
        self._unreadable: list[str] = []
        self._early: dict[str, None] = {}
        self._errors: list[str] = []

    def new_event_id(self, late: bool = False) -> str:
        """The ID of a storage event.

        :param late: whether it is the event of a file that had one before.
        """
        with self._lock:
            self._last_event_id += _NEXT_EVENT_ID
            self._late_events += late
            return str(self._last_event_id)

    def landed(self, file: DataFile, uri: str) -> None:
        """A data file is there."""
        with self._lock:
            self._files[uri] = file

    def opened(self, window: WindowBody) -> None:
        """A window was put into the task folder."""
        with self._lock:
            self._openings.setdefault(window.name, []).append(window.event_id)

    def window_arrived(self, window: WindowBody) -> None:
        """A window was acted on."""
        with self._lock:
            self._windows[window.name] += 1
            if window.event_id in self._chains:
                self._chains[window.event_id].arrivals[f"window {window.name}"] += 1

    def wrote_trace(self, trace: TraceBody) -> None:
        """A trace was put into the task folder."""
        with self._lock:
            self._chain(trace).last_trace = trace

    def trace_arrived(self, trace: TraceBody) -> None:
        """A trace was acted on."""
        with self._lock:
            self._traces += 1
            self._chain(trace).arrivals[f"trace {trace.name}"] += 1

    def submitted(self, trace: TraceBody, traced: bool, refused: bool) -> None:
        """A job was submitted, and BigQuery took it or ``refused`` its ID."""
        key = (trace.project, trace.location, trace.job_id(traced))
        kind = KINDS[trace.action]
        with self._lock:
            # Refused although new to us: an earlier try got through and only its answer was lost.
            accepted = not refused or key not in self._known_ids
            self._known_ids.add(key)
            self._jobs.append(SubmittedJob(*key, kind, trace.event_id, traced, accepted))
            if accepted and kind == "load":
                self._chain(trace).files.extend(trace.sources)
                for uri in trace.sources:
                    self._loaded_by.setdefault(uri, []).append(trace.event_id)

    def streamed_row(self, trace: TraceBody) -> None:
        """The chain's row was streamed."""
        with self._lock:
            self._chain(trace).rows += 1

    def sent_message(self, trace: TraceBody, message: str) -> None:
        """The chain's message was sent."""
        with self._lock:
            self._chain(trace).messages.append(message)

    def finished(self, trace: TraceBody, failed: bool) -> None:
        """The chain ran to its end, or to a ``failed`` job."""
        with self._lock:
            chain = self._chain(trace)
            chain.finished += 1
            chain.failed |= failed

    def could_not_read(self, what: str) -> None:
        """An object was given up because of its body."""
        with self._lock:
            self._unreadable.append(what)

    def arrived_early(self, name: str) -> None:
        """A trace lies in the trigger bucket before its job is done."""
        with self._lock:
            self._early[name] = None  # once, however often it is looked at

    def failed_call(self, what: str) -> None:
        """A call failed, and what it was for is left for later."""
        with self._lock:
            self._errors.append(what)

    def counters(self) -> Counters:
        """How far things are."""
        with self._lock:
            finished = sum(self._finishes(uri) > 0 for uri in self._files)
            waiting = sum(uri not in self._loaded_by for uri in self._files)
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
        """The account with a sentence for what is doubled, and what is missing: for that, see :func:`whereabouts`."""
        with self._lock:
            doubled, missing, failed = [], [], 0
            for uri, file in self._files.items():
                why = self._why_doubled(uri, file)
                if why:
                    doubled.append(Problem(file.event_id, file.name, "doubled", why))
                elif not self._finishes(uri):
                    missing.append(self._missing(uri, file))
                else:
                    failed += self._chains[self._loaded_by[uri][0]].failed
            account = Account(
                events=len(self._files),
                late_events=self._late_events,
                finished=len(self._files) - len(doubled) - len(missing),
                missing=len(missing),
                doubled=len(doubled),
                failed=failed,
                loads={uri: len(self._loaded_by.get(uri, ())) for uri in self._files},
                chains=tuple(chain.account() for chain in self._chains.values()),
                jobs=tuple(self._jobs),
                problems=tuple(doubled),
                unreadable=tuple(self._unreadable),
                early=tuple(self._early),
                errors=tuple(self._errors),
            )
            return account, missing

    def _chain(self, trace: TraceBody) -> _Chain:
        return self._chains.setdefault(trace.event_id, _Chain(trace.event_id, trace.dest))

    def _finishes(self, uri: str) -> int:
        return sum(self._chains[chain].finished for chain in self._loaded_by.get(uri, ()))

    def _missing(self, uri: str, file: DataFile) -> Missing:
        chains = self._loaded_by.get(uri)
        trace = self._chains[chains[0]].last_trace if chains else None
        return Missing(file, trace, bool(file.window and self._windows[file.window]))

    def _why_doubled(self, uri: str, file: DataFile) -> str:
        chains = self._loaded_by.get(uri, [])
        reasons = []
        if len(chains) > 1:
            reasons.append(f"loaded {_times(len(chains))}, by chains {' and '.join(chains)}")
            again = self._openings.get(file.window or "", [])[1:]
            if again:
                late = " and ".join(again)
                reasons[0] += f", because window {file.window} was opened again by the late event {late}"
        reasons += [self._chains[chain].why_doubled() for chain in dict.fromkeys(chains)]
        return "; ".join(filter(None, reasons))


@dataclass(slots=True)
class _Chain:
    """What the ledger keeps of a chain."""

    event_id: str
    dest: str
    files: list[str] = field(default_factory=list)
    rows: int = 0
    messages: list[str] = field(default_factory=list)
    finished: int = 0
    failed: bool = False
    last_trace: TraceBody | None = None
    arrivals: Counter[str] = field(default_factory=Counter)
    """How often its window and each trace arrived, in the order in which they first did."""

    def account(self) -> ChainAccount:
        files, messages = tuple(self.files), tuple(self.messages)
        return ChainAccount(self.event_id, self.dest, files, self.rows, messages, self.finished, self.failed)

    def why_doubled(self) -> str:
        """What happened more than once, and the first arrival that did; empty when nothing did."""
        counts = {"row streamed": self.rows, "message sent": len(self.messages)}
        what = [f"{done} {_times(number)}" for done, number in counts.items() if number > 1]
        if not what and self.finished > 1:
            what = [f"finished {_times(self.finished)}"]
        if not what:
            return ""
        again = (f" because {name} arrived {_times(number)}" for name, number in self.arrivals.items() if number > 1)
        return f"{' and '.join(what)} in chain {self.event_id}{next(again, '')}"


def whereabouts(missing: Missing, places: Places, job_state: Callable[[TraceBody], str]) -> str:
    """Where an event without a finished chain stands, as a sentence.

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
    if name in places.arrived:
        return f"window {name} was fired and lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
    if missing.window_consumed:
        return f"window {name} was consumed, but no load job took this file"
    if name in places.task_folder:
        sentinel = WindowName.parse(name).sentinel in places.task_folder
        return f"window {name} waits unfired in the task folder{', although its sentinel is there' if sentinel else ''}"
    return f"window {name} vanished without a load: it lies neither in the task folder nor in the trigger bucket"


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"
