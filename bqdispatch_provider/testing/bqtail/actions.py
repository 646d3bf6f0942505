"""The actions of a chain, and the BigQuery jobs that they start.

Each action contains the actions after its success and after its failure, so the load action contains the whole chain.
Empty fields in the configuration of a load are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC

from bqdispatch_provider.names import TableName
from bqdispatch_provider.testing.bqtail.bodies import KINDS, Document, Process, TraceBody, all_actions, trace_name
from bqdispatch_provider.testing.bqtail.settings import Rule

_WITH_META = KINDS.keys() | {"insert", "call", "drop"}
_FIELDS = [{"name": "id", "type": "INTEGER"}, {"name": "v", "type": "STRING"}]


@dataclass(frozen=True, slots=True)
class _Table:
    """The table that a load job writes: a transient one, or the destination."""

    transient: bool
    name: str
    reference: Document


def load_action(
    process: Process,
    rule: Rule,
    steps: tuple[Sequence[str], Sequence[str], Sequence[str]],
    sources: Sequence[str],
    locations: Sequence[str] = (),
) -> Document:
    """Return the action that loads files, which contains the whole chain.

    :param process: event that starts the chain.
    :param rule: rule of the destination.
    :param steps: actions whose jobs have a trace, actions after them, and actions after a failed job.
    :param sources: URIs of the files.
    :param locations: URLs of the ``.loc`` objects of their folders, which are deleted after the load.
    """
    (first, *chain), then, on_failure = steps
    table = _loaded_table(process, rule.transient_dataset if chain else None)
    requests = _requests(process, rule, table, sources)
    failure = [_action(name, requests[name]) for name in on_failure]
    unlist = [_action("delete", {"SourceURL": "", "URLs": list(locations)})] if locations else []
    # They are deleted after the job that writes the destination: the load, or the copy from the transient table.
    unlist_at = 1 if table.transient else 0
    following = [_action(name, requests[name]) for name in then]
    last = len(chain)
    for position in reversed(range(last + 1)):
        if position == unlist_at:
            following += unlist
        if position == last:
            following += _closing(process, table)
        if position:
            name = chain[position - 1]
            following = [_action(name, requests[name], following, failure)]
    load = _action(first, requests["load"], following, failure)
    meta = _meta(process, table)
    # All actions count as steps, also those without metadata.
    for step, action in enumerate(all_actions(load), 1):
        if action["Action"] in _WITH_META:
            mode = "dispatch" if action["Action"] in KINDS else "nop"
            own = {"StepCount": step, "Action": action["Action"], "Mode": mode, "Step": step}
            action["Meta"] = {**deepcopy(meta), **own}
    return load


def _action(
    name: str, request: Document, on_success: Sequence[Document] = (), on_failure: Sequence[Document] = ()
) -> Document:
    following = {"OnSuccess": list(on_success), "OnFailure": list(on_failure)}
    return deepcopy({"Action": name, "Request": request, **{key: each for key, each in following.items() if each}})


def _loaded_table(process: Process, transient_dataset: str | None) -> _Table:
    project, dataset, table = split_dest(process.dest)
    if not transient_dataset:
        reference = {"ProjectId": project or "", "DatasetId": dataset, "TableId": table}
        return _Table(False, process.dest, reference)
    name = f"{table.partition('$')[0]}_{process.event_id}"
    reference = {"ProjectId": process.project or "", "DatasetId": transient_dataset, "TableId": name}
    owner = f"{process.project}:" if process.project else ""
    return _Table(True, f"{owner}{transient_dataset}.{name}", reference)


def _requests(process: Process, rule: Rule, table: _Table, sources: Sequence[str]) -> dict[str, Document]:
    """Return the requests of all actions."""
    dest, event_id = process.dest, process.event_id
    _, dataset, _ = split_dest(dest)
    if rule.dml:
        query: Document = {"SQL": f"DELETE FROM {dataset}.x WHERE e='{event_id}'"}
    else:
        sql = f"SELECT '{event_id}' AS e, COUNT(1) AS c FROM {dest.replace(':', '.')}"
        query = {"Append": True, "Dest": f"{dataset}.summary", "SQL": sql}
    return {
        "load": {
            "Append": True,
            "DestinationTable": table.reference,
            "Schema": {"Fields": [{"Name": each["name"], "Type": each["type"]} for each in _FIELDS]},
            "SourceUris": list(sources),
            "WriteDisposition": "WRITE_TRUNCATE" if table.transient else "WRITE_APPEND",
        },
        "copy": {
            "Append": True,
            "Dest": dest if table.transient else f"{dest.partition('$')[0]}_copy",
            "MultiPartition": False,
            "PartitionSQL": "",
            "Source": table.name,
            "Template": "",
        },
        "query": query,
        "export": {"Source": dest, "DestURL": f"{process.journal}/out/{event_id}.json"},
        "delete": {"URLs": list(sources)},
        "insert": {"Dest": f"{dataset}.audit", "Row": {"event": event_id}},
        "notify": {"Title": f"{dest} is loaded", "Channels": ["#bqtail"]},
        "call": {"Method": "POST", "URL": f"http://callback.example/done?e={event_id}"},
    }


def _closing(process: Process, table: _Table) -> list[Document]:
    """Return the last actions of a chain: move the event's file in the journal, and drop the transient table."""
    urls = process.to_dict()
    places = {"DestURL": urls["DoneProcessURL"], "SourceURL": urls["ProcessURL"]}
    actions = [_action("move", {**places, "IsDestAbsoluteURL": True, "SourceURLs": []})]
    if table.transient:
        project = {"ProjectID": process.project} if process.project else {}
        actions.append(_action("drop", {**project, "Table": table.name}))
    return actions


def _meta(process: Process, table: _Table) -> Document:
    """Return the metadata that all actions of a chain have in common."""
    time = process.time.astimezone(UTC)
    return {
        **process.to_dict(),
        "Params": {"Date": time.strftime("%Y%m%d"), "EventID": process.event_id, "Hour": time.strftime("%I")},
        "Async": True,
        **({"TempTable": f"`{table.name.replace(':', '.')}`"} if table.transient else {}),
        "DestTable": process.dest,
    }


def trace_of(action: Document, project: str, location: str) -> TraceBody:
    """Return the trace of an action, with the job that it starts.

    :param action: the action.
    :param project: project of the job if the action has none.
    :param location: location of the job; empty: none.
    """
    project = action["Meta"].get("ProjectID") or project
    meta = {**action["Meta"], "ProjectID": project, **({"Region": location} if location else {})}
    reference = {
        "jobId": trace_name(action, project, location).job_id,
        **({"location": location} if location else {}),
        "projectId": project,
    }
    job = {"configuration": _configuration(action, project), "jobReference": reference}
    return TraceBody({**action, "Meta": meta, "Job": job})


def _configuration(action: Document, project: str) -> Document:
    """Return the configuration of a job."""
    kind, request = KINDS[action["Action"]], action["Request"]
    if kind == "load":
        table = request["DestinationTable"]
        details = {
            "createDisposition": "CREATE_IF_NEEDED",
            "destinationTable": _reference(table["ProjectId"] or project, table["DatasetId"], table["TableId"]),
            "schema": {"fields": deepcopy(_FIELDS)},
            "sourceFormat": "NEWLINE_DELIMITED_JSON",
            "sourceUris": list(request["SourceUris"]),
            "writeDisposition": request["WriteDisposition"],
        }
    elif kind == "copy":
        details = {
            "createDisposition": "CREATE_IF_NEEDED",
            "destinationTable": _reference_to(request["Dest"], project),
            "sourceTable": _reference_to(request["Source"], project),
            "writeDisposition": "WRITE_APPEND",
        }
    elif kind == "extract":
        details = {
            "sourceTable": _reference_to(request["Source"], project),
            "destinationUris": [request["DestURL"]],
            "destinationFormat": "NEWLINE_DELIMITED_JSON",
        }
    else:
        details = {"query": request["SQL"], "useLegacySql": False}
        if "Dest" in request:
            dest = _reference_to(request["Dest"], project)
            details |= {"destinationTable": dest, "writeDisposition": "WRITE_APPEND"}
    return {kind: details}


def _reference_to(dest: str, project: str) -> Document:
    named, dataset, table = split_dest(dest)
    return _reference(named or project, dataset, table)


def _reference(project: str, dataset: str, table: str) -> Document:
    return {"datasetId": dataset, "projectId": project, "tableId": table}


def split_dest(dest: str) -> tuple[str | None, str, str]:
    """Split a table into project (``None``: no project), dataset, and table with its partition.

    :param dest: destination table, ``[project(:|.)]dataset.table``, also with a ``$partition``.
    """
    table = TableName.parse(dest)
    return table.project, table.dataset, dest.rpartition(".")[2]
