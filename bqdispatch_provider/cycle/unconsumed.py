"""Say so if BqTail consumes nothing: what was delivered and lies in the trigger bucket becomes no job."""

from __future__ import annotations

import math
import time
from datetime import datetime

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.windows import MAX_FUNCTION_RUNTIME
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import counted, in_words


class Unconsumed:
    """Looks for what BqTail has not consumed, at most once in the runtime of a function."""

    def __init__(self) -> None:
        self._next = -math.inf

    def check(self, report: Report, services: Services) -> None:
        """Look if it is time to, and add to the report what is wrong.

        :param report: of the run so far.
        :param services: services of the task folder.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + MAX_FUNCTION_RUNTIME.total_seconds()
        for said in filter(None, unconsumed(services.store, services.config)):
            services.recorder(report).error(said)


def unconsumed(store: TaskStore, config: DispatchConfig) -> tuple[str, str]:
    """Find what was delivered longer ago than a function of BqTail runs.

    It takes a list request for traces, and one for windows. Only while more than 1,000 younger objects lie there, it
    takes more.

    :param store: reaches the trigger bucket.
    :param config: names it.
    :returns: what BqTail has not consumed, and why that is not known, a sentence each; empty if all is well.
    """
    before = store.now() - MAX_FUNCTION_RUNTIME
    old: list[tuple[datetime, str]] = []
    are_all = True
    for prefix in (config.post_job_prefix[1:], config.batch_prefix[1:]):
        try:
            found, has_more = store.trigger.older_than(prefix, before)
        except GOOGLE_ERRORS as error:
            return "", f"whether BqTail consumes what is delivered is not known: {in_words(error)}"
        old += [(each.created, f"{prefix}{each.name}") for each in found]
        are_all = are_all and not has_more
    if not old:
        return "", ""
    since, name = min(old)
    number, which = counted(len(old), "object"), "the first of them"
    if not are_all:
        number, which = f"at least {number}", "one of them"
    return (
        f"BqTail has not consumed {number} for more than ten minutes, {which} "
        f"{f'gs://{config.trigger_bucket}/{name}'!r} since {since:%Y-%m-%d %H:%M} UTC: see whether its function runs "
        "without errors, watches this bucket, and has the same PostJobPrefix and BatchPrefix"
    ), ""
