"""Clean up after a cycle: quarantine, record what was found out, and delete what is no longer needed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.plans import Cleanup, Quarantine
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.targets import LEDGER
from bqdispatch_provider.cycle.dispatching import chunks
from bqdispatch_provider.cycle.recording import Recorder
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.cycle.work_gate import WorkGate
from bqdispatch_provider.delivery.moves import EventResult
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import JournalName, in_words

log = logging.getLogger(__name__)

LEDGER_INTERVAL = timedelta(hours=1)
"""Interval between two clean-ups of the ledger, by any dispatcher, once no old entries are left."""

MAX_LEDGER_PAGES = 5
"""Pages of 1,000 old entries that one cycle deletes."""


class CleanUp:
    """Cleans up one task folder.

    :param services: services of the task folder.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ledger_is_clean_until = -math.inf
        self._last_deleted_entry = ""
        self._cleaned_url = f"{services.config.journal_url}{JournalName.LEDGER_CLEANED}"

    def run(self, cleanup: Cleanup, gate: WorkGate) -> Report:
        """Clean up what a plan names, and old entries of the ledger.

        :param gate: tells whether new work may be begun.
        :returns: a report of what was quarantined, and of errors.
        """
        services, recorder = self._services, self._services.recorder()
        services.own_intents.delete_completed()
        ledger = services.ledger
        for act, undecided in ((services.mover.quarantine, False), (services.firer.mark_undecided, True)):
            for chunk in chunks([each for each in cleanup.quarantines if each.undecided is undecided]):
                self._quarantine(chunk, act, gate, recorder)
        # Another process may have fired the windows that are deleted here.
        ledger.used = ledger.used or any(name.endswith(".win") for name, _ in cleanup.stale)
        asking = services.threads.submit(self._clean_since)
        fired = ledger.record((key, "fired") for key in cleanup.fired)
        ledger.record((key, f"gone-{step:05}") for key, step in cleanup.gone)
        for window, content in cleanup.missed:
            self._restore(window, content, recorder)
        deleted = dict(zip(cleanup.stale, services.store.delete(cleanup.stale) if cleanup.stale else (), strict=True))
        for (name, _), result in deleted.items():
            if result.failed:
                recorder.error(f"{services.folder.url(name)} is no longer needed, but was not deleted: {result}")
        for key in cleanup.late:  # each is counted by one of the dispatchers that drop it
            recorder.report.late += key in fired if key in cleanup.fired else deleted[key].ok
        try:
            self._delete_old_entries(asking.result())
        except GOOGLE_ERRORS as error:
            url = services.folder.url(LEDGER)
            recorder.error(f"old entries of the ledger {url} cannot be deleted: {in_words(error)}")
        return recorder.report

    def _quarantine(
        self,
        quarantines: Sequence[Quarantine],
        act: Callable[[Sequence[Quarantine]], list[EventResult]],
        gate: WorkGate,
        recorder: Recorder,
    ) -> None:
        by_key = {each.key: each for each in quarantines}
        events = [Event(each.name, each.generation, each.created) for each in quarantines]
        results = gate.act(lambda chosen: act([by_key[event.key] for event in chosen]), events, self._services.folder)
        recorder.record(results)
        quarantined = [each.event.key for each in results if each.outcome is Outcome.QUARANTINED]
        # Without ``fired``, a claim whose window must not be fired would be taken over again and again.
        for kind in ("fired", "aside"):
            self._services.ledger.record((key, kind) for key in quarantined if by_key[key].claimed)

    def _restore(self, window: str, content: bytes, recorder: Recorder) -> None:
        """Restore a window that was removed, for the next look, unless another dispatcher has done so."""
        store, url = self._services.store, self._services.folder.url(window)
        try:
            if store.create(store.task_url(window), content, {}):
                log.info("Restored %s: the event of one of its folders came after it had been fired", url)
        except GOOGLE_ERRORS as error:
            recorder.error(f"{url} cannot be restored for a missed folder: {in_words(error)}")

    def _clean_since(self) -> timedelta | None:
        """Return how long the ledger has been clean: zero if it need not be checked, ``None`` if it never was."""
        if time.monotonic() < self._ledger_is_clean_until or not self._services.ledger.used:
            return timedelta()
        return self._services.store.age(self._cleaned_url)

    def _delete_old_entries(self, clean_since: timedelta | None) -> None:
        """Delete old entries of the ledger, page by page until none is left, and again an hour later."""
        services = self._services
        if clean_since is None or clean_since > LEDGER_INTERVAL:
            present = {window.name.name for window in services.folder.listing().windows}
            for _ in range(MAX_LEDGER_PAGES):
                self._last_deleted_entry = services.ledger.delete_old_entries(
                    services.store.now(), present, services.threads, self._last_deleted_entry
                )
                if not self._last_deleted_entry:
                    break
            else:
                return  # the next cycle goes on where this one ends
            note = {"Cleaned": services.store.now().isoformat(), "By": services.owner}
            services.store.write_if_older_than(self._cleaned_url, note, LEDGER_INTERVAL)
            clean_since = timedelta()
        if services.ledger.used:
            seconds = (LEDGER_INTERVAL - clean_since).total_seconds()
            self._ledger_is_clean_until = max(self._ledger_is_clean_until, time.monotonic() + seconds)
