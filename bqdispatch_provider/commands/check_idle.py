"""``bqdispatch check-idle``: see that no dispatcher, of whatever kind, has been at work for a while.

Two kinds of dispatcher on one task folder do harm (docs/migration.md). So check before you switch from one to the
other. Each kind leaves objects behind: ``performance.json`` of each run, sentinels or intents, and delivered events.
The check also names what one kind has to settle before the other starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta

from google.cloud.storage import Client

from bqdispatch_provider.commands.checks import Check, CheckResult, print_checks
from bqdispatch_provider.commands.options import connect
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.listing import StoredObject, Window, classify
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.windows import Firings, has_returned
from bqdispatch_provider.delivery.intent_objects import open_intents
from bqdispatch_provider.delivery.ledger import Ledger
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import JournalName, counted, in_words
from bqdispatch_provider.view.advice import ADVICE

MIN_SETTLE_TIME = timedelta(minutes=10)
"""No dispatcher may have written anything for this long: a cloud function starts every minute and lives for nine."""

_Look = Callable[[TaskStore], Iterator[tuple[CheckResult, str]]]
"""A look at a folder, which yields results and findings."""


def execute(options: argparse.Namespace) -> int:
    """Look for what dispatchers have written, and print a table of it.

    :param options: of the command line.
    :returns: the exit code: 1 when a dispatcher is, or may be, at work.
    """
    return print_checks(list(IdleCheck(*connect(options)).checks()))


class IdleCheck:
    """A look for what dispatchers have written.

    :param config: of the task folder, with its project filled in.
    :param client: a ``google.cloud.storage.Client``.
    """

    def __init__(self, config: DispatchConfig, client: Client) -> None:
        self._config, self._client = config, client
        self._settle_time = max(MIN_SETTLE_TIME, timedelta(minutes=config.time_to_live_in_min + 1))

    def checks(self) -> Iterator[Check]:
        """Yield a check for each place where dispatchers write."""
        config = self._config
        yield from self._check("performance", config.journal_url, self._performance)
        yield from self._check("task folder", config.async_task_url, self._task_folder)
        for what, prefix in {"moved traces": config.post_job_prefix, "fired windows": config.batch_prefix}.items():
            yield from self._check(what, f"gs://{config.trigger_bucket}{prefix}", self._deliveries)
        finding = (
            "BqTail's command-line tool has a dispatcher too, which sleeps for up to 100 minutes between runs and "
            "leaves no sign of its own: if somebody may have started one, ask them, or check again after that time"
        )
        yield Check("what cannot be seen", config.async_task_url, CheckResult.NOT_CHECKED, finding)

    def _check(self, what: str, url: str, look: _Look) -> Iterator[Check]:
        try:
            with closing(TaskStore(self._client, url, self._config.trigger_bucket or "")) as store:
                for result, finding in look(store):
                    yield Check(what, url, result, finding)
        except GOOGLE_ERRORS as error:
            yield Check(what, url, CheckResult.FAILED, f"cannot be read: {in_words(error)}")

    def _performance(self, store: TaskStore) -> Iterator[tuple[CheckResult, str]]:
        there = store.get(JournalName.PERFORMANCE)
        yield self._newest(JournalName.PERFORMANCE, [there] if there else [], store.now())

    def _deliveries(self, store: TaskStore) -> Iterator[tuple[CheckResult, str]]:
        now, objects = store.listing()
        yield self._newest("delivered event", objects, now)

    def _task_folder(self, store: TaskStore) -> Iterator[tuple[CheckResult, str]]:
        now, objects = store.listing()
        listing = classify(objects, self._config.project_id or "", now)
        sentinels = [*listing.orphan_sentinels, *(window.sentinel for window in listing.windows if window.sentinel)]
        yield self._newest("sentinel of the Go dispatcher", sentinels, now)
        yield self._newest("intent of a dispatcher", listing.intents, now)
        if old := [window.object.name for window in listing.windows if window.sentinel]:
            yield (
                CheckResult.WARNING,
                f"{counted(len(old), 'window')} beside a sentinel of the Go dispatcher, such as {old[0]!r}: counted as "
                "fired, and kept; docs/migration.md says how to tell whether they were",
            )
        firings, hidden = Ledger(store, self._config.async_task_url, "").look(listing.windows, now)
        own = {
            window.key: firings.get(window.object.name, {}).get(window.object.generation) for window in listing.windows
        }
        yield from self._in_the_way(listing.windows, firings)
        if hidden:
            yield CheckResult.FAILED, next(iter(hidden.values()))
        if listing.undecided:
            yield (
                CheckResult.WARNING,
                f"{counted(len(listing.undecided), 'window')} waiting for a decision, such as "
                f"{listing.undecided[0].name!r}: `bqdispatch replay` lists them; the Go dispatcher never looks there",
            )
        if listing.unknown:
            yield (
                CheckResult.WARNING,
                f"{counted(len(listing.unknown), 'object')} with an unknown name, such as "
                f"{next(iter(listing.unknown))!r}: {ADVICE[Reason.UNKNOWN_NAME].next_step}",
            )
        claimed = [name for (name, _), firing in own.items() if firing is not None and firing.fired is None]
        if left := [*claimed, *open_intents(intent.name for intent in listing.intents)]:
            more, them = (f" and {len(left) - 1:,} more", "them") if len(left) > 1 else ("", "it")
            yield (
                CheckResult.WARNING,
                f"{left[0]!r}{more} left unfinished: `bqdispatch run --once` settles {them}; the Go dispatcher cannot",
            )

    def _in_the_way(
        self, windows: Iterable[Window], firings: Mapping[str, Firings]
    ) -> Iterator[tuple[CheckResult, str]]:
        """Yield findings about windows that the Go dispatcher would fire although their files may be loaded."""
        fired, returned = [], []
        for window in windows:
            known = firings.get(window.object.name, {})
            firing = known.get(window.object.generation)
            if firing is not None and firing.fired is not None:
                fired.append(window.object.name)
            elif has_returned(window, known):
                returned.append(window.object.name)
        if fired:
            yield (
                CheckResult.FAILED,
                f"{counted(len(fired), 'fired window')} still there, such as {fired[0]!r}: the Go dispatcher would "
                "fire them again. `bqdispatch run --once` removes them "
                f"{self._config.max_trigger_delay_ms / 1000:.0f} s after their firing",
            )
        if returned:
            yield (
                CheckResult.FAILED,
                f"{counted(len(returned), 'window')} that came back after one of the same name was fired, such as "
                f"{returned[0]!r}: the Go dispatcher would fire them, which may load files twice. "
                "`bqdispatch run --once` judges them by what was loaded, or says what they wait for",
            )

    def _newest(self, what: str, written: Iterable[StoredObject], now: datetime) -> tuple[CheckResult, str]:
        at = max((each.created for each in written), default=None)
        if at is None:
            return CheckResult.OK, f"no {what} found"
        if now - at > self._settle_time:
            return CheckResult.OK, f"last {what} written at {at:%Y-%m-%d %H:%M:%S} UTC"
        until, minutes = at + self._settle_time, round(self._settle_time.total_seconds() / 60)
        return (
            CheckResult.FAILED,
            f"{what} written at {at:%H:%M:%S} UTC, less than {minutes} minutes ago: stop whatever starts that "
            f"dispatcher, and check again after {until:%H:%M:%S} UTC",
        )
