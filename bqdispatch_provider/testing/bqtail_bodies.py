"""What the stand-in BqTail writes into windows and traces, and reads once a dispatcher has delivered them.

Only BqTail looks at these bodies; a dispatcher passes them on unread (docs/protocol.md, "The flow").
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Self

from bqdispatch_provider.names import TraceName, WindowName

KINDS = {"load": "load", "reload": "load", "copy": "copy", "query": "query", "export": "extract"}
"""By action that starts a job: what BigQuery calls such a job."""

_JSON_TYPES = {"str": str, "int": int, "tuple[str, ...]": list}


class UnreadableBodyError(ValueError):
    """A body that is no JSON, or not what BqTail wrote."""


@dataclass(frozen=True, slots=True)
class _Body:
    event_id: str
    dest: str

    def to_json(self) -> str:
        """The body as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a stored body.

        :param body: the object's content.
        :raises UnreadableBodyError: when it has anything but exactly these fields.
        """
        try:
            document = json.loads(body)
        except ValueError as error:
            raise UnreadableBodyError(f"no JSON ({error})") from error
        types = {field.name: _JSON_TYPES[str(field.type)] for field in fields(cls)}
        if not isinstance(document, dict) or {name: type(value) for name, value in document.items()} != types:
            raise UnreadableBodyError(f"expected an object of {', '.join(types)}, as BqTail writes it")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class WindowBody(_Body):
    """The body of a batch window.

    :param event_id: event of the file that opened it; the chain of its load job goes by this ID.
    :param dest: destination table.
    :param start: first second of the window, in Unix seconds.
    :param end: first second after it, in Unix seconds.
    :param source_prefix: URI below which its data files lie.
    """

    start: int
    end: int
    source_prefix: str

    @property
    def name(self) -> str:
        """The window's path below the task folder."""
        digest = str(zlib.crc32(self.source_prefix.encode()))
        return WindowName(self.dest, digest, datetime.fromtimestamp(self.end, UTC)).name


@dataclass(frozen=True, slots=True)
class TraceBody(_Body):
    """The body of a trace: a job, and the actions after its success or failure.

    :param event_id: event that began the chain.
    :param dest: destination table.
    :param step: position in the chain, from 1.
    :param action: action that starts the job.
    :param project: project of the job.
    :param location: location of the job; empty: none is given.
    :param sources: URIs of the data files that the chain loads.
    :param chain: actions that come next and have a trace.
    :param then: actions after the last of them.
    :param on_failure: actions that come instead when this job fails.
    """

    step: int
    action: str
    project: str
    location: str
    sources: tuple[str, ...]
    chain: tuple[str, ...]
    then: tuple[str, ...]
    on_failure: tuple[str, ...]

    @property
    def name(self) -> str:
        """The trace's path below the task folder."""
        return self._name("dispatch").name

    def job_id(self, traced: bool = True) -> str:
        """The ID of the job: the same at each try, so that BigQuery refuses a second one.

        :param traced: whether the job has a trace.
        """
        return self._name("dispatch" if traced else "tail").job_id

    def next(self, action: str | None = None) -> TraceBody:
        """The next step.

        :param action: what follows the end of the chain; the chain's next action when left out.
        """
        chosen, rest = (action, ()) if action else (self.chain[0], self.chain[1:])
        return replace(self, step=self.step + 1, action=chosen, chain=rest)

    def configuration(self) -> dict[str, Any]:
        """The job's configuration as BigQuery takes it."""
        project, dataset, table = split_dest(self.dest)
        dest = {"projectId": project or self.project, "datasetId": dataset, "tableId": table}
        kind = KINDS[self.action]
        details: dict[str, Any] = {
            "load": {
                "sourceUris": list(self.sources),
                "destinationTable": dest,
                "sourceFormat": "NEWLINE_DELIMITED_JSON",
            },
            "copy": {"sourceTable": dest, "destinationTable": {**dest, "tableId": f"{table.partition('$')[0]}_copy"}},
            "query": {"query": "SELECT 1", "useLegacySql": False},
            "extract": {"sourceTable": dest, "destinationUris": [f"gs://{dataset}/{self.event_id}-*.json"]},
        }
        return {kind: details[kind]}

    def _name(self, mode: str) -> TraceName:
        return TraceName(
            self.project, self.location or None, self.dest, self.event_id, self.step % 99999, self.action, mode
        )


def split_dest(dest: str) -> tuple[str | None, str, str]:
    """Project (``None`` when none is named), dataset, and table with its partition.

    :param dest: destination table, ``[project(:|.)]dataset.table``, perhaps with a ``$partition``.
    """
    project = WindowName(dest, "0", datetime.fromtimestamp(0, UTC)).dest_project
    dataset, _, table = (dest[len(project) + 1 :] if project else dest).partition(".")
    return project, dataset, table
