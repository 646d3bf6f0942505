"""What the tasks of one DAG run leave for each other in the journal.

Each task writes its part as ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>/<task_id>[~<map_index>].json``; the last
one merges them into ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json`` and, once every object is accounted for,
removes them. Any of these tasks may be tried again, or cleared, at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bqdispatch_provider import compat
from bqdispatch_provider.model import Lane, Outcome, Share, Tidy
from bqdispatch_provider.report import Report

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.storage import TaskStore

log = logging.getLogger(__name__)

_AWKWARD = re.compile(r"[%/#?*\[\]\x00-\x1f\x7f]")
_LONGEST = 250
_UNDERWAY = ".underway"

TIDIED = ""
"""Under what :meth:`RunJournal.parts` gives what came of putting in order, which is no task's own."""


@dataclass(frozen=True)
class Part:
    """What one task did.

    :param report: what it saw, or did.
    :param lanes: events per lane: those that a sensor handed on, or that an operator was given.
    :param tidy: what is still to be put in order; only in a sensor's part.
    :param url: where it was read.
    """

    report: Report
    lanes: Mapping[Lane, int] = field(default_factory=dict)
    tidy: Tidy | None = None
    url: str = ""

    def after(self, earlier: Part) -> Part:
        """This part together with that of an earlier try, which had the same events to dispatch.

        What the earlier try dispatched, this one has found gone, or has not come to.
        """
        if dict(earlier.lanes) != dict(self.lanes):
            return self
        report = Report()
        report.add_part(self.report)
        left = earlier.report.dispatched
        report.add_part(replace(earlier.report, outcomes=Counter({Outcome.DISPATCHED: left}), errors=[]))
        for outcome in (Outcome.IGNORED, Outcome.PENDING, Outcome.ERROR):
            known = min(left, report.outcomes[outcome])
            report.outcomes[outcome] -= known
            left -= known
        return replace(self, report=report)

    def to_dict(self) -> dict[str, Any]:
        """A form for the journal: the response document with ``Lanes``, and a sensor's ``Tidy``."""
        document = {**self.report.to_dict(), "Lanes": {str(lane): number for lane, number in self.lanes.items()}}
        return document if self.tidy is None else {**document, "Tidy": self.tidy.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Part:
        """Read what :meth:`to_dict` wrote.

        :raises ValueError: when it is something else.
        """
        lanes = {Lane(lane): int(number) for lane, number in document.get("Lanes", {}).items()}
        tidy = document.get("Tidy")
        return cls(Report.from_dict(document), lanes, None if tidy is None else Tidy.from_dict(tidy))


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
        """Read what :meth:`to_dict` wrote."""
        began = datetime.fromtimestamp(float(document["Began"]), UTC)
        shares = tuple(Share.from_dict(share) for share in document["Shares"])
        return cls(began, int(document["Try"]), int(document["Dispatched"]), shares)


def place_of(context: Context) -> str:
    """Where a task's part lies, below ``<JournalURL>/runs/`` and without its ending.

    :param context: the task's; of it ``ti`` and what tells its run's date.
    """
    ti = context["ti"]
    day = (compat.date_of(context) or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d")
    # No task's ID holds a tilde, so that a mapped task's part is no other task's.
    mapped = "" if ti.map_index is None or ti.map_index < 0 else f"~{ti.map_index}"
    return f"{day}/{_part_of_path(ti.dag_id)}/{_part_of_path(ti.run_id)}/{_part_of_path(ti.task_id)}{mapped}"


class RunJournal:
    """The journal of one DAG run.

    :param dispatcher: whose configuration names the journal, and whose store reaches it.
    :param task: the running task's context, or its place (:func:`place_of`).
    """

    def __init__(self, dispatcher: Dispatcher, task: Context | str) -> None:
        self._store: TaskStore = dispatcher.store
        place = task if isinstance(task, str) else place_of(task)
        own = f"{dispatcher.config.journal_url.rstrip('/')}/runs/{place}"
        self._run = own.rpartition("/")[0]
        self.own_url = f"{own}.json"
        self.tidied_url = f"{self._run}/~tidy.json"
        self.document_url = f"{self._run}.json"
        self._underway_url = f"{own}{_UNDERWAY}"

    def earlier_part(self) -> Part | None:
        """The part that an earlier try of the running task has left."""
        return self._part(self.own_url)

    def write_part(self, part: Part, url: str | None = None) -> None:
        """Write a part, over that of an earlier try.

        A sensor's comes before all that other tasks do, so what they have left is of an earlier try of the run, and is
        removed.

        :param url: by default the running task's own.
        """
        if part.tidy is not None:
            self.remove_parts(each for parts in self.parts().values() for each in parts if each.tidy is None)
        self._store.write_json(url or self.own_url, part.to_dict())

    def write_document(self, report: Report, url: str | None = None) -> str:
        """Write a response document; gives where.

        :param url: by default that of the whole run.
        """
        url = url or self.document_url
        self._store.write_json(url, report.to_dict())
        return url

    def read_document(self, url: str | None = None) -> Report | None:
        """A response document, if an earlier try has written it.

        :param url: by default that of the whole run.
        """
        document = self._read(url or self.document_url)
        return None if document is None else Report.from_dict(document)

    def write_underway(self, underway: Underway) -> None:
        """Write down what is about to be dispatched."""
        self._store.write_json(self._underway_url, underway.to_dict())

    def read_underway(self) -> Underway | None:
        """What the running task was about to dispatch when it was killed."""
        document = self._read(self._underway_url)
        return None if document is None else Underway.from_dict(document)

    def remove_underway(self) -> None:
        """Remove it: the document says all."""
        self._store.remove(self._underway_url)

    def parts(self) -> dict[str, list[Part]]:
        """The run's parts by task ID.

        :raises ValueError: when something else lies among them.
        """
        found: dict[str, list[Part]] = {}
        for url in self._store.names(f"{self._run}/"):
            if url.endswith(_UNDERWAY):
                continue
            task = url.rpartition("/")[2].removesuffix(".json").partition("~")[0]
            if (part := self._part(url)) is not None:
                found.setdefault(task, []).append(part)
        return found

    def remove_parts(self, parts: Iterable[Part]) -> None:
        """Remove parts, a sensor's first: without it the others count for nothing, should this be interrupted.

        :param parts: from :meth:`parts`.
        """
        for part in sorted(parts, key=lambda each: each.tidy is None):
            self._store.remove(part.url)
            log.debug("Removed %s", part.url)

    def _part(self, url: str) -> Part | None:
        try:
            document = self._read(url)
            return None if document is None else replace(Part.from_dict(document), url=url)
        except ValueError as error:
            raise ValueError(f"{url!r} is no part of a run, remove it and try again: {error}") from error

    def _read(self, url: str) -> Any:
        from google.api_core.exceptions import NotFound  # noqa: PLC0415  (importing this module costs nothing)

        try:
            return json.loads(self._store.read(url))
        except NotFound:
            return None


def _part_of_path(text: str) -> str:
    """An ID as one part of an object's name: IDs are untrusted text, with slashes and of any length."""
    name = _AWKWARD.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(name.encode()) <= _LONGEST:
        return name
    return f"{name.encode()[: _LONGEST - 17].decode(errors='ignore')}~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
