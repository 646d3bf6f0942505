"""The journal of a DAG run: what its tasks leave for each other, and for the report.

A task that dispatches writes its document as ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>/<task_id>.json`` (of a
mapped task ``<task_id>~<map_index>.json``). Beside it, it writes a checkpoint before each cycle: what it is about to
dispatch. A sensor leaves its shares there. The report merges all of them into
``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json`` and removes them. Any of these tasks may be tried again, or
cleared, at any time.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from bqdispatch_provider import compat
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.sizes import MAX_RUN_DOCUMENT_BYTES
from bqdispatch_provider.names import JournalName

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.gcp.storage import TaskStore

T = TypeVar("T")
log = logging.getLogger(__name__)

_ESCAPED = re.compile(r"[%/#?*\[\]\x00-\x1f\x7f]")
"""Characters that are awkward in the name of an object (Cloud Storage, "Object names")."""

_MAX_SEGMENT_BYTES = 250
_HASH_CHARS = 16
_DOCUMENT, _CHECKPOINT, _SHARES = ".json", ".underway", ".shares"
"""Endings of the objects that a task leaves."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a task is about to dispatch, for whoever goes on after it is killed.

    :param began: when the task's run began.
    :param attempt: try number of the task.
    :param dispatched: how many events its document reports so far.
    :param shares: events of the cycle that it has begun.
    """

    began: datetime
    attempt: int
    dispatched: int
    shares: tuple[Share, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is written to the journal."""
        return {
            "Began": self.began.timestamp(),
            "Try": self.attempt,
            "Dispatched": self.dispatched,
            "Shares": [share.to_dict() for share in self.shares],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Checkpoint:
        """Read what :meth:`to_dict` returned.

        :raises ValueError: when it is something else.
        """
        try:
            began = datetime.fromtimestamp(float(document["Began"]), UTC)
            shares = tuple(Share.from_dict(share) for share in document["Shares"])
            return cls(began, int(document["Try"]), int(document["Dispatched"]), shares)
        except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise ValueError(f"expected Began, Try, Dispatched and Shares, found {str(document)[:200]!r}") from error


@dataclass(frozen=True)
class TaskReport:
    """Everything that a task of the run has left in the journal.

    :param task: ID of the task, of a mapped task with its number.
    :param report: what it did, as far as its document says.
    :param checkpoint: what it was about to dispatch; ``None`` once its document says what became of that.
    :param fingerprint: hashes of both, the document's first.
    :param urls: URLs of its objects, a sensor's shares among them.
    """

    task: str
    report: Report
    checkpoint: Checkpoint | None
    fingerprint: str
    urls: tuple[str, ...]

    def is_merged(self, known: str) -> bool:
        """Tell whether a run's document has all of it. Its checkpoint may have been removed since.

        :param known: the fingerprint that the run's document has for the task; empty without one.
        """
        return known == self.fingerprint or (self.checkpoint is None and self.has_merged_document(known))

    def has_merged_document(self, known: str) -> bool:
        """Tell whether a run's document has what the task's document says: then only the checkpoint is new.

        :param known: as above.
        """
        return known[:_HASH_CHARS] == self.fingerprint[:_HASH_CHARS]


def journal_path(context: Context) -> str:
    """Return the path of a task's objects below ``<JournalURL>/runs/``, without an ending.

    :param context: context of the task.
    """
    ti = context["ti"]
    # The ID of a task holds no tilde, so a mapped task shares its path with no other task.
    mapped = "" if ti.map_index is None or ti.map_index < 0 else f"~{ti.map_index}"
    return f"{run_journal_path(context)}{_path_segment(ti.task_id)}{mapped}"


def run_journal_path(context: Context) -> str:
    """Return the path of a run's objects below ``<JournalURL>/runs/``, with a slash at the end.

    :param context: context of a task, or of a DAG's callback, which may have no task.
    """
    day = (compat.date_of(context) or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d")
    return f"{day}/{_path_segment(context['dag'].dag_id)}/{_path_segment(context['run_id'])}/"


class RunJournal:
    """The journal of one DAG run.

    :param store: which reads and writes the journal.
    :param config: names the journal (``JournalURL``).
    :param task: context of the running task, or its path (:func:`journal_path`).
    """

    def __init__(self, store: TaskStore, config: DispatchConfig, task: Context | str) -> None:
        self._store = store
        path = task if isinstance(task, str) else journal_path(task)
        self.dag_id = path.split("/")[1]
        task_url = f"{config.journal_url}{JournalName.RUNS}{path}"
        self._run_url, _, self.task = task_url.rpartition("/")
        self._checkpoint_url = f"{task_url}{_CHECKPOINT}"
        self._shares_url = f"{task_url}{_SHARES}"
        self.task_url = f"{task_url}{_DOCUMENT}"
        self.document_url = f"{self._run_url}{_DOCUMENT}"

    def write_document(self, report: Report, url: str | None = None) -> None:
        """Write a response document.

        :param url: where to; by default the document of the whole run.
        """
        self._store.write_json(url or self.document_url, report.to_dict())

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
        self._store.write_json(self._checkpoint_url, checkpoint.to_dict())

    def own_report(self) -> TaskReport:
        """Read what earlier tries of the running task have left, unless the run's document has all of it.

        :raises ValueError: when an object is something else.
        """
        own = self._task_report(self.task, {_DOCUMENT: self.task_url, _CHECKPOINT: self._checkpoint_url})
        if own.checkpoint is not None or own.report.cycles:
            run = self.read_document()
            if run is None or not own.is_merged(run.parts.get(self.task, "")):
                return own
        return TaskReport(self.task, Report(), None, "", ())

    def remove_checkpoint(self) -> None:
        """Remove the checkpoint, once the document says what became of it."""
        self._store.remove(self._checkpoint_url)

    def task_reports(self) -> list[TaskReport]:
        """Read what the tasks of the run have left.

        :raises ValueError: when an object is something else.
        """
        urls: dict[str, dict[str, str]] = {}
        for url in self._store.list_urls(f"{self._run_url}/"):
            task, dot, ending = url.removeprefix(f"{self._run_url}/").rpartition(".")
            if (ending := f"{dot}{ending}") not in (_DOCUMENT, _CHECKPOINT, _SHARES):
                raise ValueError(f"{url!r} does not belong in the journal of a run: remove it and try again")
            urls.setdefault(task, {})[ending] = url
        return [self._task_report(task, of_task) for task, of_task in urls.items()]

    def _task_report(self, task: str, urls: Mapping[str, str]) -> TaskReport:
        contents = {ending: self._read(url) or b"" for ending, url in urls.items() if ending != _SHARES}
        document, checkpoint = contents.get(_DOCUMENT), contents.get(_CHECKPOINT)
        return TaskReport(
            task,
            _parse(Report.from_dict, document, urls[_DOCUMENT]) if document else Report(),
            _parse(Checkpoint.from_dict, checkpoint, urls[_CHECKPOINT]) if checkpoint else None,
            "".join(_hash(contents.get(ending, b"")) for ending in (_DOCUMENT, _CHECKPOINT)),
            tuple(urls.values()),
        )

    def remove(self, task_reports: Iterable[TaskReport], *, with_shares: bool) -> None:
        """Remove what the tasks of the run have left, once the run's document has all of it.

        :param task_reports: from :meth:`task_reports`.
        :param with_shares: whether the sensors' shares are removed, too.
        """
        # Checkpoints first: one without its document would look like that of a task whose work is in no document.
        urls = [url for each in task_reports for url in each.urls]
        for url in sorted(urls, key=lambda url: not url.endswith(_CHECKPOINT)):
            if with_shares or not url.endswith(_SHARES):
                self._store.remove(url)
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
    name = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(name.encode()) <= _MAX_SEGMENT_BYTES:
        return name
    start = name.encode()[: _MAX_SEGMENT_BYTES - _HASH_CHARS - 1].decode(errors="ignore")
    return f"{start}~{_hash(text.encode())}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH_CHARS]
