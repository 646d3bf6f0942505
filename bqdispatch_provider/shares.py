"""Shares on their way from a sensor to the operators: events in the journal, and a summary of each share as XCom.

- The sensor writes its shares to the journal, one object for each task (``….shares``), and returns their
  summaries as XCom (:func:`hand_on`). A deferred sensor does so once it is back on a worker: no trigger carries shares.
- An operator reads them there (:func:`read_handed_on`). Each event is checked: it must be of its share's lane.
- They are the operator's first cycle, before it defers; each event in exactly the planned generation. What its ``only``
  leaves out is dropped (``cycle.dispatching.select_events``). The limits are counted again (``cycle.recount``), since
  other dispatchers may have filled them meanwhile.
- If the shares are no longer in the journal, the operator looks for events itself.
- The end of a run removes them (``runs.end_run``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.limits import limits
from bqdispatch_provider.core.log_lines import share_summary
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.journal import RunJournal

if TYPE_CHECKING:
    from bqdispatch_provider.config import DispatchConfig

log = logging.getLogger(__name__)


def hand_on(shares: Sequence[Share], journal: RunJournal, config: DispatchConfig) -> list[dict[str, Any]]:
    """Write shares to the journal, and return their summaries, which say where the shares are.

    :param shares: what is to be dispatched.
    :param journal: the sensor's.
    :param config: the limits.
    """
    url = journal.write_shares(shares)
    limit_of = limits(config)
    return [share_summary(share, url, limit_of[share.lane.limit]) for share in shares]


def read_handed_on(summaries: Any, journal: RunJournal) -> list[Share] | None:
    """Read shares that a sensor has handed on, from the journal.

    :param summaries: what :func:`hand_on` returned, or one of them; of a mapped sensor, or several sensors, a sequence
        of what each of them returned.
    :param journal: the operator's.
    :returns: the shares; ``None`` if they are no longer in the journal: then the operator's first cycle looks itself.
    :raises ValueError: if ``summaries`` is something else, or names another run's journal; or if an event is not of its
        share's lane.
    """
    lanes_at: dict[str, set[Any]] = {}
    for entry in _flat(summaries):
        lanes_at.setdefault(str(entry.get("all")), set()).add(entry.get("lane"))
    shares: list[Share] = []
    for url, lanes in lanes_at.items():
        if (found := journal.read_shares(url)) is None:
            log.info("The sensor's shares %s are no longer in the journal; polling for events instead", url)
            return None
        shares += [share for share in found if share.lane in lanes]
    return list(_without_repeats(shares))


def _flat(summaries: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each summary of a sensor, or of several.

    :param summaries: as for :func:`read_handed_on`. Airflow gives those of a mapped sensor as a lazy sequence of lists.
    :raises ValueError: if there is something else among them.
    """
    if isinstance(summaries, Mapping):
        yield summaries
    elif isinstance(summaries, Sequence) and not isinstance(summaries, str | bytes):
        for each in summaries:
            yield from _flat(each)
    else:
        raise ValueError(f"shares is {str(summaries)[:80]!r}; expected what BqDispatchSensor returned, sensor.output")


def _without_repeats(shares: Sequence[Share]) -> Iterator[Share]:
    """Yield shares with each event in the first of them only: the filters of several sensors may overlap.

    One cycle cannot move an event twice: it would find the first move in doubt.
    """
    seen: set[Key] = set()
    for share in shares:
        yield replace(share, events=tuple(event for event in share.events if event.key not in seen))
        seen.update(event.key for event in share.events)
