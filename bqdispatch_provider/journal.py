"""What the tasks of one DAG run leave for each other in the journal.

A task that dispatches writes its document as ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>/<task_id>.json`` (of a
mapped task ``<task_id>~<map_index>.json``), and beside it what it is about to dispatch; a sensor leaves there what it
has found. The report merges them into ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json`` and removes them. Any
of these tasks may be tried again, or cleared, at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bqdispatch_provider import compat
from bqdispatch_provider.model import Share
from bqdispatch_provider.report import Report

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.storage import TaskStore

log = logging.getLogger(__name__)

_AWKWARD = re.compile(r"[%/#?*\[\]\x00-\x1f\x7f]")
_LONGEST = 250
_DOCUMENT, _UNDERWAY, _SHARES = ".json", ".underway", ".shares"


@dataclass(frozen=True)
class Underway:
    """What a task that runs cycles of its own is about to dispatch, for whoever goes on when it is killed.

    :param began: when its run began.
    :param attempt: which try of the task it was.
    :param dispatched: how many events its document tells of so far.
    :param shares: the events of the cycle that it has begun.
    """

    began: datetime
    attempt: int
    dispatched: int
    shares: tuple[Share, ...]

    def to_dict(self) -> dict[str, Any]:
        """A form for the journal."""
        return {
            "Began": self.began.timestamp(),
            "Try": self.attempt,
            "Dispatched": self.dispatched,
            "Shares": [share.to_dict() for share in self.shares],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Underway:
        """Read what :meth:`to_dict` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            began = datetime.fromtimestamp(float(document["Began"]), UTC)
            shares = tuple(Share.from_dict(share) for share in document["Shares"])
            return cls(began, int(document["Try"]), int(document["Dispatched"]), shares)
        except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise ValueError(f"not what a task is about to dispatch: {str(document)[:200]!r}") from error


@dataclass(frozen=True)
class Part:
    """Hold what a task of the run has left.

    :param task: its ID, of a mapped task with its number.
    :param report: what it did, as far as it has said so.
    :param left: what it was about to dispatch; ``None`` when it has said what came of it.
    :param fingerprint: of all this.
    :param urls: where it lies; what a sensor has found is there, too.
    """

    task: str
    report: Report
    left: Underway | None
    fingerprint: str
    urls: tuple[str, ...]


def place_of(context: Context) -> str:
    """Return where a task's part lies, below ``<JournalURL>/runs/`` and without its ending.

    :param context: the task's; of it ``ti`` and what tells its run's date.
    """
    ti = context["ti"]
    # No task's ID holds a tilde, so that a mapped task's part is no other task's.
    mapped = "" if ti.map_index is None or ti.map_index < 0 else f"~{ti.map_index}"
    return f"{place_of_run(context)}{_part_of_path(ti.task_id)}{mapped}"


def place_of_run(context: Context) -> str:
    """Return where the parts of a run lie, below ``<JournalURL>/runs/``, with a slash at the end.

    :param context: a task's, or that of a DAG's callback, which may have no task.
    """
    day = (compat.date_of(context) or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d")
    return f"{day}/{_part_of_path(context['dag'].dag_id)}/{_part_of_path(context['run_id'])}/"


class RunJournal:
    """The journal of one DAG run.

    :param dispatcher: whose configuration names the journal, and whose store reaches it.
    :param task: the running task's context, or its place (:func:`place_of`).
    """

    def __init__(self, dispatcher: Dispatcher, task: Context | str) -> None:
        self._store: TaskStore = dispatcher.store
        place = task if isinstance(task, str) else place_of(task)
        self._own = f"{dispatcher.config.journal_url.rstrip('/')}/runs/{place}"
        self._run = self._own.rpartition("/")[0]
        self.own_url = f"{self._own}{_DOCUMENT}"
        self.document_url = f"{self._run}{_DOCUMENT}"

    def write_document(self, report: Report, url: str | None = None) -> str:
        """Write a response document; gives where.

        :param url: by default that of the whole run.
        """
        url = url or self.document_url
        self._store.write_json(url, report.to_dict())
        return url

    def read_document(self, url: str | None = None) -> Report | None:
        """Read a response document; ``None`` where there is none.

        :param url: by default that of the whole run.
        :raises ValueError: when something else lies there.
        """
        content = self._read(url or self.document_url)
        return None if content is None else _report(content, url or self.document_url)

    def write_shares(self, shares: Sequence[Share]) -> str:
        """Write what a sensor has found; gives where."""
        url = f"{self._own}{_SHARES}"
        self._store.write_json(url, [share.to_dict() for share in shares])
        return url

    def read_shares(self, url: str) -> list[Share] | None:
        """Read what a sensor of this run has found; ``None`` when it is gone.

        :param url: where it was written.
        :raises ValueError: when that is not in this run's part of the journal, or something else lies there.
        """
        if not url.startswith(f"{self._run}/"):
            raise ValueError(f"{url!r} is not in the journal of this run, {self._run!r}: do the tasks share a journal?")
        content = self._read(url)
        if content is None:
            return None
        try:
            shares = json.loads(content)
            if not isinstance(shares, list):
                raise ValueError(f"it is no list: {content[:80]!r}")
            return [Share.from_dict(share) for share in shares]
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{url!r} is not what a sensor has found: {error}") from error

    def write_underway(self, underway: Underway) -> None:
        """Write down what is about to be dispatched."""
        self._store.write_json(f"{self._own}{_UNDERWAY}", underway.to_dict())

    def read_underway(self) -> Underway | None:
        """Read what the running task was about to dispatch when it was killed.

        :raises ValueError: when something else lies there.
        """
        url = f"{self._own}{_UNDERWAY}"
        content = self._read(url)
        return None if content is None else _underway(content, url)

    def remove_underway(self) -> None:
        """Remove it: the document says all."""
        self._store.remove(f"{self._own}{_UNDERWAY}")

    def parts(self) -> list[Part]:
        """Read what the tasks of the run have left.

        :raises ValueError: when something else lies among it.
        """
        urls: dict[str, dict[str, str]] = {}
        for url in self._store.names(f"{self._run}/"):
            task, dot, ending = url.removeprefix(f"{self._run}/").rpartition(".")
            if (ending := f"{dot}{ending}") not in (_DOCUMENT, _UNDERWAY, _SHARES):
                raise ValueError(f"{url!r} is no part of a run; remove it and try again")
            urls.setdefault(task, {})[ending] = url
        return [self._part(task, of_task) for task, of_task in urls.items()]

    def _part(self, task: str, urls: Mapping[str, str]) -> Part:
        read = {ending: self._read(url) or b"" for ending, url in urls.items() if ending != _SHARES}
        document, underway = read.get(_DOCUMENT), read.get(_UNDERWAY)
        return Part(
            task,
            _report(document, urls[_DOCUMENT]) if document else Report(),
            _underway(underway, urls[_UNDERWAY]) if underway else None,
            hashlib.sha256(b"".join(read.values())).hexdigest()[:16],
            tuple(urls.values()),
        )

    def remove(self, parts: Iterable[Part], *, shares: bool) -> None:
        """Remove what the tasks of the run have left, once its document tells of all of it.

        :param parts: from :meth:`parts`.
        :param shares: whether what sensors have found is removed, too.
        """
        for url in (each for part in parts for each in part.urls):
            if shares or not url.endswith(_SHARES):
                self._store.remove(url)
                log.debug("Removed %s", url)

    def _read(self, url: str) -> bytes | None:
        from google.api_core.exceptions import NotFound  # noqa: PLC0415  (importing this module costs nothing)

        try:
            return self._store.read(url)
        except NotFound:
            return None


def _report(content: bytes, url: str) -> Report:
    try:
        return Report.from_dict(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url!r} is no response document; remove it and try again: {error}") from error


def _underway(content: bytes, url: str) -> Underway:
    try:
        return Underway.from_dict(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{url!r} does not say what a task was about to dispatch; remove it and try again: {error}"
        ) from error


def _part_of_path(text: str) -> str:
    """An ID as one part of an object's name: IDs are untrusted text, with slashes and of any length."""
    name = _AWKWARD.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(name.encode()) <= _LONGEST:
        return name
    return f"{name.encode()[: _LONGEST - 17].decode(errors='ignore')}~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
