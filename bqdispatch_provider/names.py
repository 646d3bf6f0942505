"""The names of the objects in BqTail's task folder: what they say, and which BigQuery job they mean.

Rules: docs/protocol.md, sections "Objects in the task folder" and "From a trace name to a BigQuery job ID". Names are
untrusted text; destinations may contain every separator that the names use, so everything is read from the right.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

_FOLDER = re.compile(r"proj:(?P<project>.*\w.*):(?P<region>[^:]*)", re.DOTALL)
_TRACE = re.compile(
    r"(?P<dest>.+)--(?P<event_id>.+)_(?P<step>[0-9]{5})_(?P<action>[^_-]+)--(?P<mode>[^-]+?)(?P<suffix>\.json)?",
    re.DOTALL,
)
_WINDOW = re.compile(r"(?P<dest>.+)_(?P<hash>[^_]+)_(?P<end>0|[1-9][0-9]{0,11})\.win", re.DOTALL)
_DEST_PROJECT = re.compile(r"(?P<project>.+)[.:][^.:]+\.[^.:]+", re.DOTALL)
_TABLE = re.compile(r"(?:(?P<project>.+)[.:])?(?P<dataset>[^.:]+)\.(?P<table>[^.:]+)", re.DOTALL)
ACTIONS = ("load", "reload", "copy", "query", "export")
"""What BqTail's jobs do (docs/protocol.md, first section); a name that holds another word is a trace all the same."""

LOADS = ("load", "reload")
"""Actions of the jobs that load files."""

INTENTS = "intents/"
"""Folder in the task folder where dispatchers write down what they are about to dispatch."""

UNDECIDED = "undecided/"
"""Folder in the task folder where windows wait that cannot be decided on, until somebody does."""

LEDGER = "~ledger/"
"""Folder in the task folder that remembers fired windows."""

UNLISTED = "~"
"""A look lists no name of the task folder from here on: no name of BqTail's sorts behind it."""

_ENTRY = re.compile(
    rf"{re.escape(LEDGER)}[^/]+/(?P<window>.+)\.(?P<generation>[1-9][0-9]*)\.(?P<what>claim|fired|aside|gone-[0-9]{{5}})",
    re.DOTALL,
)
_REMEMBERED = 100_000
"""Names that are read once, however often they are met: more than a cycle dispatches at a time."""


@dataclass(frozen=True, slots=True)
class TraceName:
    """The name of a trace: a submitted job that waits for its post actions.

    :param project: project of the job; ``None`` without a ``proj:`` folder, when the configured project is meant.
    :param region: location of the job; ``None`` without a ``proj:`` folder, or when the folder names none.
    :param dest: destination table, ``[project(:|.)]dataset.table``, perhaps with a ``$partition``.
    :param event_id: storage event that began the chain of jobs.
    :param step: position in the chain, 0 to 99,998.
    :param action: one of :data:`ACTIONS`.
    :param mode: ``dispatch``; other words occur in old names and do not matter.
    :param suffix: ``.json`` where the name ends so, else empty.
    """

    project: str | None
    region: str | None
    dest: str
    event_id: str
    step: int
    action: str
    mode: str = "dispatch"
    suffix: str = ""

    @classmethod
    def parse(cls, name: str) -> TraceName:
        """Read a trace's name.

        :param name: path below the task folder.
        :raises ValueError: when this is not the name of a trace.
        """
        return _trace_name(name)

    @classmethod
    def _parse(cls, name: str) -> TraceName:
        folder, slash, base = name.rpartition("/")
        project = region = None
        if slash:
            in_folder = _FOLDER.fullmatch(folder)
            if in_folder is None or "/" in folder:
                raise ValueError(f"{name!r} is not a trace: only proj:<project>:<region>/ folders hold traces")
            project, region = in_folder["project"], in_folder["region"] or None
        parts = _TRACE.fullmatch(base)
        if parts is None:
            raise ValueError(f"{name!r} is not a trace: expected <dest>--<event ID>_<5 digits>_<action>--<mode>[.json]")
        return cls(
            project,
            region,
            parts["dest"],
            parts["event_id"],
            int(parts["step"]),
            parts["action"],
            parts["mode"],
            parts["suffix"] or "",
        )

    @property
    def _base(self) -> str:
        return f"{self.dest}--{self.event_id}_{self.step:05}_{self.action}--{self.mode}"

    @property
    def name(self) -> str:
        """The object's path below the task folder."""
        folder = "" if self.project is None else f"proj:{self.project}:{self.region or ''}/"
        return f"{folder}{self._base}{self.suffix}"

    @property
    def job_id(self) -> str:
        """The ID of the BigQuery job. Names can meet in one ID, so never go back from here to a name."""
        return as_job_id(self._base)


@dataclass(frozen=True, slots=True)
class WindowName:
    """The name of a batch window: a batch of files that is due at the window's end.

    :param dest: destination table, as in :class:`TraceName`.
    :param hash: hash of the batch's source, as BqTail wrote it.
    :param end: when the window ends (aware, UTC).
    """

    dest: str
    hash: str
    end: datetime

    @classmethod
    def parse(cls, name: str) -> WindowName:
        """Read a batch window's name.

        :param name: path below the task folder.
        :raises ValueError: when this is not the name of a window.
        """
        parts = _WINDOW.fullmatch(name)
        if parts is None or "/" in name:
            raise ValueError(f"{name!r} is not a batch window: expected <dest>_<hash>_<end in Unix seconds>.win")
        try:
            end = datetime.fromtimestamp(int(parts["end"]), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"{name!r} is not a batch window: its end is no time ({error})") from error
        return cls(parts["dest"], parts["hash"], end)

    @property
    def _stem(self) -> str:
        return f"{self.dest}_{self.hash}_{int(self.end.timestamp())}"

    @property
    def name(self) -> str:
        """The object's path below the task folder."""
        return f"{self._stem}.win"

    @property
    def sentinel(self) -> str:
        """The name of the object by which the Go dispatcher says that this window has been fired."""
        return f"{self._stem}.wis"

    @property
    def locations(self) -> str:
        """The folder in which BqTail names the data folders of a window that has many: ``*.loc`` objects."""
        return f"{self._stem}/"

    @property
    def dest_project(self) -> str | None:
        """The destination's project; ``None`` when it names none, and the configured project is meant."""
        in_project = _DEST_PROJECT.fullmatch(self.dest)
        return in_project["project"] if in_project else None


@dataclass(frozen=True, slots=True)
class LedgerName:
    """The name of an entry in the ledger of fired windows: what was done with one generation of a window.

    Rules: docs/protocol.md, section "The ledger of fired windows".

    :param window: name of the window; a long one is cut and ends in a hash.
    :param generation: of the window.
    :param what: ``claim``, ``fired``, ``aside``, or ``gone-<step of the last load>``.
    """

    window: str
    generation: int
    what: str

    @classmethod
    def parse(cls, name: str) -> LedgerName:
        """Read an entry's name.

        :param name: path below the task folder.
        :raises ValueError: when this is not the name of an entry.
        """
        parts = _ENTRY.fullmatch(name)
        if parts is None:
            raise ValueError(
                f"{name!r} is not an entry of the ledger: expected {LEDGER}<minute>/<window>.<generation>.<what>"
            )
        return cls(parts["window"], int(parts["generation"]), parts["what"])

    @staticmethod
    def folder(end: datetime) -> str:
        """The folder of the windows that end in the same minute.

        :param end: when the window ends (aware).
        """
        return f"{LEDGER}{end.astimezone(UTC):%Y-%m-%d_%H-%M}/"


@dataclass(frozen=True, slots=True)
class TableName:
    """A BigQuery table, however it was written.

    :param project: ``None`` when the name has none, and the configured project is meant.
    """

    project: str | None
    dataset: str
    table: str

    @classmethod
    def parse(cls, dest: str) -> TableName:
        """Read ``[project:]dataset.table`` or ``[project.]dataset.table``; a ``$partition`` does not matter.

        :raises ValueError: when this names no table.
        """
        parts = _TABLE.fullmatch(dest.partition("$")[0])
        if parts is None:
            raise ValueError(f"{dest!r} is not a table: expected [project.]dataset.table")
        return cls(parts["project"], parts["dataset"], parts["table"])


@lru_cache(_REMEMBERED)
def _trace_name(name: str) -> TraceName:
    return TraceName._parse(name)


def cut(name: str, room: int) -> str:
    """Return a name that fits: a longer one is cut, and ends in a hash of the whole.

    :param name: any text.
    :param room: bytes that it may take.
    """
    if len(name.encode()) <= room:
        return name
    mark = f"~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name.encode()[: max(room - len(mark), 0)].decode(errors="ignore") + mark


def as_job_id(text: str) -> str:
    """What becomes of a name's text in a job ID (docs/protocol.md, "From a trace name to a BigQuery job ID")."""
    return text.replace("/", "--").replace("$", "_").replace(":", "_").replace(".", "_")


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: ``1 object``, ``1,200 objects``.

    :param noun: one of the things.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_one_line(text: str) -> str:
    """Text that quotes names, for a log, a report or a terminal: what they would obey is escaped, as ``repr`` does."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def in_words(error: BaseException) -> str:
    """An error for a message, in one line."""
    return in_one_line(f"{type(error).__name__}: {error}")


def is_bookkeeping(name: str) -> bool:
    """Tell whether an object of the task folder is BqTail's own (groups, counters, locations), never to be touched."""
    folder, slash, base = name.rpartition("/")
    if slash and not ("/" not in folder and folder.startswith("proj:")):
        return True
    return base.endswith((".grp", ".cnt", ".loc")) or not base
