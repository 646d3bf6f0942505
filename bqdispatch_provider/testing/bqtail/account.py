"""The account of a BqTail: the outcome of every event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file in the trigger bucket, and its event.

    :param event_id: ID of the storage event.
    :param dest: destination table.
    :param name: name of the object in the trigger bucket.
    :param time: time of its creation by the storage server's clock.
    :param window: name of its batch window; ``None``: no batching.
    :param location: path of the ``.loc`` object that names its folder; ``None`` unless its window has many folders.
    """

    event_id: str
    dest: str
    name: str
    time: datetime
    window: str | None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that was submitted to BigQuery.

    :param project: project of the job.
    :param location: location of the job; empty: none.
    :param job_id: ID of the job.
    :param kind: ``load``, ``copy``, ``query`` or ``extract``.
    :param chain: event ID of its chain.
    :param traced: ``True`` if the job has a trace.
    :param accepted: ``False`` if BigQuery refused the job because one with this ID exists.
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
    """The outcome of a chain.

    :param event_id: ID of the event that started it.
    :param dest: destination table.
    :param files: URIs of the files that its accepted load jobs read, without failed jobs.
    :param rows: number of times that its row was streamed; BigQuery does not deduplicate rows.
    :param messages: messages that it sent.
    :param finished: number of times that it ended.
    :param failed: ``True`` if it ended with a failed job.
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
    :param why: explanation as a sentence.
    """

    event_id: str
    file: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: event {self.event_id} ({self.file}): {self.why}"


@dataclass(frozen=True, slots=True)
class Counters:
    """The progress of all events, and the numbers of consumed objects.

    :param events: number of events, the sum of the next three.
    :param waiting: events whose files no job has loaded yet.
    :param running: events in unfinished chains.
    :param finished: events in finished chains.
    :param batches: windows consumed from the batch prefix.
    :param dispatched: traces consumed from the post job prefix.
    :param consumed: all consumed objects, including unreadable ones.
    """

    events: int
    waiting: int
    running: int
    finished: int
    batches: int
    dispatched: int
    consumed: int

    @property
    def unfinished(self) -> int:
        """Number of events that are on their way."""
        return self.waiting + self.running

    def __str__(self) -> str:
        files = f"{self.finished:,} of {self.events:,} files finished"
        return f"{files}; {self.waiting:,} wait for their load, {self.running:,} are in a chain of jobs"


@dataclass(frozen=True, slots=True)
class Account:
    """The outcome of all events.

    :param events: number of events, the sum of ``finished``, ``missing`` and ``doubled``.
    :param late_events: number of repeated storage events, which ``events`` does not include.
    :param late_files: number of files whose first storage event was late.
    :param finished: events in exactly one finished chain, loaded once, with each row and message sent at most once.
    :param missing: events without a finished chain.
    :param doubled: events that were loaded, or whose row or message was sent, more than once.
    :param failed: finished events whose chain ended with a failed job or whose file was corrupt.
    :param loads: number of accepted load jobs, without failed ones, by URI of the data file.
    :param chains: all chains.
    :param jobs: all jobs in the order of submission.
    :param problems: all missing and doubled events.
    :param dropped: objects consumed without effect: a window without a rule, a trace without a job, a refused call.
    :param peaks: maximum number of concurrent jobs with a trace, by project and by group (``jobs``, ``sql``) or kind.
    :param unreadable: objects consumed although their body was invalid.
    :param early: traces that arrived before their job was done, and were left until it was.
    :param errors: failed calls, which the next step repeats.
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
        """``True`` if every event went through exactly once."""
        return not self.problems

    @property
    def rows(self) -> int:
        """Number of streamed rows of all chains."""
        return sum(chain.rows for chain in self.chains)

    @property
    def messages(self) -> int:
        """Number of messages of all chains."""
        return sum(len(chain.messages) for chain in self.chains)

    def job_counts(self) -> dict[str, int]:
        """Return the numbers of accepted jobs by kind, with and without a trace, and the number of refused jobs."""
        words = {True: "with a trace", False: "without a trace"}
        counts = Counter(f"{job.kind} {words[job.traced]}" if job.accepted else "refused" for job in self.jobs)
        return dict(sorted(counts.items()))

    def to_dict(self, details: bool = True) -> dict[str, Any]:
        """Return the account as a JSON document.

        :param details: ``True``: with all loads, chains and jobs; ``False``: with their numbers.
        """
        document = {"ok": self.ok, **asdict(self), "rows": self.rows, "messages": self.messages}
        document["job_counts"] = self.job_counts()
        if not details:
            document |= {"loads": sum(self.loads.values()), "chains": len(self.chains), "jobs": len(self.jobs)}
        return document

    def table(self) -> Table:
        """Return the account as a table for a terminal."""
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
            "finished with a failed job": self.failed,
            "missing": self.missing,
            "doubled": self.doubled,
            "late events": self.late_events,
            "late files": self.late_files,
            "chains": len(self.chains),
            "rows": self.rows,
            "messages": self.messages,
            **{f"jobs: {what}": number for what, number in self.job_counts().items()},
            **{f"most concurrent loads in {project}": peaks["load"] for project, peaks in self.peaks.items()},
            "dropped": len(self.dropped),
            "unreadable": len(self.unreadable),
            "early traces": len(self.early),
            "failed calls": len(self.errors),
        }
