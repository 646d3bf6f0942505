"""``bqdispatch explain``: where an event stands, since when, why it waits, and what happens next."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from google.cloud.storage import Client

from bqdispatch_provider.commands.options import connect, dispatcher_of
from bqdispatch_provider.commands.output import CANNOT_START, FAILED, OK, print_error, printable
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.log_lines import duration
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.cycle.performance import earlier_waits, limits_reached
from bqdispatch_provider.delivery.quarantine import QuarantineStore
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import in_one_line, in_words, parse_event
from bqdispatch_provider.remaining import delivered
from bqdispatch_provider.view.explanation import Explainer, Explanation, matches
from bqdispatch_provider.view.suggested_commands import replay_command

MAX_SHOWN = 20
"""Events that are explained at one time."""


def execute(options: argparse.Namespace) -> int:
    """Explain the events that somebody asked for.

    :returns: the exit code: 1 when there is none, or the task folder cannot be looked at; 2 when no event is named.
    """
    config, client = connect(options)
    if not options.event.removeprefix(config.async_task_url).strip():
        print_error("EVENT is empty; expected the name of an event, as `bqdispatch explain --help` says")
        return CANNOT_START
    with dispatcher_of(config, client) as dispatcher:
        try:
            snapshot = dispatcher.look().snapshot
        except GOOGLE_ERRORS as error:
            print_error(f"the task folder {config.async_task_url!r} cannot be looked at: {in_words(error)}")
            return FAILED
        earlier, problems = earlier_waits(dispatcher.store, config.journal_url)
        announced: Mapping[Key, datetime] = {}
        try:
            announced = dispatcher.intents.announced(snapshot.listing.intents)
        except GOOGLE_ERRORS as error:
            problems.append(f"the intents cannot be read, so who dispatches what is not known: {in_words(error)}")
        reached, unread = limits_reached(dispatcher.store, config)
        problems += unread
        found = Explainer(snapshot, config, earlier, announced, reached).find(options.event)
        for where, elsewhere in (
            ("trigger bucket", _delivered(options.event, config, dispatcher)),
            ("quarantine", _quarantined(options.event, config, client)),
        ):
            try:
                found += elsewhere
            except GOOGLE_ERRORS as error:
                problems.append(f"the {where} cannot be listed, so it is not looked for there: {in_words(error)}")
        for problem in problems:
            print_error(problem)
        now = dispatcher.store.now()
    _print(found, options, now)
    return OK if found else FAILED


def _print(found: Sequence[Explanation], options: argparse.Namespace, now: datetime) -> None:
    if options.json:
        print(json.dumps([each.to_dict() for each in found], indent=1))
    elif found:
        print("\n\n".join(_as_text(each, now) for each in found[:MAX_SHOWN]))
        if len(found) > MAX_SHOWN:
            print(f"\nand {len(found) - MAX_SHOWN} more")
    else:
        print_error(
            f"no event {options.event!r} is in the task folder, in the trigger bucket or in quarantine. If it was "
            "dispatched and BqTail has taken it, Jobs and Batched of the run's response document have it"
        )


def _delivered(wanted: str, config: DispatchConfig, dispatcher: Dispatcher) -> Iterator[Explanation]:
    """Find events that were delivered and not taken by BqTail."""
    folder_url = config.async_task_url
    for url, name in delivered(dispatcher.store, config):
        path = name.name.removesuffix(".json") if name is not None else url
        if url == wanted or (name is not None and matches(wanted, name, path, folder_url)):
            yield Explanation(
                path,
                url,
                "was delivered, and BqTail has not consumed it yet",
                None,
                (),
                "Nothing to do for a minute. If it stays, see whether BqTail's function runs and watches this bucket.",
            )


def _quarantined(wanted: str, config: DispatchConfig, client: Client) -> Iterator[Explanation]:
    """Find events in quarantine."""
    folder_url = config.async_task_url
    with QuarantineStore(client, config) as store:
        for held in store.listing():
            if wanted == held.url or _matches(wanted, held.name, folder_url):
                yield Explanation(
                    held.name,
                    held.url,
                    "is in quarantine",
                    held.since,
                    (held.reason,),
                    f"Put it back with: {replay_command(config, held.url)}",
                )


def _matches(wanted: str, path: str, folder_url: str) -> bool:
    """Tell whether a quarantined event is one that somebody asked for; a name that was shortened is no event's."""
    try:
        return matches(wanted, parse_event(path), path, folder_url)
    except ValueError:
        return False


def _as_text(each: Explanation, now: datetime) -> str:
    since = ""
    if each.since:
        since = f", since {each.since:%Y-%m-%d %H:%M:%S} UTC ({duration(now - each.since, minutes_from_s=120)})"
    lines = [each.url, f"  {each.state}{since}", *(f"  {detail}" for detail in each.details)]
    next_step = [in_one_line(f"  Next: {each.next_step}")] if each.next_step else []  # its commands are pasted
    return "\n".join([*map(printable, lines), *next_step])
