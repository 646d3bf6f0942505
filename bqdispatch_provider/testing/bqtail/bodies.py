"""The bodies of windows and traces: BqTail writes them, and reads them again when a dispatcher has delivered them.

Names, folders and fields are those of the real BqTail (docs/protocol.md, "The flow"). A test compares them with objects
that it has written.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from bqdispatch_provider.names import TraceName, WindowName

KINDS = {"load": "load", "reload": "load", "copy": "copy", "query": "query", "export": "extract"}
"""Type of the BigQuery job that an action starts."""
_MAX_STEP = 99999
Document = dict[str, Any]


class UnreadableBodyError(ValueError):
    """A body that BqTail did not write."""


def hash_of(text: str) -> int:
    """Return the hash in the names of windows and ``.loc`` objects: the absolute value of the 64-bit FNV-1 hash.

    :param text: text to hash.
    """
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value * 0x100000001B3) % 2**64 ^ byte
    return min(value, 2**64 - value)


def location_name(window_name: str, folder: str) -> str:
    """Return the path of the ``.loc`` object for one of a window's folders.

    :param window_name: path of the window.
    :param folder: URL of the folder without a trailing slash.
    """
    return f"{window_name.removesuffix('.win')}/{hash_of(folder)}.loc"


@dataclass(frozen=True, slots=True)
class Process:
    """The part that all bodies of an event have in common.

    :param event_id: ID of the event, also in the IDs of its jobs.
    :param dest: destination table.
    :param source: URL of the data file.
    :param time: time of the file's last update.
    :param project: project of the jobs; ``None``: that of BqTail's configuration.
    :param journal: URL of the journal.
    :param rule_url: URL of the rule.
    """

    event_id: str
    dest: str
    source: str
    time: datetime
    project: str | None
    journal: str
    rule_url: str

    @property
    def folder(self) -> str:
        """URL of the data file's folder without a trailing slash."""
        return posixpath.dirname(self.source)

    def to_dict(self) -> Document:
        """Return the common fields of windows and traces."""
        day = self.time.astimezone(UTC).strftime("%Y-%m-%d_%H")
        return {
            "Source": {"URL": self.source, "Time": _rfc3339(self.time), "Status": "pending"},
            "ProcessURL": f"{self.journal}/Running/{self.dest}--{self.event_id}.run",
            "DoneProcessURL": f"{self.journal}/Done/{self.dest}/{day}/{self.event_id}.run",
            "FailedURL": f"{self.journal}/failed",
            "RuleURL": self.rule_url,
            "EventID": self.event_id,
            **({"ProjectID": self.project} if self.project else {}),
        }


@dataclass(frozen=True, slots=True)
class WindowBody:
    """The body of a batch window.

    :param process: event that opened it.
    :param url: URL of the window.
    :param start: start of the window (inclusive), in seconds since the epoch.
    :param end: end of the window (exclusive), in seconds since the epoch.
    """

    process: Process
    url: str
    start: int
    end: int

    @classmethod
    def of(cls, process: Process, task_url: str, start: int, end: int, multi_path: bool) -> Self:
        """Return the window of an event.

        :param process: the event.
        :param task_url: URL of the task folder.
        :param start: start of the window (inclusive), in seconds since the epoch.
        :param end: end of the window (exclusive), in seconds since the epoch.
        :param multi_path: ``True``: the window has files of many folders, so its hash is independent of the folder.
        """
        suffix = posixpath.splitext(process.source)[1]
        digest = hash_of(f"{process.dest}{suffix}{suffix}{'' if multi_path else process.folder}")
        name = WindowName(process.dest, str(digest), datetime.fromtimestamp(end, UTC)).name
        return cls(process, f"{task_url.rstrip('/')}/{name}", start, end)

    @property
    def name(self) -> str:
        """Path of the window below the task folder."""
        return posixpath.basename(self.url)

    def to_json(self) -> str:
        """Return the content of the object."""
        start, end = (_rfc3339(datetime.fromtimestamp(each, UTC), "seconds") for each in (self.start, self.end))
        more = {"Async": True, "DestTable": self.process.dest, "URL": self.url, "Start": start, "End": end}
        return json.dumps({**self.process.to_dict(), **more}, separators=(",", ":"))

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read the content of an object.

        :param body: content of the object.
        :raises UnreadableBodyError: if a field is missing or invalid.
        """
        document = _read(body)
        try:
            start, end = (int(datetime.fromisoformat(document[key]).timestamp()) for key in ("Start", "End"))
            return cls(_process_of(document), _text(document, "URL"), start, end)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableBodyError(f"expected a window as BqTail writes it ({error!r})") from error


class TraceBody:
    """The body of a trace: a job, and the actions after its success or failure.

    ``job_id`` is the same at each try, so that BigQuery refuses a second job. ``location`` is empty if it has none.

    :param document: body as a JSON object.
    :raises KeyError: if a field is missing.
    :raises ValueError: if a field is empty.
    """

    def __init__(self, document: Document) -> None:
        job, meta = document["Job"], document["Meta"]
        reference = job["jobReference"]
        self.document = document
        self.process = _process_of(meta)
        self.event_id, self.dest = self.process.event_id, self.process.dest
        self.action = _text(document, "Action")
        self.kind = KINDS[self.action]
        self.step = int(meta["Step"])
        self.project, self.job_id = _text(reference, "projectId"), _text(reference, "jobId")
        self.location = str(reference.get("location", ""))
        self.name = trace_name(document, self.project, self.location).name
        self.sources = tuple(job["configuration"].get("load", {}).get("sourceUris", ()))
        self.on_success: list[Document] = document.get("OnSuccess", [])
        self.on_failure: list[Document] = document.get("OnFailure", [])

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read the content of an object.

        :param body: content of the object.
        :raises UnreadableBodyError: if a field is missing or invalid.
        """
        try:
            return cls(_read(body))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnreadableBodyError(f"expected a trace as BqTail writes it ({error!r})") from error

    @property
    def is_load(self) -> bool:
        """``True`` for a load job."""
        return self.kind == "load"

    @property
    def is_traced(self) -> bool:
        """``True`` if the job has a trace, which it has if any action follows it."""
        return bool(self.on_success or self.on_failure)

    def to_json(self) -> str:
        """Return the content of the object."""
        return json.dumps(self.document, separators=(",", ":"))

    def reload(self, sources: Sequence[str]) -> Document:
        """Return the action that loads files again without the corrupt ones, and continues the numbers of its steps.

        :param sources: URIs of the remaining files.
        """
        action = self._counting_on()
        left, gone = set(sources), set(self.sources) - set(sources)
        for each in all_actions(action):
            if each["Action"] == "delete" and gone & set(each["Request"]["URLs"]):
                each["Request"]["URLs"] = [url for url in each["Request"]["URLs"] if url in left]
        action["Action"] = "reload"
        action["Meta"] |= {"Action": "reload", "Step": self.step + 2}
        action["Request"]["SourceUris"] = list(sources)
        return action

    def replay(self, event_id: str) -> Document:
        """Return the action that loads the same files into the same table under another event ID.

        :param event_id: the other ID.
        """
        action = self._counting_on()
        for each in all_actions(action):
            if "Meta" in each:
                each["Meta"]["EventID"] = event_id
        return action

    def _counting_on(self) -> Document:
        """Return a copy of the action, with steps numbered after all steps of the original."""
        action = {name: deepcopy(value) for name, value in self.document.items() if name != "Job"}
        number = sum(1 for _ in all_actions(action))
        for each in all_actions(action):
            if "Meta" in each:
                each["Meta"] |= {key: each["Meta"][key] + number for key in ("Step", "StepCount")}
        return action


def trace_name(action: Document, project: str, location: str) -> TraceName:
    """Return the name of the trace of an action.

    :param action: the action.
    :param project: project of its job.
    :param location: location of its job; empty: none.
    """
    meta = action["Meta"]
    return TraceName(
        project, location or None, meta["DestTable"], meta["EventID"], meta["Step"] % _MAX_STEP, action["Action"]
    )


def all_actions(action: Document) -> Iterator[Document]:
    """Yield an action and all actions that follow it, in the order of their steps.

    :param action: the action.
    """
    yield action
    for name in ("OnSuccess", "OnFailure"):
        for each in action.get(name, ()):
            yield from all_actions(each)


def _process_of(document: Mapping[str, Any]) -> Process:
    source = document["Source"]
    return Process(
        _text(document, "EventID"),
        _text(document, "DestTable"),
        _text(source, "URL"),
        datetime.fromisoformat(source["Time"]),
        document.get("ProjectID") or None,
        _text(document, "FailedURL").removesuffix("/failed"),
        _text(document, "RuleURL"),
    )


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r}")
    return value


def _read(body: bytes) -> Document:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnreadableBodyError(f"no JSON ({error})") from error
    if not isinstance(document, dict):
        raise UnreadableBodyError("no JSON object")
    return document


def _rfc3339(time: datetime, timespec: str = "milliseconds") -> str:
    return time.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
