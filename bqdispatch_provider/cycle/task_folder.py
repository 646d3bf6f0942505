"""The task folder of one configuration, as it can be read without a dispatcher."""

from __future__ import annotations

from collections.abc import Callable

from google.api_core.exceptions import GoogleAPIError, NotFound
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.listing import Listing, StoredObject, Window, classify
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.sizes import MAX_INTENT_BYTES
from bqdispatch_provider.core.windows import Firing
from bqdispatch_provider.delivery.intent_objects import WINDOWS_ENDING, parse_intent
from bqdispatch_provider.delivery.ledger import Ledger
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import WindowName

AsksFor = Callable[[WindowName], bool]
"""Tells whether somebody asks for a window."""


class TaskFolder:
    """A task folder, its ledger of fired windows, and the store that reaches both.

    :param config: names the folder.
    :param client: a ``google.cloud.storage.Client``, whose project fills in for a missing ``ProjectID``.
    :param owner: ID of the dispatcher; empty, the default, for who only reads.
    :raises ConfigError: when neither the configuration nor the client names a project.
    """

    def __init__(self, config: DispatchConfig, client: Client, owner: str = "") -> None:
        self.config = config.for_project(client.project)
        self.store = TaskStore(
            client,
            self.config.async_task_url,
            self.config.trigger_bucket or "",
            self.config.max_writes_per_second,
        )
        self.ledger = Ledger(self.store, self.config.async_task_url, owner)

    def close(self) -> None:
        """Detach the store from its client."""
        self.store.close()

    def __enter__(self) -> TaskFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, name: str) -> str:
        """Return the URL of an object, quoted for a message: names are untrusted text.

        :param name: path below the task folder.
        """
        return repr(self.store.task_url(name))

    def listing(self) -> Listing:
        """List the objects of the task folder by kind.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        now, objects = self.store.listing()
        return classify(objects, self.config.project_id or "", now)

    def unfired(self, listing: Listing, is_asked_for: AsksFor) -> list[tuple[Window, Firing | None]]:
        """Return the windows that have not been fired, with the firing of those that were claimed.

        :param listing: listing of the task folder.
        :param is_asked_for: tells by its name whether a window is asked for; others are left out.
        :raises google.api_core.exceptions.GoogleAPIError: when the ledger does not tell of a window that is asked for.
        """
        windows = [window for window in listing.windows if is_asked_for(window.name)]
        firings, unreadable = self.ledger.look(windows, listing.now)
        if unreadable:
            raise GoogleAPIError(next(iter(unreadable.values())))
        own = [(each, firings.get(each.object.name, {}).get(each.object.generation)) for each in windows]
        return [(window, firing) for window, firing in own if window.sentinel is None and not is_fired(firing)]

    def claimed(self, listing: Listing, is_asked_for: AsksFor) -> list[WindowName]:
        """Return the windows that are gone and not fired: one of many folders is deleted before its firing.

        :param listing: listing of the task folder.
        :param is_asked_for: as above.
        :raises google.api_core.exceptions.GoogleAPIError: when an intent cannot be read, or the ledger does not tell of
            a window that is asked for.
        """
        present = {window.key for window in listing.windows}
        announced: set[Key] = set()
        for stored in listing.intents:
            if stored.name.endswith(WINDOWS_ENDING):
                announced |= self._announced(stored)
        gone = {key for key in announced - present if is_asked_for(WindowName.parse(key[0]))}
        firings, unreadable = self.ledger.look((), listing.now, gone) if gone else ({}, {})
        if unreadable:
            raise GoogleAPIError(next(iter(unreadable.values())))
        known = {key: firings.get(key[0], {}).get(key[1]) for key in gone}
        return [WindowName.parse(name) for (name, _), firing in known.items() if firing and not is_fired(firing)]

    def _announced(self, stored: StoredObject) -> set[Key]:
        """Return the windows that an intent holds."""
        try:
            intent = parse_intent(
                stored, self.store.read(self.store.task_url(stored.name), MAX_INTENT_BYTES, stored.size)
            )
        except NotFound:
            return set()
        if intent.problem:
            raise GoogleAPIError(f"intent {self.url(stored.name)} cannot be read: {intent.problem}")
        return {firing.key for firing in intent.firings}


def is_fired(firing: Firing | None) -> bool:
    """Tell whether a window was fired.

    :param firing: what the ledger says; ``None`` for nothing.
    """
    return firing is not None and firing.fired is not None
