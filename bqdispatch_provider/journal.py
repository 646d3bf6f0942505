"""The journal of a DAG run: what its tasks leave for each other, and for the report.

A task that dispatches writes its document as ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>/<task_id>.json`` (of a
mapped task ``<task_id>~<map_index>.json``), once a minute and at its end. Before each cycle it writes a checkpoint
beside it, ``<task_id>@<process>.underway``: what it has done since, and is about to do. A sensor leaves its shares
there. The report merges all of them into ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json`` and removes them.

Any of these tasks may be tried again, or cleared, or marked, at any time, while an earlier try of it still lives. So
each process counts for itself: a document names the sums of each (``Parts``), and whoever merges two documents replaces
the sums of those that both have. No document is replaced but in the generation that was read.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from bqdispatch_provider import compat
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.process_sums import parse_sums
from bqdispatch_provider.core.report import MAX_NAMED, Report
from bqdispatch_provider.core.sizes import MAX_RUN_DOCUMENT_BYTES
from bqdispatch_provider.core.targets import shortened
from bqdispatch_provider.names import JournalName

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.gcp.storage import TaskStore

T = TypeVar("T")
log = logging.getLogger(__name__)

_ESCAPED = re.compile(r"[%/#?*\[\]\x00-\x1f\x7f]")
"""Characters that are awkward in the name of an object (Cloud Storage, "Object names")."""

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d|Z)?")
_MAX_SEGMENT_BYTES = 250
_DOCUMENT, _CHECKPOINT, _SHARES = ".json", ".underway", ".shares"
"""Endings of the objects that a task leaves."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything of a process that the task's document does not have yet, for whoever goes on after it is killed.

    :param process: ID of the process.
    :param began: when the task's run began.
    :param attempt: try number of the task.
    :param sums: what it has done, as :func:`~bqdispatch_provider.core.process_sums.sums_of` returns it.
    :param done: names what it has done since the document was written.
    :param shares: events of the cycle that it has begun.
    """

    process: str
    began: datetime
    attempt: int
    sums: Counter[str]
    done: Report
    shares: tuple[Share, ...]

    def is_news(self, report: Report) -> bool:
        """Tell whether a report lacks what it says."""
        cycles = self.sums["Cycles"] + bool(self.shares)
        return report.parts.get(self.process, Counter())["Cycles"] < cycles

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is written to the journal."""
        return {
            "Process": self.process,
            "Began": self.began.timestamp(),
            "Try": self.attempt,
            "Sums": self.sums,
            "Done": self.done.to_dict(),
            "Shares": [share.to_dict() for share in self.shares],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Checkpoint:
        """Read what :meth:`to_dict` returned.

        :raises ValueError: when it is something else.
        """
        try:
            return cls(
                documents.text(document["Process"]),
                datetime.fromtimestamp(float(document["Began"]), UTC),
                int(document["Try"]),
                parse_sums(document["Sums"]),
                Report.from_dict(document["Done"]),
                tuple(Share.from_dict(share) for share in document["Shares"]),
            )
        except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise ValueError(
                f"expected Process, Began, Try, Sums, Done and Shares, found {str(document)[:200]!r}"
            ) from error


@dataclass(frozen=True)
class TaskReport:
    """Everything that a task of the run has left in the journal.

    :param task: ID of the task, of a mapped task with its number.
    :param url: URL of its document, which may be missing.
    :param report: what it did, as far as that says.
    :param checkpoints: what its processes have done besides; empty once its document says that.
    :param generations: of its objects by their URLs, a sensor's shares among them.
    """

    task: str
    url: str
    report: Report
    checkpoints: tuple[Checkpoint, ...]
    generations: Mapping[str, int]

    def is_merged(self, report: Report) -> bool:
        """Tell whether a report has all of it."""
        for process, sums in self.report.parts.items():
            known = report.parts.get(process)
            if known is None or (known != sums and known["Cycles"] <= sums["Cycles"]):
                return False
        return not any(each.is_news(report) for each in self.checkpoints)


def journal_path(context: Context) -> str:
    """Return the path of a task's objects below ``<JournalURL>/runs/``, without an ending.

    :param context: context of the task.
    """
    ti = context["ti"]
    # The ID of a task holds no tilde, so a mapped task shares its path with no other task.
    mapped = "" if ti.map_index is None or ti.map_index < 0 else f"~{ti.map_index}"
    return f"{run_journal_paths(context)[0]}{_path_segment(ti.task_id)}{mapped}"


def run_journal_paths(context: Context) -> list[str]:
    """Return the paths of a run's objects below ``<JournalURL>/runs/``, with a slash at the end.

    There is one path if the run's date is known. Since Airflow 3.2 the callback of a DAG does not know it if no task
    of the run has succeeded. Then the run's ID tells when the run was due, or else it is due now; its logical date, by
    which the journal goes, may be a day earlier.

    :param context: context of a task, or of a DAG's callback, which may have no task.
    """
    date = compat.date_of(context)
    due = date or _date_in(context["run_id"]) or datetime.now(UTC)
    days = (due,) if date else (due, due - timedelta(days=1))
    run = f"{_path_segment(context['dag'].dag_id)}/{_path_segment(context['run_id'])}/"
    return [f"{day.astimezone(UTC):%Y-%m-%d}/{run}" for day in days]


def _date_in(run_id: str) -> datetime | None:
    """Return the date in the ID that Airflow gives a run, such as ``scheduled__2026-01-01T00:00:00+00:00``."""
    found = _DATE.search(run_id)
    try:
        date = datetime.fromisoformat(found[0]) if found else None
    except ValueError:
        return None
    return date if date is None or date.tzinfo else date.replace(tzinfo=UTC)


class RunJournal:
    """The journal of one DAG run.

    :param store: which reads and writes the journal.
    :param config: names the journal (``JournalURL``).
    :param task: context of the running task, or its path (:func:`journal_path`).

    ``process`` is an ID of this process of the task.
    """

    def __init__(self, store: TaskStore, config: DispatchConfig, task: Context | str) -> None:
        self._store = store
        path = task if isinstance(task, str) else journal_path(task)
        self.dag_id = path.split("/")[1]
        task_url = f"{config.journal_url}{JournalName.RUNS}{path}"
        self._run_url, _, self.task = task_url.rpartition("/")
        self.process = uuid.uuid4().hex[:12]
        self._shares_url = f"{task_url}{_SHARES}"
        self.task_url = f"{task_url}{_DOCUMENT}"
        self.document_url = f"{self._run_url}{_DOCUMENT}"

    def write_document(self, report: Report, replaces: int, url: str | None = None) -> int:
        """Write a response document.

        :param replaces: generation of the document that it replaces, 0 for none.
        :param url: where to; by default the document of the whole run.
        :returns: its generation.
        :raises google.api_core.exceptions.PreconditionFailed: when another process has written it meanwhile.
        """
        indent = None if sum(report.named()) > MAX_NAMED else 1  # nobody reads a longer one without a tool
        return self._store.write_json(url or self.document_url, report.to_dict(), replaces=replaces, indent=indent)

    def read_run(self) -> tuple[Report | None, int]:
        """Read the document of the run, to replace it.

        :returns: the report, ``None`` if it is missing, and its generation.
        :raises ValueError: when the object is something else.
        """
        generation = self._store.generation(self.document_url)
        return (None, 0) if generation is None else (self.read_document(), generation)

    def read_document(self, url: str | None = None) -> Report | None:
        """Read a response document.

        :param url: where from; by default the document of the whole run.
        :returns: ``None`` if it is missing.
        :raises ValueError: when the object is something else.
        """
        url = url or self.document_url
        content = self._read(url)
        return None if content is None else _parse(Report.from_dict, content, url)

    def write_shares(self, shares: Sequence[Share]) -> str:
        """Write the shares that a sensor has found, and return their URL."""
        self._store.write_json(self._shares_url, [share.to_dict() for share in shares])
        return self._shares_url

    def read_shares(self, url: str) -> list[Share] | None:
        """Read the shares that a sensor of this run has found.

        :param url: what :meth:`write_shares` returned.
        :returns: ``None`` if they are missing.
        :raises ValueError: when the URL is outside this run's journal, or the object is something else.
        """
        if not url.startswith(f"{self._run_url}/"):
            raise ValueError(
                f"{url!r} is not in the journal of this run, {self._run_url!r}: all tasks need the same JournalURL"
            )
        content = self._read(url)
        return None if content is None else _parse(_shares_of, content, url)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write what the running task is about to dispatch."""
        self._store.write_json(self._checkpoint_url(self.process), checkpoint.to_dict())

    def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint can be written again at once: a name may be changed once a second."""
        self._store.wait_for_name(self._checkpoint_url(self.process))

    def remove_checkpoint(self) -> None:
        """Remove the checkpoint of this process, once the document says what became of it."""
        self._store.remove(self._checkpoint_url(self.process))

    def remove_checkpoints(self, left: TaskReport) -> None:
        """Remove the checkpoints of other processes, once the document has what they say.

        :param left: from :meth:`own_report`. A checkpoint that was written again since stays.
        """
        for each in left.checkpoints:
            url = self._checkpoint_url(each.process)
            self._store.remove(url, left.generations.get(url))

    def _checkpoint_url(self, process: str) -> str:
        return f"{self.task_url.removesuffix(_DOCUMENT)}@{process}{_CHECKPOINT}"

    def own_report(self) -> TaskReport:
        """Read what earlier and other processes of the running task have left.

        :raises ValueError: when an object is something else.
        """
        return next(iter(self.task_reports(self.task)), TaskReport(self.task, self.task_url, Report(), (), {}))

    def task_reports(self, task: str | None = None) -> list[TaskReport]:
        """Read what the tasks of the run have left.

        :param task: the only one; by default all.
        :raises ValueError: when an object is something else.
        """
        found: dict[str, dict[str, int]] = {}
        for url, _, generation in self._store.list_created(f"{self._run_url}/"):
            name, dot, ending = url.removeprefix(f"{self._run_url}/").rpartition(".")
            if task not in (None, name.partition("@")[0]):
                continue
            if f"{dot}{ending}" not in (_DOCUMENT, _CHECKPOINT, _SHARES):
                raise ValueError(f"{url!r} does not belong in the journal of a run: remove it and try again")
            found.setdefault(name.partition("@")[0], {})[url] = generation
        return [self._task_report(each, of_task) for each, of_task in found.items()]

    def _task_report(self, task: str, generations: Mapping[str, int]) -> TaskReport:
        # Its document last: whoever writes it and then removes the checkpoint leaves one of the two to be read.
        read = {url: self._read(url) for url in sorted(generations, reverse=True) if not url.endswith(_SHARES)}
        reports = [
            _parse(Report.from_dict, each, url) for url, each in read.items() if each and url.endswith(_DOCUMENT)
        ]
        return TaskReport(
            task,
            f"{self._run_url}/{task}{_DOCUMENT}",
            reports[0] if reports else Report(),
            tuple(
                _parse(Checkpoint.from_dict, each, url)
                for url, each in read.items()
                if each and url.endswith(_CHECKPOINT)
            ),
            generations,
        )

    def remove(self, task_reports: Iterable[TaskReport], *, with_shares: bool) -> None:
        """Remove what tasks have left, once a document has all of it. What was written again meanwhile stays.

        :param task_reports: from :meth:`task_reports`.
        :param with_shares: whether the sensors' shares are removed, too.
        """
        for each in task_reports:
            for url, generation in each.generations.items():
                if with_shares or not url.endswith(_SHARES):
                    self._store.remove(url, generation)
                    log.debug("Removed %s", url)

    def _read(self, url: str) -> bytes | None:
        from google.api_core.exceptions import NotFound  # noqa: PLC0415  (importing this module costs nothing)

        try:
            return self._store.read(url, MAX_RUN_DOCUMENT_BYTES)
        except NotFound:
            return None


def _parse(parse: Callable[[Any], T], content: bytes, url: str) -> T:
    """Parse an object of the journal.

    :raises ValueError: when it is something else.
    """
    try:
        return parse(documents.parse(content))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{url!r} is damaged or something else; remove it and try again: {error}") from error


def _shares_of(document: Any) -> list[Share]:
    if not isinstance(document, list):
        raise ValueError(f"expected a list of shares, found {str(document)[:80]!r}")
    return [Share.from_dict(share) for share in document]


def _path_segment(text: str) -> str:
    """Return an ID as one segment of an object's name: IDs are untrusted text, with slashes and of any length."""
    return shortened(_ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", text), _MAX_SEGMENT_BYTES)
