"""Everything that is on its way between the task folder and BqTail's next jobs, and counts at the limits.

The count of a look needs it, and the one before shares from elsewhere are dispatched.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from bqdispatch_provider.core.listing import Listing
from bqdispatch_provider.core.targets import INTENTS, trace_of_target
from bqdispatch_provider.core.windows import MAX_FUNCTION_RUNTIME
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.delivery.intents import IntentsFound
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import in_words

_MAX_CLOCK_DIFFERENCE = timedelta(seconds=2)
"""Longest difference between two clocks of the storage server, which are told in whole seconds."""


@dataclass(frozen=True)
class InTransit:
    """Traces that were moved to the trigger bucket, and that BqTail has not consumed.

    :param names: names of the traces.
    :param looked: when the trigger bucket was listed, by the storage server's clock, or earlier.
    :param problem: why the trigger bucket cannot be listed; empty if it could.
    """

    names: frozenset[str] = frozenset()
    looked: datetime | None = None
    problem: str = ""


def find_in_transit(services: Services) -> InTransit:
    """List the traces in transit, if a limit is set.

    One that BqTail has not consumed within the runtime of a function is left out: no job comes of it.
    """
    if not services.is_limited:
        return InTransit()
    prefix = services.config.post_job_prefix[1:]
    began = time.monotonic()
    try:
        found = services.store.trigger.in_transit(prefix)
    except GOOGLE_ERRORS as error:
        where = f"gs://{services.config.trigger_bucket}/{prefix}"
        return InTransit(problem=f"the limits cannot be counted: {where!r} cannot be listed: {in_words(error)}")
    now = services.store.now()
    looked = now - timedelta(seconds=time.monotonic() - began) - _MAX_CLOCK_DIFFERENCE
    return InTransit(
        frozenset(trace_of_target(each.name) for each in found if each.created > now - MAX_FUNCTION_RUNTIME), looked
    )


def read_intents(services: Services, listing: Listing, transit: InTransit) -> tuple[IntentsFound, str]:
    """Read the intents of dispatchers.

    :param listing: listing of the task folder.
    :param transit: what was in transit before that listing.
    :returns: what the intents say, and why they cannot be read; empty if they could.
    """
    present = {trace.object.key for trace in listing.traces}
    try:
        return services.intents.look(listing.intents, present, listing.now, transit.looked), ""
    except GOOGLE_ERRORS as error:
        where = services.folder.url(INTENTS)
        return IntentsFound(), f"the intents under {where} cannot be read: {in_words(error)}"
