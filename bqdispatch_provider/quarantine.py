"""Quarantine: what was set aside under ``ErrorURL``, the notes beside it, and the way back into the task folder.

Rules: docs/protocol.md, section "Quarantine". An object on its way back carries a mark, so that no dispatcher takes it
before it is gone from quarantine: whoever is interrupted, trying again goes on, and nothing is lost or goes out twice.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.courtesy import SAME_NAME_S
from bqdispatch_provider.model import CREATED, OWNER, REPLAY, REPLAYED, SINCE, Quarantine, StoredObject
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.planning import aside_path
from bqdispatch_provider.storage import Result, TaskStore
from bqdispatch_provider.threads import Threads

log = logging.getLogger(__name__)

NOTE = ".json"
"""How the name of a note ends, after that of the object beside it."""

_PATH = re.compile(r"(?P<day>\d{4}-\d\d-\d\d)/(?P<name>.+)\.(?P<generation>[1-9]\d*)", re.DOTALL)
_CUT = re.compile(r"~[0-9a-f]{16}\Z")
_THREADS = 8


class ReplayError(Exception):
    """An object that was not put back, and why; what was begun is finished by trying again."""


@dataclass(frozen=True, slots=True)
class Aside:
    """An object in quarantine.

    :param path: below ``ErrorURL``.
    :param url: of the object under ``ErrorURL``.
    :param name: path below the task folder where it came from.
    :param generation: that it had there.
    :param since: when it was created there; of one without a note, the day.
    :param reason: why it was set aside.
    :param there: the object; ``None`` when its note is all that is left.
    :param noted: whether its note is there.
    """

    path: str
    url: str
    name: str
    generation: int
    since: datetime
    reason: str
    there: StoredObject | None
    noted: bool


def note_of(quarantine: Quarantine, url: str, now: datetime) -> dict[str, Any]:
    """The document that lies beside an object in quarantine.

    :param url: of the object in the task folder.
    :param now: the storage server's time.
    """
    return {
        "URL": url,
        "Generation": quarantine.generation,
        "Reason": quarantine.reason,
        "Since": quarantine.created.astimezone(UTC).isoformat(),
        "SetAside": now.isoformat(timespec="seconds"),
        "Asked": dict(quarantine.asked),
    }


class QuarantineStore:
    """What was set aside from one task folder.

    :param client: of google-cloud-storage.
    :param config: names the task folder and ``ErrorURL``.
    """

    def __init__(self, client: Client, config: DispatchConfig) -> None:
        self._config = config
        self._tasks = TaskStore(client, config.async_task_url, config.trigger_bucket or "")
        # The same calls, with the place of quarantine for the folder.
        self._aside = TaskStore(client, config.error_url, config.trigger_bucket or "")
        self._changed: dict[str, float] = {}
        """When objects were put back, by the monotonic clock: a name may be changed once a second."""

    def close(self) -> None:
        """Take back what was attached to the client."""
        self._tasks.close()
        self._aside.close()

    def __enter__(self) -> QuarantineStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listing(self) -> list[Aside]:
        """What lies in quarantine, oldest first; objects that are nothing of the kind are passed over.

        :raises google.api_core.exceptions.GoogleAPIError: when it cannot be listed.
        """
        _, objects = self._aside.listing()
        there = {stored.name: stored for stored in objects}
        paths = sorted({name if _PATH.fullmatch(name) else name.removesuffix(NOTE) for name in there})
        paths = [path for path in paths if _PATH.fullmatch(path)]
        with Threads(_THREADS) as threads:
            found = threads.map(lambda path: self._read(path, there.get(path), there.get(path + NOTE)), paths)
        return sorted((each for each in found if each is not None), key=lambda each: (each.since, each.path))

    def task_url(self, aside: Aside) -> str:
        """The URL in the task folder to which an object would go back."""
        return self._tasks.task_url(aside.name)

    def _read(self, path: str, there: StoredObject | None, noted: StoredObject | None) -> Aside | None:
        parts = _PATH.fullmatch(path)
        if parts is None:
            return None
        name, generation, reason = parts["name"], int(parts["generation"]), "its note is gone"
        try:
            since = datetime.fromisoformat(parts["day"]).replace(tzinfo=UTC)
        except ValueError:
            return None
        if noted is not None:
            try:
                note = json.loads(self._aside.read(self._aside.task_url(path + NOTE)))
                folder = self._tasks.task_url("")
                if not note["URL"].startswith(folder):
                    return None  # another task folder's
                told, at = note["URL"].removeprefix(folder), datetime.fromisoformat(note["Since"]).astimezone(UTC)
                if aside_path(at, told, generation, self._config.error_url) != path:
                    raise ValueError(f"it is about {told!r}")
                name, since, reason = told, at, str(note["Reason"])
            except NotFound:
                noted = None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"its note cannot be read: {type(error).__name__}: {error}"
        if not (_is_event(name) or _CUT.search(name)):
            return None
        return Aside(path, self._aside.task_url(path), name, generation, since, reason, there, noted is not None)

    def put_back(self, aside: Aside) -> str:
        """Put an object back into the task folder, then take it and its note out of quarantine; says what was done.

        It goes back only where its name is free. A window is fired then, whatever is known of earlier firings. Whatever
        an earlier try has begun is finished.

        :raises ReplayError: when it was not put back, or not all the way.
        :raises google.api_core.exceptions.GoogleAPIError: when it cannot be looked at.
        """
        name, url = aside.name, self.task_url(aside)
        if _CUT.search(name) or not _is_event(name):
            raise ReplayError(f"{aside.url!r} has a name that was cut, and {aside.reason}: copy it back by hand")
        there = self._aside.look(aside.path)
        if there is not None:
            self._hold(aside, there)
        live = self._tasks.look(name)
        if self._is_held(aside, live):
            self._let_go(aside)
            said = f"{url!r} is back"
        elif there is None and live is not None and live.generation == aside.generation:
            return f"{url!r} has not left the task folder yet, so nothing was done"
        elif there is None and self._aside.look(aside.path) is not None:
            raise ReplayError(f"{url!r} is being set aside right now: try again")
        else:
            said = f"{url!r} was put back before"
        self._aside.remove(f"{aside.url}{NOTE}")
        log.info("%s", said)
        return said

    def _hold(self, aside: Aside, there: StoredObject) -> None:
        """Copy an object back under its mark, and delete it in quarantine."""
        url = self.task_url(aside)
        if not aside.noted:
            # Once the object is gone, its note is all that another try finds.
            quarantine = Quarantine(aside.name, aside.generation, aside.since, aside.reason)
            self._aside.write_json(f"{aside.url}{NOTE}", note_of(quarantine, url, self._aside.now()))
        since = min(there.since, aside.since)
        # What a dispatcher noted on it is not carried back: whoever replays it wants it delivered.
        kept = {key: each for key, each in there.metadata.items() if key not in (CREATED, OWNER)}
        mark = {**kept, REPLAY: str(aside.generation), SINCE: f"{since.timestamp():.3f}"}
        copied = self._aside.copy_with(aside.path, there.generation, aside.name, self._config.async_task_url, mark)
        self._changed[aside.name] = time.monotonic()
        if not copied.ok:
            live = self._tasks.look(aside.name)
            # One's own under a 412 is what an earlier try has left, or the answer to a first try that was lost.
            if not self._is_held(aside, live):
                taken = live is not None and copied.status == 412
                why = "an object of that name lies there" if taken else f"the copy was refused: {copied}"
                raise ReplayError(f"{aside.url!r} cannot be put back as {url!r}: {why}")
        (deleted,) = self._aside.delete([(aside.path, there.generation)])
        self._check(deleted, aside, f"{aside.url!r} cannot be deleted")

    def _let_go(self, aside: Aside) -> None:
        """Take the mark off an object that is back, so that it is dispatched, and a window fired without judgement."""
        name = aside.name
        live = self._tasks.look(name)
        if live is None or not self._is_held(aside, live):
            return
        if (since := self._changed.pop(name, None)) is not None:
            time.sleep(max(since + SAME_NAME_S - time.monotonic(), 0.0))
        metadata = {key: each for key, each in live.metadata.items() if key != REPLAY}
        if name.endswith(".win"):
            metadata[REPLAYED] = str(aside.generation)
        (stamped,) = self._tasks.stamp([(name, live.generation, name, live.generation, metadata)])
        if not stamped.ok and self._is_held(aside, self._tasks.look(name)):
            self._check(stamped, aside, "the mark that holds it cannot be taken off")

    def _check(self, result: Result, aside: Aside, what: str) -> None:
        if not result.ok and result.status != 404:
            url = self.task_url(aside)
            raise ReplayError(f"{url!r} is back but held, replay it again so that it is dispatched: {what}: {result}")

    @staticmethod
    def _is_held(aside: Aside, live: StoredObject | None) -> bool:
        return live is not None and live.metadata.get(REPLAY) == str(aside.generation)


def _is_event(name: str) -> bool:
    for parse in (WindowName.parse, TraceName.parse):
        try:
            parse(name)
        except ValueError:
            continue
        return True
    return False
