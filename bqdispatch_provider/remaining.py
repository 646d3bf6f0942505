"""Events that BqTail has not finished: those that wait in the task folder, and those that BqTail has yet to consume.

An event moves between two places. BqTail writes a trace or a window into the task folder, a dispatcher delivers it to
the trigger bucket, and BqTail consumes it there and writes the next trace. While BqTail works, the event is in neither
place. So events are finished only if none was seen for a while, polling faster than any object can come and go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.core.named_events import project_of
from bqdispatch_provider.names import TraceName, WindowName

if TYPE_CHECKING:
    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.cycle.task_folder import TaskFolder
    from bqdispatch_provider.gcp.objects import ObjectStore

POLL_INTERVAL_S = 2.0
"""Seconds between two polls that see nothing. Dispatchers leave a new trace alone for 3 s, so none passes unseen."""


def remaining_urls(folder: TaskFolder, only: EventFilter) -> Iterator[str]:
    """Find the events that wait in the task folder, and those that were delivered and not consumed.

    This takes one list request for the task folder, one for each minute in which windows were due, one for each prefix
    of the trigger bucket, and a read for each intent of windows. It asks for no job.

    :param folder: the task folder.
    :param only: filter of events. A window is a load to come, so it also matches ``actions`` that contain ``load`` or
        ``reload``. A delivered object with an invalid name matches every filter.
    :returns: the URLs of the events.
    :raises google.api_core.exceptions.GoogleAPIError: if a list request fails, or the ledger does not tell of a window
        that matches.
    """
    config, store, listing = folder.config, folder.store, folder.listing()
    for trace in listing.traces:
        if only.matches(trace.project, trace.name):
            yield store.task_url(trace.object.name)

    def is_asked_for(window: WindowName) -> bool:
        return _matches(only, project_of(window, config), window)

    for window, _ in folder.unfired(listing, is_asked_for):
        yield store.task_url(window.object.name)
    for claimed in folder.claimed(listing, is_asked_for):
        yield store.task_url(claimed.name)
    for url, name in delivered(store, config):
        if name is None or _matches(only, project_of(name, config), name):
            yield url


def delivered(store: ObjectStore, config: DispatchConfig) -> Iterator[tuple[str, TraceName | WindowName | None]]:
    """Find what was delivered to the trigger bucket, and BqTail has not consumed yet.

    An object that stands for a folder, as the console makes them, is no delivery.

    :returns: the URL of each object, and the name of the event; ``None`` if that is invalid.
    """
    for prefix in (config.post_job_prefix, config.batch_prefix):
        target = f"gs://{config.trigger_bucket}{prefix}"
        for url in store.list_urls(target):
            if not url.endswith("/"):
                yield url, _parse_delivered(url.removeprefix(target), batch=prefix == config.batch_prefix)


def first_remaining(
    folder: TaskFolder,
    only: EventFilter,
    settle_time: float,
    sleep: Callable[[float], Any] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Poll until an event is seen, or until none was seen for the settle time.

    :param folder: the task folder.
    :param only: filter of events, as for :func:`remaining_urls`.
    :param settle_time: seconds for which no event may be seen.
    :param sleep: waits for a number of seconds. A true result ends the polling.
    :param clock: returns seconds.
    :returns: URL of the first event that was seen; empty if none was.
    """
    started = clock()
    while True:
        polled = clock()
        if url := next(remaining_urls(folder, only), ""):
            return url
        left = settle_time - (polled - started)
        if left <= 0:
            return ""
        if sleep(max(min(POLL_INTERVAL_S, left), 0.01)):
            return "unknown, since polling was interrupted"


def _matches(only: EventFilter, project: str, name: TraceName | WindowName) -> bool:
    if isinstance(name, WindowName) and {"load", "reload"} & set(only.actions):
        only = EventFilter(only.projects, only.destinations, event_ids=only.event_ids)
    return only.matches(project, name)


def _parse_delivered(name: str, *, batch: bool) -> TraceName | WindowName | None:
    """Return the name of a delivered trace or window, which follows the prefix; ``None`` if it is invalid."""
    try:
        return WindowName.parse(name) if batch else TraceName.parse(name.partition("/")[2])
    except ValueError:
        return None
