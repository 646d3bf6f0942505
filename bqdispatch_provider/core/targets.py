"""The names and the metadata keys that a dispatcher writes.

Each name is a function of the object alone, so that a second try finds what the first one wrote. Rules:
docs/protocol.md, "Where things go" and "The ledger of fired windows".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Lane
from bqdispatch_provider.names import WindowName, is_number

CREATED = "bqdispatch-created"
"""Metadata of an object that was given a new generation: creation of the first one, in Unix seconds."""

REPLAYED = "bqdispatch-replayed"
"""Metadata of a window that was put back from quarantine: it is fired whatever is known of earlier firings."""

OWNER = "bqdispatch-owner"
"""Metadata of an object in the task folder: the dispatcher that wrote it."""

REPLAY = "bqdispatch-replay"
"""Metadata of an object on its way back from quarantine, which must not be dispatched yet: its generation before the
quarantine."""

CLAIMED = "bqdispatch-claimed"
"""Metadata of a claim: when its window was claimed first, in Unix seconds."""

REASON = "bqdispatch-reason"
"""Metadata of the object that names an undecided window: why it was set aside, for people."""

SINCE = "bqdispatch-since"
"""Metadata of an object that came back from quarantine: when it was first written, in Unix seconds."""

INTENTS = "intents/"
"""Folder in the task folder: what dispatchers are about to dispatch."""

UNDECIDED = "undecided/"
"""Folder in the task folder: windows that wait until somebody decides on them."""

LEDGER = "~ledger/"
"""Folder in the task folder: the ledger of fired windows."""

UNLISTED = "~"
"""Names in the task folder from here on are not listed by a look. No name of BqTail's sorts behind it."""

MAX_OBJECT_NAME_BYTES = 1024
"""Bytes of an object's name (Cloud Storage, "Object names")."""

_GENERATION = re.compile(r"_[0-9]{10,}$")
"""The generation at the end of an alternative target, without its file ending."""

_SHORTENED = re.compile(r"~[0-9a-f]{16}\Z")
"""The end of a name that :func:`shortened` has cut."""

_QUARANTINE_PATH = re.compile(r"(\d{4}-\d\d-\d\d)/(.+)\.([1-9]\d*)", re.DOTALL)

_GONE = "gone-"
_MAX_LEDGER_ENDING_BYTES = len(f".{2**63 - 1}.{_GONE}99999")
"""Bytes of the longest ending of a name in the ledger, behind the window's name."""


@dataclass(frozen=True, slots=True)
class LedgerName:
    """The name of an entry in the ledger: what was done with one generation of a window.

    :param window: name of the window; a long one is shortened.
    :param generation: generation of the window.
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
            or not (is_number(generation) and generation[0] != "0")
            or not (what in ("claim", "fired", "aside") or (what != step and len(step) == 5 and is_number(step)))
        ):
            raise ValueError(
                f"{name!r} is not an entry of the ledger: expected {LEDGER}<minute>/<window>.<generation>.<what>"
            )
        return cls(window, int(generation), what)

    @property
    def is_of_window(self) -> bool:
        """True if it names a window; a name that was shortened ends in a hash."""
        return self.window.endswith(".win") or is_shortened(self.window)

    @staticmethod
    def folder(end: datetime) -> str:
        """Return the folder of windows that end in the same minute.

        :param end: end of the window (aware).
        """
        return f"{LEDGER}{end.astimezone(UTC):%Y-%m-%d_%H-%M}/"


def target_of(event: Event, lane: Lane, config: DispatchConfig) -> str:
    """Return an event's usual name in the trigger bucket.

    By default a trace goes to ``_bqjob_/<YYYY-MM-DD_HH>/<name>.json``, in the UTC hour of its creation, and a window to
    ``_batch_/<name>``. A fenced trace keeps the creation of its first generation (:data:`CREATED`), and so the hour.

    An event whose name would be longer than :data:`MAX_OBJECT_NAME_BYTES` is not copied to it: the plan quarantines it
    under ``ErrorURL`` (``Draft.offer``).

    :param event: a trace, or with ``Lane.WINDOWS`` a window.
    :param config: the prefixes, ``PostJobPrefix`` and ``BatchPrefix``.
    """
    if lane is Lane.WINDOWS:
        return f"{config.batch_prefix[1:]}{event.name}"
    hour = event.created.astimezone(UTC).strftime("%Y-%m-%d_%H")
    return f"{config.post_job_prefix[1:]}{hour}/{event.name.removesuffix('.json')}.json"


def alternative_target(target: str, generation: int) -> str:
    """Return the target of an event whose usual target is taken: ``<stem>_<generation>.<ending>``.

    ``Copier`` takes it after a 404 or 412, if an object of another checksum or size lies at the usual target: an
    earlier event of the same name, which BqTail has not processed yet. ``Evidence`` looks for a fired window at both.
    ``Copier`` checks its length first: an event whose alternative name is too long is an error, and waits.

    :param target: the usual target.
    :param generation: the trace's current generation, after a fence the new one; of a window the window's own, not its
        claim's.
    """
    stem, dot, ending = target.rpartition(".")
    return f"{stem}_{generation}{dot}{ending}"


def length_problem(target: str) -> str:
    """Return in words that a target's name is too long, and what to do; empty if it fits into the trigger bucket."""
    if (size := len(target.encode())) <= MAX_OBJECT_NAME_BYTES:
        return ""
    return (
        f"would be {size} bytes long in the trigger bucket, and Cloud Storage allows {MAX_OBJECT_NAME_BYTES}; shorten "
        "PostJobPrefix, BatchPrefix or the table's name"
    )


def is_target(name: str, target: str) -> bool:
    """Tell whether a name is an event's target: the usual one, or the alternative one of any generation."""
    stem, dot, ending = target.rpartition(".")
    generation = name.removeprefix(f"{stem}_").removesuffix(f"{dot}{ending}")
    return name == target or (generation.isdecimal() and name == f"{stem}_{generation}{dot}{ending}")


def trace_of_target(path: str) -> str:
    """Return the name of the trace that was moved to a target.

    :param path: path below the folder of the trigger bucket.
    :returns: the name without ``.json``, with which it may have ended.
    """
    return _GENERATION.sub("", path.partition("/")[2].removesuffix(".json"))


def ledger_entry_name(window: str, generation: int, what: str, task_url: str) -> str:
    """Return the name of a window's entry in the ledger.

    :param window: name of the window.
    :param generation: generation of the window.
    :param what: ``claim``, ``fired``, ``aside``, or ``gone-<step of the last load>``.
    :param task_url: ``gs://bucket/folder/``.
    :returns: path below the task folder.
    """
    return f"{ledger_entries_prefix(window, task_url)}{generation}.{what}"


def ledger_entries_prefix(window: str, task_url: str) -> str:
    """Return what the names of all entries of the ledger about windows of a name begin with.

    :param window: name of the window. A long one is shortened, alike for every entry.
    :param task_url: ``gs://bucket/folder/``.
    :returns: path below the task folder.
    """
    minute = LedgerName.folder(WindowName.parse(window).end)
    return f"{minute}{_fitting(window, task_url, len(minute) + _MAX_LEDGER_ENDING_BYTES)}."


def undecided_name(window: str, generation: int, task_url: str) -> str:
    """Return the name of the object that names an undecided window.

    :param window: name of the window.
    :param generation: generation of the window.
    :param task_url: ``gs://bucket/folder/``.
    :returns: path below the task folder.
    """
    return f"{UNDECIDED}{_fitting(window, task_url, len(f'{UNDECIDED}.{generation}'))}.{generation}"


def split_undecided_name(name: str) -> tuple[str, str]:
    """Return the window and the generation that :func:`undecided_name` put into a name.

    :param name: path below the task folder. A name that :func:`check_undecided_name` refuses gives anything.
    :returns: the window's name, a long one shortened, and its generation as text.
    """
    window, _, generation = name.removeprefix(UNDECIDED).rpartition(".")
    return window, generation


def check_undecided_name(name: str) -> None:
    """Check that a name is one of :func:`undecided_name`: any object may lie in that folder.

    :param name: path below the task folder.
    :raises ValueError: when it names no undecided window.
    """
    window, generation = split_undecided_name(name)
    problem = "" if is_number(generation) else f"{generation!r} is no generation"
    try:
        if not is_shortened(window):
            WindowName.parse(window)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{name!r} is not an undecided window: expected {UNDECIDED}<window>.<generation>; {problem}")


def quarantine_path(created: datetime, name: str, generation: int, error_url: str) -> str:
    """Return the path of an object in quarantine, below ``ErrorURL``.

    A long name is shortened there; the note beside it holds the whole name.

    :param created: creation of the object, which gives the day's folder, UTC.
    :param name: path below the task folder.
    :param generation: generation of the object.
    :param error_url: ``gs://bucket/folder/``.
    """
    day = created.astimezone(UTC).strftime("%Y-%m-%d")
    return f"{day}/{_fitting(name, error_url, len(f'{day}/.{generation}.json'))}.{generation}"


@dataclass(frozen=True, slots=True)
class QuarantinePath:
    """The parts of a path that :func:`quarantine_path` has made.

    :param day: creation of the object, by the day alone (aware, UTC).
    :param name: path below the task folder; a long one is shortened.
    :param generation: generation of the object.
    """

    day: datetime
    name: str
    generation: int


def parse_quarantine_path(path: str) -> QuarantinePath | None:
    """Read the path of an object in quarantine, below ``ErrorURL``; ``None`` if it is the path of something else."""
    if (parts := _QUARANTINE_PATH.fullmatch(path)) is None:
        return None
    day, name, generation = parts.groups()
    try:
        return QuarantinePath(datetime.fromisoformat(day).replace(tzinfo=UTC), name, int(generation))
    except ValueError:
        return None


def _fitting(name: str, folder_url: str, around_bytes: int) -> str:
    """Shorten a name so that it fits below a folder.

    :param around_bytes: of what else stands in the object's name.
    """
    folder = folder_url.removeprefix("gs://").partition("/")[2].strip("/")
    return shortened(name, MAX_OBJECT_NAME_BYTES - len(f"{folder}/".encode()) - around_bytes)


def is_shortened(name: str) -> bool:
    """Tell whether a name ends as one that :func:`shortened` has cut."""
    return _SHORTENED.search(name) is not None


def shortened(name: str, max_bytes: int) -> str:
    """Return a name that fits: a longer one is cut, and ends in a hash of the whole."""
    if len(name.encode()) <= max_bytes:
        return name
    mark = f"~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name.encode()[: max(max_bytes - len(mark), 0)].decode(errors="ignore") + mark
