"""What the tasks of one DAG run leave for each other in the journal.

Each task writes its part as ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>/<task_id>[~<map_index>].json``; the last
one merges them into ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json`` and removes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.model import Lane, Tidy
from bqdispatch_provider.report import Report

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.storage import TaskStore

_AWKWARD = re.compile(r"[%/#?*\[\]\x00-\x1f\x7f]")
_LONGEST = 250


@dataclass(frozen=True)
class Part:
    """What one task did.

    :param report: what it saw, or did.
    :param lanes: events per lane: those that a sensor handed on, or that an operator was given.
    :param tidy: what is still to be put in order; only in a sensor's part.
    """

    report: Report
    lanes: Mapping[Lane, int] = field(default_factory=dict)
    tidy: Tidy | None = None

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


class RunJournal:
    """The journal of one DAG run.

    :param dispatcher: whose configuration names the journal, and whose store reaches it.
    :param context: the running task's.
    """

    def __init__(self, dispatcher: Dispatcher, context: Context) -> None:
        self._store: TaskStore = dispatcher.store
        ti = context["ti"]
        at: datetime | None = context.get("logical_date") or getattr(context["dag_run"], "run_after", None)
        day = (at or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d")
        self._run = f"{dispatcher.config.journal_url.rstrip('/')}/runs/{day}/{_part_of_path(ti.dag_id)}"
        self._run += f"/{_part_of_path(ti.run_id)}"
        # No task's ID holds a tilde, so that a mapped task's part is no other task's.
        mapped = "" if ti.map_index is None or ti.map_index < 0 else f"~{ti.map_index}"
        self.own_url = f"{self._run}/{_part_of_path(ti.task_id)}{mapped}.json"
        self.document_url = f"{self._run}.json"

    def write_part(self, part: Part) -> None:
        """Write the running task's part, over that of an earlier try."""
        self._store.write_json(self.own_url, part.to_dict())

    def write_document(self, report: Report, url: str | None = None) -> str:
        """Write a response document; gives where.

        :param url: by default that of the whole run.
        """
        url = url or self.document_url
        self._store.write_json(url, report.to_dict())
        return url

    def read_document(self) -> Report | None:
        """The whole run's document, if an earlier try has written it."""
        from google.api_core.exceptions import NotFound  # noqa: PLC0415  (importing this module costs nothing)

        try:
            return Report.from_dict(json.loads(self._store.read(self.document_url)))
        except NotFound:
            return None

    def parts(self) -> dict[str, list[Part]]:
        """The run's parts by task ID.

        :raises ValueError: when something else lies among them.
        """
        found: dict[str, list[Part]] = {}
        for url in self._store.names(f"{self._run}/"):
            task = url.rpartition("/")[2].removesuffix(".json").partition("~")[0]
            try:
                part = Part.from_dict(json.loads(self._store.read(url)))
            except ValueError as error:
                raise ValueError(f"{url!r} is no part of a run, remove it and try again: {error}") from error
            found.setdefault(task, []).append(part)
        return found

    def remove_parts(self) -> None:
        """Remove the run's parts: the document says all that they say."""
        for url in list(self._store.names(f"{self._run}/")):
            self._store.remove(url)


def _part_of_path(text: str) -> str:
    """An ID as one part of an object's name: IDs are untrusted text, with slashes and of any length."""
    name = _AWKWARD.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(name.encode()) <= _LONGEST:
        return name
    return f"{name.encode()[: _LONGEST - 17].decode(errors='ignore')}~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
