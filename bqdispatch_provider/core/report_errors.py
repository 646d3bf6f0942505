"""Errors of a report by lane and project.

A report has sentences alone. Each quotes the event or the project that it is about, or is what an event that waits was
told last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.model import Lane, Reason
from bqdispatch_provider.core.named_events import NamedEvent, event_of
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.names import in_one_line

_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_PROJECT = re.compile(r"\bproject '([^']+)'")


@dataclass(frozen=True, slots=True)
class ReportError:
    """An error.

    :param said: the sentence.
    :param lane: lane of the events that it is about; empty if that is not known, or if they are of several.
    :param project: their project; empty as above.
    """

    said: str
    lane: Lane | Literal[""]
    project: str


class ErrorReader:
    """Reads the errors of a report.

    :param report: of the last look, or of the last run.
    :param config: names the project of events whose name has none.
    """

    def __init__(self, report: Report, config: DispatchConfig) -> None:
        self._report, self._config = report, config
        self._told: dict[str, list[NamedEvent]] = defaultdict(list)
        self._unanswered: dict[str, list[NamedEvent]] = defaultdict(list)
        for wait in report.waits.values() if report.errors else ():
            event = event_of(wait.name, config) if wait.said else None
            if event is not None:
                self._told[in_one_line(wait.said)].append(event)
                if wait.reason is Reason.NO_ANSWER:
                    self._unanswered[event.project].append(event)

    def errors(self) -> list[ReportError]:
        """Return the errors, the newest first."""
        return [self._read(said) for said in reversed(self._report.errors)]

    def _read(self, said: str) -> ReportError:
        for quoted in _QUOTED.finditer(said):
            event = event_of((quoted[1] or quoted[2] or "").removeprefix(self._config.async_task_url), self._config)
            if event is not None:
                return ReportError(said, event.lane, event.project)
        named = _PROJECT.search(said)
        events = self._told.get(said) or self._unanswered.get(named[1] if named else "", [])
        lanes, projects = {each.lane for each in events}, {each.project for each in events}
        project = named[1] if named else projects.pop() if len(projects) == 1 else ""
        return ReportError(said, lanes.pop() if len(lanes) == 1 else "", project)
