"""Events that could have been dispatched for a while, and were not: nobody dispatches, or nobody dispatches these."""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.limits import LimitKey, limit_key
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.plans import Plan
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.names import WindowName
from bqdispatch_provider.view.health import SILENT_AFTER


def overdue(
    plan: Plan, earlier: Mapping[str, Wait], config: DispatchConfig, reached: Container[LimitKey]
) -> dict[str, Wait]:
    """Return the events that a plan would dispatch, and that have been ready for long, by name.

    :param plan: of a look.
    :param earlier: waits that earlier runs have counted, by name: these say more.
    :param config: gives the project of events whose name has none.
    :param reached: limits that a dispatcher has found reached a moment ago: a slot may have become free since.
    """
    waits = {}
    for event in (each for events in plan.events.values() for each in events):
        since = _ready_since(event)
        if plan.now - since > SILENT_AFTER and event.name not in earlier and limit_key(event, config) not in reached:
            waits[event.name] = Wait(event.name, Reason.OVERDUE, since)
    return waits


def _ready_since(event: Event) -> datetime:
    """Return when an event was ready: a trace once its job has ended, a window at its end, neither before its creation.

    A limit may hold it back longer.
    """
    ended = WindowName.parse(event.name).end if event.name.endswith(".win") else event.ended
    return max(event.created, ended or event.created)
