"""``bqdispatch quiet``: whether no dispatcher, of whatever kind, has been at work for a while.

Two kinds of dispatcher on one task folder do harm (docs/migration.md), so whoever switches from one to the other asks
first. What dispatchers write tells: the performance of each run, a sentinel for each window, what they are about to
move, and what they deliver. And it tells what one kind has to settle before the other comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta

from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.intents import open_intents
from bqdispatch_provider.ledger import Ledger
from bqdispatch_provider.model import StoredObject
from bqdispatch_provider.names import in_words
from bqdispatch_provider.planning import classify
from bqdispatch_provider.smoke import Check, Verdict
from bqdispatch_provider.storage import STORAGE_ERRORS, TaskStore

LEAST = timedelta(minutes=10)
"""For so long nothing may have been written: a cloud function lives for nine minutes, and is started every minute."""


class Quiet:
    """The traces that dispatchers leave, looked at once.

    :param config: of the task folder, with its project filled in.
    :param client: a ``google.cloud.storage.Client``.
    """

    def __init__(self, config: DispatchConfig, client: Client) -> None:
        self._config, self._client = config, client
        self._long = max(LEAST, timedelta(minutes=config.time_to_live_in_min + 1))

    def checks(self) -> Iterator[Check]:
        """One for each place where dispatchers write."""
        config = self._config
        yield from self._look("performance", config.journal_url, self._performance)
        yield from self._look("task folder", config.async_task_url, self._task_folder)
        for what, prefix in {"moved traces": config.post_job_prefix, "fired windows": config.batch_prefix}.items():
            yield from self._look(what, f"gs://{config.trigger_bucket}{prefix}", self._delivered)
        # It leaves nothing that could be told from others' while it sleeps.
        said = (
            "BqTail's own command-line tool has a dispatcher too, which sleeps for up to 100 minutes between runs: "
            "where somebody may have started one, ask, or look again after that time"
        )
        yield Check("what cannot be seen", config.async_task_url, Verdict.LEFT_OUT, said)

    def _look(self, what: str, url: str, look: _Look) -> Iterator[Check]:
        try:
            with closing(TaskStore(self._client, url, self._config.trigger_bucket or "")) as store:
                for verdict, said in look(store):
                    yield Check(what, url, verdict, said)
        except STORAGE_ERRORS as error:
            yield Check(what, url, Verdict.FAILED, f"cannot be looked at: {in_words(error)}")

    def _performance(self, store: TaskStore) -> Iterator[tuple[Verdict, str]]:
        there = store.look("performance.json")
        yield self._last("a run has written performance.json", [there] if there else [], store.now())

    def _task_folder(self, store: TaskStore) -> Iterator[tuple[Verdict, str]]:
        config = self._config
        now, objects = store.listing()
        listing = classify(objects, config.project_id or "", now)
        sentinels = [*listing.orphans, *(window.sentinel for window in listing.windows if window.sentinel)]
        yield self._last("the Go dispatcher has fired a window", sentinels, now)
        yield self._last("a dispatcher has written down what it dispatches", listing.intents, now)
        if old := [window.object.name for window in listing.windows if window.sentinel]:
            yield (
                Verdict.WARNING,
                f"{len(old)} windows, such as {old[0]!r}, lie beside sentinels of the Go dispatcher: they are taken "
                "for fired, and stay; docs/migration.md says how to tell whether they were",
            )
        firings, hidden = Ledger(store, config.async_task_url, "").look(listing.windows, now)
        own = {
            window.key: firings.get(window.object.name, {}).get(window.object.generation) for window in listing.windows
        }
        fired = [name for (name, _), firing in own.items() if firing is not None and firing.fired is not None]
        if fired:
            yield (
                Verdict.FAILED,
                f"{len(fired)} windows, such as {fired[0]!r}, were fired and lie there still: the Go dispatcher would "
                f"fire them again. They go {config.max_trigger_delay_ms / 1000:.0f} s after their firing, by "
                "`bqdispatch run --once`",
            )
        if hidden:
            yield Verdict.FAILED, next(iter(hidden.values()))
        if listing.undecided:
            yield (
                Verdict.WARNING,
                f"{len(listing.undecided)} windows, such as {listing.undecided[0].name!r}, wait for a decision: "
                "`bqdispatch replay` lists them, and the Go dispatcher never looks there",
            )
        claimed = [name for (name, _), firing in own.items() if firing is not None and firing.fired is None]
        if left := [*claimed, *open_intents(intent.name for intent in listing.intents)]:
            yield (
                Verdict.WARNING,
                f"{left[0]!r} and {len(left) - 1} more were left unfinished: `bqdispatch run --once` settles them, "
                "which the Go dispatcher cannot",
            )

    def _delivered(self, store: TaskStore) -> Iterator[tuple[Verdict, str]]:
        now, objects = store.listing()
        yield self._last("something was delivered", objects, now)

    def _last(self, what: str, written: Iterable[StoredObject], now: datetime) -> tuple[Verdict, str]:
        at = max((each.created for each in written), default=None)
        if at is None:
            return Verdict.OK, f"never that is to be seen: {what}"
        if now - at > self._long:
            return Verdict.OK, f"not since {at:%Y-%m-%d %H:%M:%S} UTC: {what}"
        until, minutes = at + self._long, round(self._long.total_seconds() / 60)
        return (
            Verdict.FAILED,
            f"{what} at {at:%H:%M:%S} UTC, less than {minutes} minutes ago: stop what starts that dispatcher, and ask "
            f"again after {until:%H:%M:%S} UTC",
        )


_Look = Callable[[TaskStore], Iterator[tuple[Verdict, str]]]
