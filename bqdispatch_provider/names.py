"""The names of the objects in BqTail's task folder: what they say, and which BigQuery job they mean.

Rules: docs/protocol.md, sections "Objects in the task folder" and "From a trace name to a BigQuery job ID". Names are
untrusted text; destinations may contain every separator that the names use, so everything is read from the right.

Names are split at fixed separators and never matched with patterns: a pattern with two wildcards takes time that grows
with the square of a name's length, and 1,024 bytes of a name may be anybody's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

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

_ENTRY_KINDS = ("claim", "fired", "aside")
_GONE = "gone-"
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
            scheme, _, place = folder.partition(":")
            project, _, region = place.rpartition(":")
            if scheme != "proj" or "/" in folder or not _has_word(project):
                raise ValueError(f"{name!r} is not a trace: only proj:<project>:<region>/ folders hold traces")
        chain, between, ending = base.rpartition("--")
        mode, suffix = (ending[:-5], ".json") if ending.endswith(".json") and ending != ".json" else (ending, "")
        start, _, action = chain.rpartition("_")
        start, _, step = start.rpartition("_")
        # An event ID is never empty, so the last two dashes that may stand before it are not at the very end.
        cut_at = start.rfind("--", 1, -1)
        if (
            not between
            or not mode
            or "-" in ending
            or not action
            or "-" in action
            or not (len(step) == 5 and _is_number(step))
            or cut_at < 0
        ):
            raise ValueError(f"{name!r} is not a trace: expected <dest>--<event ID>_<5 digits>_<action>--<mode>[.json]")
        return cls(project, region or None, start[:cut_at], start[cut_at + 2 :], int(step), action, mode, suffix)

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
        start, _, seconds = name.removesuffix(".win").rpartition("_")
        dest, _, source_hash = start.rpartition("_")
        if (
            not name.endswith(".win")
            or "/" in name
            or not (dest and source_hash)
            or not (seconds == "0" or (len(seconds) <= 12 and _is_number(seconds) and seconds[0] != "0"))
        ):
            raise ValueError(f"{name!r} is not a batch window: expected <dest>_<hash>_<end in Unix seconds>.win")
        try:
            end = datetime.fromtimestamp(int(seconds), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"{name!r} is not a batch window: its end is no time ({error})") from error
        return cls(dest, source_hash, end)

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
        parts = _split_table(self.dest)
        return parts[0] if parts else None


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
        minute, _, entry = name.removeprefix(LEDGER).partition("/")
        start, _, what = entry.rpartition(".")
        window, _, generation = start.rpartition(".")
        step = what.removeprefix(_GONE)
        if (
            not name.startswith(LEDGER)
            or not (minute and window)
            or not (_is_number(generation) and generation[0] != "0")
            or not (what in _ENTRY_KINDS or (what.startswith(_GONE) and len(step) == 5 and _is_number(step)))
        ):
            raise ValueError(
                f"{name!r} is not an entry of the ledger: expected {LEDGER}<minute>/<window>.<generation>.<what>"
            )
        return cls(window, int(generation), what)

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
        parts = _split_table(dest.partition("$")[0])
        if parts is None:
            raise ValueError(f"{dest!r} is not a table: expected [project.]dataset.table")
        return cls(*parts)


@lru_cache(_REMEMBERED)
def _trace_name(name: str) -> TraceName:
    return TraceName._parse(name)


def _is_number(text: str) -> bool:
    """Tell whether a text consists of the digits 0 to 9; ``str.isdigit`` alone takes those of every script."""
    return text.isascii() and text.isdigit()


def _has_word(text: str) -> bool:
    """Tell whether a text holds a letter, a digit or an underscore."""
    return "_" in text or any(map(str.isalnum, text))


def _split_table(dest: str) -> tuple[str | None, str, str] | None:
    """Split ``[project(:|.)]dataset.table``.

    :returns: the project, ``None`` when there is none, the dataset and the table; ``None`` when this names no table.
    """
    start, _, table = dest.rpartition(".")
    before_dataset = max(start.rfind("."), start.rfind(":"))
    dataset = start[before_dataset + 1 :]
    if not dataset or not table or ":" in table or before_dataset == 0:
        return None
    return (start[:before_dataset] if before_dataset > 0 else None), dataset, table


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
