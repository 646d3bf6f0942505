"""The names of BqTail's objects in the task folder, those of our documents in the journal, and text that quotes names.

Rules: docs/protocol.md, sections "Objects in the task folder" and "From a trace name to a BigQuery job ID". Names are
untrusted text. Destinations may contain every separator that the names use, so names are read from the right.

Names are split at fixed separators and never matched with patterns: a pattern with two wildcards takes time that grows
with the square of a name's length, and a name may have 1,024 bytes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

from bqdispatch_provider.config_errors import ConfigError

ACTIONS = ("load", "reload", "copy", "query", "export")
"""Actions of BqTail's jobs (docs/protocol.md, first section). A name with another action is a trace all the same."""

LOADS = ("load", "reload")
"""Actions of the jobs that load files."""

_CACHED_NAMES = 100_000
"""More than a cycle dispatches, so that each of its names is read once."""


class JournalName(StrEnum):
    """Names below ``JournalURL``, which ends with a slash as folders here do."""

    PERFORMANCE = "performance.json"
    """The load of each project, for BqTail's balancer."""

    WAITS = "waiting.json"
    """Events that have waited in trouble, and how often."""

    LEDGER_CLEANED = "ledger.json"
    """Up to when the ledger of fired windows is clean."""

    JOURNAL_CLEANED = "retention.json"
    """Time of the last deletion of old documents."""

    RUNS = "runs/"
    """Folder: what the tasks of DAG runs leave."""

    HISTORY = "history/"
    """Folder: the figures of each hour."""

    NOTIFIED = "notified/"
    """Folder: alerts that were posted to Slack."""


@dataclass(frozen=True, slots=True)
class TraceName:
    """The name of a trace: a submitted job that waits for its post actions.

    :param project: project of the job; ``None`` without a ``proj:`` folder, which means the configured project.
    :param region: location of the job; ``None`` without a ``proj:`` folder, or if the folder names none.
    :param dest: destination table, ``[project(:|.)]dataset.table``, perhaps with a ``$partition``.
    :param event_id: storage event that began the chain of jobs.
    :param step: position in the chain, 0 to 99,998.
    :param action: one of :data:`ACTIONS`.
    :param mode: ``dispatch``; other words occur in old names and do not matter.
    :param suffix: ``.json`` if the name ends so, else empty.
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
        return _parse_trace(name)

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
        """The ID of the BigQuery job. Several names may give the same ID, so an ID gives no name."""
        return as_job_id(self._base)


@dataclass(frozen=True, slots=True)
class WindowName:
    """The name of a batch window: a batch of files that is loaded after the window's end.

    :param dest: destination table, as in :class:`TraceName`.
    :param hash: hash of the batch's source, as BqTail wrote it.
    :param end: end of the window (aware, UTC).
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
            or not (seconds == "0" or (len(seconds) <= 12 and is_number(seconds) and seconds[0] != "0"))
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
        """The name of the Go dispatcher's sentinel, which says that this window was fired."""
        return f"{self._stem}.wis"

    @property
    def locations(self) -> str:
        """The folder of the ``*.loc`` objects that name the data folders of a window with many folders."""
        return f"{self._stem}/"

    def is_location(self, name: str) -> bool:
        """Tell whether an object names a data folder of this window.

        :param name: path below the task folder.
        """
        base = name.removeprefix(self.locations)
        return base != name and "/" not in base and base.endswith(".loc")

    @property
    def dest_project(self) -> str | None:
        """The destination's project; ``None`` if it names none, which means the configured project."""
        parts = _split_table(self.dest)
        return parts[0] if parts else None


@dataclass(frozen=True, slots=True)
class TableName:
    """The name of a BigQuery table.

    :param project: ``None`` if the name has none, which means the configured project.
    """

    project: str | None
    dataset: str
    table: str

    @classmethod
    def parse(cls, dest: str) -> TableName:
        """Read a table's name.

        :param dest: ``[project:]dataset.table`` or ``[project.]dataset.table``; a ``$partition`` is left out.
        :raises ValueError: when this names no table.
        """
        parts = _split_table(dest.partition("$")[0])
        if parts is None:
            raise ValueError(f"{dest!r} is not a table: expected [project.]dataset.table")
        return cls(*parts)


def parse_event(name: str) -> TraceName | WindowName:
    """Read the name of a trace or of a batch window.

    :param name: path below the task folder.
    :raises ValueError: when this is neither.
    """
    return WindowName.parse(name) if name.endswith(".win") else TraceName.parse(name)


@lru_cache(_CACHED_NAMES)
def _parse_trace(name: str) -> TraceName:
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
        or not (len(step) == 5 and is_number(step))
        or cut_at < 0
    ):
        raise ValueError(f"{name!r} is not a trace: expected <dest>--<event ID>_<5 digits>_<action>--<mode>[.json]")
    return TraceName(project, region or None, start[:cut_at], start[cut_at + 2 :], int(step), action, mode, suffix)


def is_number(text: str) -> bool:
    """Tell whether a text consists of the digits 0 to 9. ``str.isdigit`` alone takes digits of every script."""
    return text.isascii() and text.isdigit()


def _has_word(text: str) -> bool:
    """Tell whether a text holds a letter, a digit or an underscore."""
    return "_" in text or any(map(str.isalnum, text))


def _split_table(dest: str) -> tuple[str | None, str, str] | None:
    """Split ``[project(:|.)]dataset.table``.

    :returns: the project (``None`` without one), the dataset and the table; ``None`` if this is no table.
    """
    start, _, table = dest.rpartition(".")
    before_dataset = max(start.rfind("."), start.rfind(":"))
    dataset = start[before_dataset + 1 :]
    if not dataset or not table or ":" in table or before_dataset == 0:
        return None
    return (start[:before_dataset] if before_dataset > 0 else None), dataset, table


def as_job_id(text: str) -> str:
    """Return a name's text as it stands in a job ID."""
    return text.replace("/", "--").replace("$", "_").replace(":", "_").replace(".", "_")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 object``, ``1,200 objects``.

    :param noun: in the singular.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_one_line(text: str) -> str:
    """Return text that quotes names for a log, a report or a terminal: control characters are escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shell_quoted(text: str) -> str:
    """Return text that quotes names as one word of a shell's command, of printable characters alone.

    Pasted control characters are keys to a shell: one could end the paste, and another run what stands behind it.
    ``$'…'``, with bytes in octal, is read by bash, zsh and every shell of POSIX.1-2024.
    """
    if text.isprintable():
        return shlex.quote(text)
    return "$'{}'".format("".join(map(_in_octal, text)))


def shell_joined(words: Iterable[str]) -> str:
    """Return a shell's command, in one line of printable characters.

    :param words: of the command; they may quote names.
    """
    return " ".join(map(shell_quoted, words))


def _in_octal(character: str) -> str:
    if character.isprintable() and character not in "\\'":
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogatepass"))


_CALL = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) https?://\S+: ")

MAX_MESSAGE_CHARS = 4000
"""Of what a service said: it may quote the names of two objects, of 1,024 bytes each. A proxy may send a whole page."""


def in_words(error: BaseException) -> str:
    """Return an error for a message, in one line, without the long URL that Google's clients put before the answer."""
    if isinstance(error, ConfigError):
        said = in_one_line(error.one_line)
    else:
        said = in_one_line(f"{type(error).__name__}: {_CALL.sub('', str(error), count=1)}")
    return said if len(said) <= MAX_MESSAGE_CHARS else f"{said[:MAX_MESSAGE_CHARS]}…"


def is_bookkeeping(name: str) -> bool:
    """Tell whether an object of the task folder is BqTail's bookkeeping (groups, counters, locations)."""
    folder, slash, base = name.rpartition("/")
    if slash and not ("/" not in folder and folder.startswith("proj:")):
        return True
    return base.endswith((".grp", ".cnt", ".loc")) or not base
