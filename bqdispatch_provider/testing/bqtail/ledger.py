"""The ledger of a BqTail: a record of everything it does, and the account of it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from bqdispatch_provider.testing.bqtail.account import Account, ChainAccount, Counters, DataFile, Problem, SubmittedJob
from bqdispatch_provider.testing.bqtail.bodies import TraceBody, WindowBody
from bqdispatch_provider.testing.bqtail.whereabouts import Missing

_FIRST_EVENT_ID = 1_000_000_000_000_000
_EVENT_ID_STEP = 7_919  # Like real IDs, no two differ by one.


class Ledger:
    """A record of everything that BqTail does. It is thread-safe and calls no service."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_event_id = _FIRST_EVENT_ID
        self._files: dict[str, DataFile] = {}
        self._events_arrived: set[str] = set()
        self._late_files: set[str] = set()
        self._loads: dict[tuple[str, str, str], _Load] = {}
        self._loads_of: dict[str, list[_Load]] = {}
        self._chains: dict[str, _Chain] = {}
        self._openings: dict[str, list[str]] = {}
        self._windows: Counter[str] = Counter()
        self._jobs: list[SubmittedJob] = []
        self._known_ids: set[tuple[str, str, str]] = set()
        self._traces = 0
        self._late_events = 0
        self.moved_away: set[str] = set()
        """URIs of corrupt files that were moved away, which ends their events."""
        self.dropped: list[str] = []
        """Objects that were consumed without effect, with the reason."""
        self.unreadable: list[str] = []
        """Objects that were consumed although their body is invalid, with the reason."""
        self.early: dict[str, None] = {}
        """Traces that arrived before their job was done."""
        self.errors: list[str] = []
        """Failed calls that the next step repeats."""

    def new_event_id(self, late: bool = False) -> str:
        """Return the ID of a new storage event.

        :param late: ``True`` if it is another event of a file that had one.
        """
        with self._lock:
            self._last_event_id += _EVENT_ID_STEP
            self._late_events += late
            return str(self._last_event_id)

    def file_landed(self, file: DataFile, uri: str) -> None:
        """Record a data file in the trigger bucket.

        :param file: the file.
        :param uri: URI of the file.
        """
        with self._lock:
            self._files[uri] = file

    def event_arrived(self, uri: str, late: bool) -> None:
        """Record a storage event.

        :param uri: URI of its file.
        :param late: ``True`` if it is late; this counts for the first event of a file.
        """
        with self._lock:
            if late and uri not in self._events_arrived:
                self._late_files.add(uri)
            self._events_arrived.add(uri)

    def window_opened(self, window: WindowBody) -> None:
        """Record a window that was written to the task folder.

        :param window: the window.
        """
        with self._lock:
            self._openings.setdefault(window.name, []).append(window.process.event_id)

    def window_consumed(self, window: WindowBody) -> None:
        """Record a window that was consumed.

        :param window: the window.
        """
        with self._lock:
            self._windows[window.name] += 1
            if window.process.event_id in self._chains:
                self._chains[window.process.event_id].arrivals[f"window {window.name}"] += 1

    def trace_written(self, trace: TraceBody) -> None:
        """Record a trace that was written to the task folder.

        :param trace: the trace.
        """
        with self._lock:
            self._chain(trace).last_trace = trace

    def trace_consumed(self, trace: TraceBody) -> None:
        """Record a trace that was consumed.

        :param trace: the trace.
        """
        with self._lock:
            self._traces += 1
            self._chain(trace).arrivals[f"trace {trace.name}"] += 1

    def job_submitted(self, trace: TraceBody, refused: bool) -> None:
        """Record a submitted job.

        :param trace: the job.
        :param refused: ``True`` if BigQuery refused the job because one with this ID exists.
        """
        key = trace.project, trace.location, trace.job_id
        with self._lock:
            # An unknown ID that is refused: an earlier try succeeded, and its answer was lost.
            accepted = not refused or key not in self._known_ids
            self._known_ids.add(key)
            self._jobs.append(SubmittedJob(*key, trace.kind, trace.event_id, trace.is_traced, accepted))
            if accepted and trace.is_load:
                load = self._loads[key] = _Load(trace, self._chain(trace))
                load.chain.loads.append(load)
                for uri in trace.sources:
                    self._loads_of.setdefault(uri, []).append(load)

    def load_ended(self, trace: TraceBody, failed: bool) -> None:
        """Record the end of a load job.

        :param trace: the job.
        :param failed: ``True`` if the job failed.
        """
        with self._lock:
            load = self._loads.get((trace.project, trace.location, trace.job_id))
            if load:
                load.failed = failed

    def row_streamed(self, trace: TraceBody) -> None:
        """Record a streamed row of a chain.

        :param trace: last trace of the chain.
        """
        with self._lock:
            self._chain(trace).rows += 1

    def message_sent(self, trace: TraceBody, message: str) -> None:
        """Record a message of a chain.

        :param trace: last trace of the chain.
        :param message: the message.
        """
        with self._lock:
            self._chain(trace).messages.append(message)

    def chain_finished(self, trace: TraceBody, failed: bool) -> None:
        """Record the end of a chain.

        :param trace: last trace of the chain.
        :param failed: ``True`` if its job failed.
        """
        with self._lock:
            chain = self._chain(trace)
            chain.finished += 1
            chain.failed |= failed

    def traced_jobs(self) -> dict[tuple[str, str], str]:
        """Return the kinds of all accepted jobs with a trace by project and ID."""
        with self._lock:
            return {(job.project, job.job_id): job.kind for job in self._jobs if job.traced and job.accepted}

    def unresolved_loads(self) -> list[TraceBody]:
        """Return the load jobs whose end is unknown and whose files had several load jobs."""
        with self._lock:
            return [
                load.trace
                for load in self._loads.values()
                if load.failed is None and any(len(self._loads_of[uri]) > 1 for uri in load.trace.sources)
            ]

    def counters(self) -> Counters:
        """Return the progress of all events."""
        with self._lock:
            finished = sum(self._is_finished(uri) for uri in self._files)
            waiting = sum(uri not in self._loads_of and uri not in self.moved_away for uri in self._files)
            batches = self._windows.total()
            return Counters(
                events=len(self._files),
                waiting=waiting,
                running=len(self._files) - waiting - finished,
                finished=finished,
                batches=batches,
                dispatched=self._traces,
                consumed=batches + self._traces + len(self.unreadable),
            )

    def account(self) -> tuple[Account, list[Missing]]:
        """Return the account with all doubled events, and the missing events, which :func:`whereabouts` explains."""
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
                dropped=tuple(self.dropped),
                peaks={},
                unreadable=tuple(self.unreadable),
                early=tuple(self.early),
                errors=tuple(self.errors),
            )
            return account, missing

    def _chain(self, trace: TraceBody) -> _Chain:
        return self._chains.setdefault(trace.event_id, _Chain(trace.event_id, trace.dest))

    def _good_loads(self, uri: str) -> list[_Load]:
        return [load for load in self._loads_of.get(uri, ()) if not load.failed]

    def _chains_of(self, uri: str) -> list[_Chain]:
        """Return the chains that loaded a file, or if there are none, those that failed to load it."""
        chains = [load.chain for load in self._good_loads(uri) or self._loads_of.get(uri, [])]
        return list({chain.event_id: chain for chain in chains}.values())

    def _is_finished(self, uri: str) -> bool:
        return uri in self.moved_away or any(chain.finished for chain in self._chains_of(uri))

    def _is_failed(self, uri: str) -> bool:
        return uri in self.moved_away or any(chain.failed for chain in self._chains_of(uri))

    def _missing(self, uri: str, file: DataFile) -> Missing:
        chains = self._chains_of(uri)
        consumed = bool(file.window and self._windows[file.window])
        return Missing(file, chains[0].last_trace if chains else None, consumed, uri in self._events_arrived)

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
    """An accepted load job; ``failed`` is ``None`` until its end is known."""

    trace: TraceBody
    chain: _Chain
    failed: bool | None = None


@dataclass(slots=True)
class _Chain:
    """A chain of jobs."""

    event_id: str
    dest: str
    loads: list[_Load] = field(default_factory=list)
    rows: int = 0
    messages: list[str] = field(default_factory=list)
    finished: int = 0
    failed: bool = False
    last_trace: TraceBody | None = None
    arrivals: Counter[str] = field(default_factory=Counter)
    """Numbers of arrivals of its window and each trace, in the order of the first arrivals."""

    def account(self) -> ChainAccount:
        files = tuple(uri for load in self.loads if not load.failed for uri in load.trace.sources)
        messages = tuple(self.messages)
        return ChainAccount(self.event_id, self.dest, files, self.rows, messages, self.finished, self.failed)

    def why_doubled(self) -> str:
        """Return an explanation if a row or message was sent, or the chain ended, more than once; otherwise empty."""
        counts = {"row streamed": self.rows, "message sent": len(self.messages)}
        what = [f"{done} {_times(number)}" for done, number in counts.items() if number > 1]
        if not what and self.finished > 1:
            what = [f"finished {_times(self.finished)}"]
        if not what:
            return ""
        again = (f" because {name} arrived {_times(number)}" for name, number in self.arrivals.items() if number > 1)
        return f"{' and '.join(what)} in chain {self.event_id}{next(again, '')}"


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"
