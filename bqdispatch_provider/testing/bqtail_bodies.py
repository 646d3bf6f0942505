"""What the stand-in BqTail writes into windows and traces, and reads once a dispatcher has delivered them.

Names, folders and fields are those that the real BqTail writes (docs/protocol.md, "The flow"); a test compares them
with objects of its own. Of the configuration of a load, only what is not empty is written.
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
"""By action that starts a job: what BigQuery calls such a job."""

OTHER_ACTIONS = frozenset({"delete", "insert", "notify", "call"})
"""Actions that a rule can name and that start no job."""

_WITH_META = KINDS.keys() | {"insert", "call", "drop"}
_MAX_STEP = 99999
_FIELDS = [{"name": "id", "type": "INTEGER"}, {"name": "v", "type": "STRING"}]

Document = dict[str, Any]


class UnreadableBodyError(ValueError):
    """A body that is no JSON, or not what BqTail wrote."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How the files of a destination are ingested, where this differs from the settings.

    :param multi_path: whether one window gathers the files of many folders (``Batch.MultiPath``).
    :param transient_dataset: dataset of the table that a load writes before a copy or query reads it
        (``Transient.Dataset``); ``None``: the load writes the destination itself.
    :param transient_project: project of the jobs, whatever the destination says (``Transient.ProjectID``).
    :param transient_location: location of the transient dataset, and so of the load; the settings' when left out.
    :param balancer: projects from which each event takes one by chance (``Transient.Balancer``).
    :param dml: whether the queries of the chain change rows in place: BigQuery is given no location for them.
    :param chain: as in the settings.
    :param then: as in the settings.
    :param on_failure: as in the settings.
    """

    multi_path: bool = False
    transient_dataset: str | None = "temp"
    transient_project: str | None = None
    transient_location: str | None = None
    balancer: tuple[str, ...] = ()
    dml: bool = False
    chain: tuple[str, ...] | None = None
    then: tuple[str, ...] | None = None
    on_failure: tuple[str, ...] | None = None


def hash_of(text: str) -> int:
    """Return the hash by which BqTail tells windows and folders apart: FNV-1 of 64 bits, without its sign.

    :param text: what is hashed.
    """
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value * 0x100000001B3) % 2**64 ^ byte
    return min(value, 2**64 - value)


def location_name(window_name: str, folder: str) -> str:
    """Return the name of the ``.loc`` object that tells a window of many folders about one of them.

    :param window_name: path of the window.
    :param folder: URL of the folder, without a slash at its end.
    """
    return f"{window_name.removesuffix('.win')}/{hash_of(folder)}.loc"


@dataclass(frozen=True, slots=True)
class Process:
    """What all bodies of one event say.

    :param event_id: event that began it; the jobs of its chain go by this ID.
    :param dest: destination table.
    :param source: URL of the file whose event it was.
    :param time: when that file was updated.
    :param project: project of the jobs; ``None``: that of BqTail's configuration.
    :param journal: URL of BqTail's journal.
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
        """URL of the source's folder, without a slash at its end."""
        return posixpath.dirname(self.source)

    def to_dict(self) -> Document:
        """Return the fields that windows and traces share."""
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

    :param process: the event that opened it.
    :param url: URL of the window.
    :param start: first second of the window, in Unix seconds.
    :param end: first second after it, in Unix seconds.
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
        :param start: first second of the window.
        :param end: first second after it.
        :param multi_path: whether its hash leaves the folder out, so that all folders meet in it.
        """
        suffix = posixpath.splitext(process.source)[1]
        digest = hash_of(f"{process.dest}{suffix}{suffix}{'' if multi_path else process.folder}")
        name = WindowName(process.dest, str(digest), datetime.fromtimestamp(end, UTC)).name
        return cls(process, f"{task_url.rstrip('/')}/{name}", start, end)

    @property
    def event_id(self) -> str:
        """Event that opened it."""
        return self.process.event_id

    @property
    def dest(self) -> str:
        """Destination table."""
        return self.process.dest

    @property
    def name(self) -> str:
        """The window's path below the task folder."""
        return posixpath.basename(self.url)

    def to_json(self) -> str:
        """Return the body as it is stored."""
        times = {"Start": _rfc3339_seconds(self.start), "End": _rfc3339_seconds(self.end)}
        more = {"Async": True, "DestTable": self.dest, "URL": self.url}
        return json.dumps({**self.process.to_dict(), **more, **times}, separators=(",", ":"))

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a stored body.

        :param body: the object's content.
        :raises UnreadableBodyError: when it lacks what BqTail writes.
        """
        document = _read(body)
        try:
            start, end = (int(datetime.fromisoformat(document[key]).timestamp()) for key in ("Start", "End"))
            return cls(_process_of(document), _text(document, "URL"), start, end)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableBodyError(f"expected a window as BqTail writes it ({error!r})") from error


@dataclass(frozen=True, slots=True)
class TraceBody:
    """The body of a trace: a job, and the actions after its success or failure.

    :param document: the body.
    """

    document: Document

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a stored body.

        :param body: the object's content.
        :raises UnreadableBodyError: when it lacks what BqTail writes.
        """
        trace = cls(_read(body))
        try:
            _process_of(trace._meta)
            complete = trace.action in KINDS and trace.job_id and trace.project and isinstance(trace.step, int)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableBodyError(f"expected a trace as BqTail writes it ({error!r})") from error
        if not complete:
            raise UnreadableBodyError("expected a trace as BqTail writes it")
        return trace

    @property
    def _meta(self) -> Document:
        return dict(self.document["Meta"])

    @property
    def process(self) -> Process:
        """The event that began the chain."""
        return _process_of(self._meta)

    @property
    def event_id(self) -> str:
        """ID of the event that began the chain."""
        return str(self._meta["EventID"])

    @property
    def dest(self) -> str:
        """Destination table."""
        return str(self._meta["DestTable"])

    @property
    def step(self) -> int:
        """Position in the chain, from 1."""
        step: int = self._meta["Step"]
        return step

    @property
    def action(self) -> str:
        """Action that starts the job."""
        return str(self.document["Action"])

    @property
    def project(self) -> str:
        """Project of the job."""
        return str(self.document["Job"]["jobReference"]["projectId"])

    @property
    def location(self) -> str:
        """Location of the job; empty: none is given."""
        return str(self.document["Job"]["jobReference"].get("location", ""))

    @property
    def job_id(self) -> str:
        """ID of the job: the same at each try, so that BigQuery refuses a second one."""
        return str(self.document["Job"]["jobReference"]["jobId"])

    @property
    def name(self) -> str:
        """The trace's path below the task folder."""
        return _name_of(self.document, self.project, self.location).name

    @property
    def is_load(self) -> bool:
        """Whether the job loads files."""
        return KINDS[self.action] == "load"

    @property
    def sources(self) -> tuple[str, ...]:
        """URIs of the data files that the job loads."""
        return tuple(self.document["Job"]["configuration"].get("load", {}).get("sourceUris", ()))

    @property
    def on_success(self) -> list[Document]:
        """Actions after the job's success."""
        return list(self.document.get("OnSuccess", ()))

    @property
    def on_failure(self) -> list[Document]:
        """Actions after the job's failure."""
        return list(self.document.get("OnFailure", ()))

    @property
    def is_traced(self) -> bool:
        """Whether the job has a trace: it has one if anything comes after it."""
        return bool(self.on_success or self.on_failure)

    def to_json(self) -> str:
        """Return the body as it is stored."""
        return json.dumps(self.document, separators=(",", ":"))

    def reload(self, sources: Sequence[str]) -> Document:
        """Return the action that loads again, without the files that were corrupt.

        BqTail reads the chain afresh, but goes on counting its steps.

        :param sources: the files that are left.
        """
        action = self._counting_on()
        left, gone = set(sources), set(self.sources) - set(sources)
        for each in _all_actions(action):
            if each["Action"] == "delete" and gone & set(each["Request"]["URLs"]):
                each["Request"]["URLs"] = [url for url in each["Request"]["URLs"] if url in left]
        action["Action"] = "reload"
        action["Meta"] |= {"Action": "reload", "Step": self.step + 2}
        action["Request"]["SourceUris"] = list(sources)
        return action

    def replay(self, event_id: str) -> Document:
        """Return the action that loads the same files again under another ID, into the same table.

        :param event_id: the ID.
        """
        action = self._counting_on()
        for each in _all_actions(action):
            if "Meta" in each:
                each["Meta"]["EventID"] = event_id
        return action

    def _counting_on(self) -> Document:
        """Return the action anew, its steps numbered after all of those that it had."""
        action = {name: deepcopy(value) for name, value in self.document.items() if name != "Job"}
        number = sum(1 for _ in _all_actions(action))
        for each in _all_actions(action):
            if "Meta" in each:
                each["Meta"] |= {key: each["Meta"][key] + number for key in ("Step", "StepCount")}
        return action


@dataclass(frozen=True, slots=True)
class _Spec:
    """An action of a rule, not numbered yet."""

    action: str
    request: Mapping[str, Any]
    on_success: tuple[_Spec, ...] = ()
    on_failure: tuple[_Spec, ...] = ()


def load_action(
    process: Process,
    rule: Rule,
    steps: tuple[Sequence[str], Sequence[str], Sequence[str]],
    sources: Sequence[str],
    locations: Sequence[str] = (),
) -> Document:
    """Return the action that loads files, with everything that follows in it.

    :param process: the event that began the chain.
    :param rule: how the destination is ingested.
    :param steps: actions whose jobs have a trace, those after the last of them, and those after a failed job.
    :param sources: URIs of the files.
    :param locations: URLs of the ``.loc`` objects that named their folders; the load's success deletes them.
    """
    (first, *chain), then, on_failure = steps
    project, dataset, table = split_dest(process.dest)
    transient = bool(chain and rule.transient_dataset)
    temp = f"{table.partition('$')[0]}_{process.event_id}"
    own = process.project or ""
    final = {"ProjectId": project, "DatasetId": dataset, "TableId": table}
    written = {"ProjectId": own, "DatasetId": rule.transient_dataset, "TableId": temp} if transient else final
    table_name = _table_name(own, str(written["DatasetId"]), temp) if transient else process.dest
    requests: dict[str, Document] = {
        "copy": {
            "Append": True,
            "Dest": process.dest if transient else f"{process.dest.partition('$')[0]}_copy",
            "MultiPartition": False,
            "PartitionSQL": "",
            "Source": table_name,
            "Template": "",
        },
        "query": _query_request(process, dataset, rule.dml),
        "export": {"Source": process.dest, "DestURL": f"{process.journal}/out/{process.event_id}.json"},
        "delete": {"URLs": list(sources)},
        "insert": {"Dest": f"{dataset}.audit", "Row": {"event": process.event_id}},
        "notify": {"Title": f"{process.dest} is loaded", "Channels": ["#bqtail"]},
        "call": {"Method": "POST", "URL": f"http://callback.example/done?e={process.event_id}"},
    }
    failure = tuple(_Spec(action, requests[action]) for action in on_failure)
    done = process.to_dict()
    closing = [
        _Spec(
            "move",
            {
                "DestURL": done["DoneProcessURL"],
                "IsDestAbsoluteURL": True,
                "SourceURL": done["ProcessURL"],
                "SourceURLs": [],
            },
        )
    ]
    if transient:
        closing.append(_Spec("drop", {**({"ProjectID": own} if own else {}), "Table": table_name}))
    unlist = (_Spec("delete", {"SourceURL": "", "URLs": list(locations)}),) if locations else ()
    # The rule's own actions come after the load, or after the copy that brings what it loaded to its table.
    at_rule = 1 if transient else 0
    following: tuple[_Spec, ...] = tuple(_Spec(action, requests[action]) for action in then)
    last = len(chain)
    for position in reversed(range(last + 1)):
        if position == at_rule:
            following += unlist
        if position == last:
            following += tuple(closing)
        if position:
            action = chain[position - 1]
            following = (_Spec(action, requests[action], following, failure),)
    request = {
        "Append": True,
        "DestinationTable": {name: value or "" for name, value in written.items()},
        "Schema": {"Fields": [{"Name": each["name"], "Type": each["type"]} for each in _FIELDS]},
        "SourceUris": list(sources),
        "WriteDisposition": "WRITE_TRUNCATE" if transient else "WRITE_APPEND",
    }
    shared = {
        **done,
        "Params": {
            "Date": process.time.astimezone(UTC).strftime("%Y%m%d"),
            "EventID": process.event_id,
            "Hour": process.time.astimezone(UTC).strftime("%I"),
        },
        "Async": True,
        **({"TempTable": f"`{table_name.replace(':', '.')}`"} if transient else {}),
        "DestTable": process.dest,
    }
    return _numbered(_Spec(first, request, following, failure), shared, [0])


def _query_request(process: Process, dataset: str, dml: bool) -> Document:
    if dml:
        return {"SQL": f"DELETE FROM {dataset}.x WHERE e='{process.event_id}'"}
    sql = f"SELECT '{process.event_id}' AS e, COUNT(1) AS c FROM {process.dest.replace(':', '.')}"
    return {"Append": True, "Dest": f"{dataset}.summary", "SQL": sql}


def _numbered(spec: _Spec, shared: Document, count: list[int]) -> Document:
    """Return the action with its place in the chain, which counts all actions, those without meta data too."""
    count[0] += 1
    step = count[0]
    action: Document = {"Action": spec.action}
    if spec.action in _WITH_META:
        mode = "dispatch" if spec.action in KINDS else "nop"
        action["Meta"] = {**deepcopy(shared), "StepCount": step, "Action": spec.action, "Mode": mode, "Step": step}
    action["Request"] = deepcopy(dict(spec.request))
    for name, specs in (("OnSuccess", spec.on_success), ("OnFailure", spec.on_failure)):
        if specs:
            action[name] = [_numbered(each, shared, count) for each in specs]
    return action


def submitted(action: Document, project: str, location: str) -> TraceBody:
    """Return an action with the job that it starts.

    :param action: the action.
    :param project: project of the job, where the action names none.
    :param location: location of the job; empty: none is given.
    """
    project = action["Meta"].get("ProjectID") or project
    meta = {**action["Meta"], "ProjectID": project, **({"Region": location} if location else {})}
    reference = {
        "jobId": _name_of(action, project, location).job_id,
        **({"location": location} if location else {}),
        "projectId": project,
    }
    job = {"configuration": _configuration(action, project), "jobReference": reference}
    return TraceBody(
        {"Action": action["Action"], "Meta": meta, "Request": action["Request"], "Job": job, **_after(action)}
    )


def _after(action: Document) -> Document:
    return {name: action[name] for name in ("OnSuccess", "OnFailure") if name in action}


def _configuration(action: Document, project: str) -> Document:
    """Return the job's configuration as BigQuery takes it."""
    kind, request = KINDS[action["Action"]], action["Request"]
    if kind == "load":
        table = request["DestinationTable"]
        return {
            kind: {
                "createDisposition": "CREATE_IF_NEEDED",
                "destinationTable": _reference(table["ProjectId"] or project, table["DatasetId"], table["TableId"]),
                "schema": {"fields": deepcopy(_FIELDS)},
                "sourceFormat": "NEWLINE_DELIMITED_JSON",
                "sourceUris": list(request["SourceUris"]),
                "writeDisposition": request["WriteDisposition"],
            }
        }
    if kind == "copy":
        return {
            kind: {
                "createDisposition": "CREATE_IF_NEEDED",
                "destinationTable": _reference_to(request["Dest"], project),
                "sourceTable": _reference_to(request["Source"], project),
                "writeDisposition": "WRITE_APPEND",
            }
        }
    if kind == "extract":
        return {
            kind: {
                "sourceTable": _reference_to(request["Source"], project),
                "destinationUris": [request["DestURL"]],
                "destinationFormat": "NEWLINE_DELIMITED_JSON",
            }
        }
    query: Document = {"query": request["SQL"], "useLegacySql": False}
    if "Dest" in request:
        query |= {"destinationTable": _reference_to(request["Dest"], project), "writeDisposition": "WRITE_APPEND"}
    return {kind: query}


def _reference_to(dest: str, project: str) -> Document:
    named, dataset, table = split_dest(dest)
    return _reference(named or project, dataset, table)


def _reference(project: str, dataset: str, table: str) -> Document:
    return {"datasetId": dataset, "projectId": project, "tableId": table}


def _table_name(project: str, dataset: str, table: str) -> str:
    return f"{project}:{dataset}.{table}" if project else f"{dataset}.{table}"


def _name_of(action: Document, project: str, location: str) -> TraceName:
    meta = action["Meta"]
    return TraceName(
        project, location or None, meta["DestTable"], meta["EventID"], meta["Step"] % _MAX_STEP, action["Action"]
    )


def _all_actions(action: Document) -> Iterator[Document]:
    yield action
    for name in ("OnSuccess", "OnFailure"):
        for each in action.get(name, ()):
            yield from _all_actions(each)


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


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rfc3339_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def split_dest(dest: str) -> tuple[str | None, str, str]:
    """Return project (``None`` when none is named), dataset, and table with its partition.

    :param dest: destination table, ``[project(:|.)]dataset.table``, perhaps with a ``$partition``.
    """
    project = WindowName(dest, "0", datetime.fromtimestamp(0, UTC)).dest_project
    dataset, _, table = (dest[len(project) + 1 :] if project else dest).partition(".")
    return project, dataset, table
