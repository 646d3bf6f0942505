"""``bqdispatch status`` and ``bqdispatch top``: how dispatching goes, once or live."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from google.cloud.storage import Client

from bqdispatch_provider.commands.options import connect, dispatcher_of
from bqdispatch_provider.commands.output import FAILED, OK, print_commands, print_error, printable
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.history import Figures, looks
from bqdispatch_provider.core.log_lines import duration
from bqdispatch_provider.cycle.performance import earlier_waits, limits_reached
from bqdispatch_provider.cycle.unconsumed import unconsumed
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import counted, in_words
from bqdispatch_provider.view.explanation import refused_before
from bqdispatch_provider.view.health import last_look, silent_after
from bqdispatch_provider.view.journal_reader import JournalReader
from bqdispatch_provider.view.overdue import overdue
from bqdispatch_provider.view.overview import Overview, overview
from bqdispatch_provider.view.suggested_commands import commands_in, without_commands

REFRESH_S = 10.0
"""Interval of two looks of ``top``."""

SHOWN = 10
"""Waiting events, and objects in quarantine, that a terminal shows."""

_MARKS = {"ok": "✔", "warning": "!", "error": "✘", "unknown": "?"}
_STYLES = {"ok": "bold green", "warning": "bold yellow", "error": "bold red", "unknown": "bold"}


def execute(options: argparse.Namespace) -> int:
    """Look once, and print how dispatching goes.

    :returns: the exit code: 1 when it does not go well, or the task folder cannot be looked at.
    """
    with overviews(*connect(options)) as each:
        seen = next(each)
        if isinstance(seen, str):
            print_error(seen)
            return FAILED
        if options.json:
            print(json.dumps(seen.to_dict(), indent=1))
        else:
            _print(seen)
        return OK if seen.health.level in ("ok", "warning") else FAILED


def top(options: argparse.Namespace) -> int:
    """Look again and again, and show how dispatching goes, until Ctrl-C.

    :returns: the exit code.
    """
    from rich.console import Console  # noqa: PLC0415  (only a terminal needs it)
    from rich.live import Live  # noqa: PLC0415

    if not sys.stdout.isatty():
        print_error("top needs a terminal; bqdispatch status prints the same once")
        return FAILED
    with overviews(*connect(options)) as each, Live(console=Console(), auto_refresh=False, screen=True) as live:
        for seen in each:
            live.update(_error(seen) if isinstance(seen, str) else _live(seen), refresh=True)
            time.sleep(REFRESH_S)
    return OK


@contextmanager
def overviews(config: DispatchConfig, client: Client) -> Iterator[Iterator[Overview | str]]:
    """Open the task folder, and look at it each time that it is asked: an overview, or why there is none.

    :param config: names the task folder.
    :param client: a ``google.cloud.storage.Client``.
    """
    with dispatcher_of(config, client) as dispatcher:
        yield _look(dispatcher, JournalReader(client, config))


def _look(dispatcher: Dispatcher, reader: JournalReader) -> Iterator[Overview | str]:
    config, store = dispatcher.config, dispatcher.store
    while True:
        try:
            seen = dispatcher.look()
        except GOOGLE_ERRORS as error:
            yield f"the task folder {config.async_task_url!r} cannot be listed: {in_words(error)}"
            continue
        report, (earlier, problem) = seen.report, earlier_waits(store, config.journal_url)
        found, unknown = unconsumed(store, config)
        if found:
            report.add_error(found)
        reached, unread = limits_reached(store, config)
        report.waits |= overdue(seen.plan, earlier, config, reached) | refused_before(seen.plan, earlier)
        now = store.now()
        hour = Figures()
        for figures in reader.spans(now - timedelta(hours=1), now).values():
            hour.add(figures)
        dispatched = looks(reader.hours(now - timedelta(days=1), now))
        hour.seen = last_look(dispatched, reader.performance())
        held = reader.quarantine()
        yield overview(
            *(report, config, now, hour, held),
            problems=[*problem, *unread, *filter(None, [unknown]), *reader.problems.values()],
            history_error=reader.history_error,
            silence=silent_after(dispatched),
            is_own_look=True,
        )


def _print(seen: Overview) -> None:
    """Print on a terminal with colours and borders, elsewhere as plain lines."""
    from rich.console import Console  # noqa: PLC0415  (only people need it)

    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(layout(seen))
    if commands := _commands(seen):
        print("\nCommands; the tables say which to run, and when")
        print_commands(commands)


def _commands(seen: Overview) -> list[str]:
    """Return the commands of what is shown, which the tables shorten.

    Not those of which somebody has to choose one: whoever pastes all lines would fire a window, and delete it.
    """
    steps = [found for event in seen.waiting[:SHOWN] if len(found := commands_in(event.next_step)) == 1]
    return [*(command for (command,) in steps), *(held.command for held in (seen.quarantine or ())[:SHOWN])]


def _live(seen: Overview) -> Any:
    """Lay an overview out for a screen that is drawn anew: nobody could copy a command there."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    hint = [Text("`bqdispatch status` prints the commands to copy.")] if _commands(seen) else []
    return Group(layout(seen), *hint)


def _error(said: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(said), "bold red")


def layout(seen: Overview) -> Any:
    """Lay an overview out for a terminal, by ``rich``. A cell would break a command, so each is shortened.

    :param seen: the overview.
    """
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    health = seen.health
    parts: list[Any] = [Text(f"{_MARKS[health.level]} {printable(health.sentence)}", _STYLES[health.level])]
    if health.next_step:
        parts.append(Text(f"  {printable(health.next_step)}"))
    lanes = Table(
        *("lane", "running", "pending", "throttled", "errors", "dispatched in the last hour"),
        title="Lanes",
        title_justify="left",
    )
    for lane, numbers in seen.lanes.items():
        lanes.add_row(
            lane, *(f"{numbers[each]:,}" for each in ("running", "pending", "throttled", "errors", "dispatched"))
        )
    parts += [Text(), lanes]
    if seen.limits:
        table = Table("project", "limit", "slots", "taken", "waiting", title="Limits", title_justify="left")
        for use in seen.limits:
            project = Text(printable(use.project), overflow="fold")
            table.add_row(project, use.key, str(use.limit), str(use.taken), str(use.waiting))
        parts += [Text(), table]
    parts += _waiting(seen)
    if seen.quarantine:
        table = Table("object", "reason", title="Quarantine", title_justify="left")
        for held in seen.quarantine[:SHOWN]:
            table.add_row(*(Text(printable(each), overflow="fold") for each in (held.url, held.reason)))
        parts += [Text(), table, *_more(len(seen.quarantine) - SHOWN, "`bqdispatch replay` lists all")]
    parts += [Text(printable(said), "yellow") for said in seen.errors[:SHOWN]]
    parts += _more(len(seen.errors) - SHOWN, "the response document has all")
    parts += [Text(printable(said), "yellow") for said in seen.problems]
    return Group(*parts)


def _more(number: int, where: str) -> list[Any]:
    from rich.text import Text  # noqa: PLC0415

    return [Text(f"and {number:,} more; {where}")] if number > 0 else []


def _waiting(seen: Overview) -> list[Any]:
    """Lay out the events that wait, and the windows whose end has not come."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts: list[Any] = []
    if seen.waiting:
        table = Table(
            "event", "since", "reason", "what happens next", title="What waits, and why", title_justify="left"
        )
        for event in seen.waiting[:SHOWN]:
            table.add_row(
                Text(printable(event.name), overflow="fold"),
                duration(seen.at - event.since, minutes_from_s=120),
                Text(printable(f"{event.reason}{f': {event.said}' if event.said else ''}"), overflow="fold"),
                Text(printable(without_commands(event.next_step)), overflow="fold"),
            )
        parts += [Text(), table]
        more = sum(seen.reasons.values()) - min(len(seen.waiting), SHOWN)
        parts += _more(more, "`bqdispatch explain` tells of each")
    if seen.not_due:
        event = seen.not_due[0]
        number = f"{counted(seen.not_due_count, 'window')} not due"
        first = f"the first is {printable(event.name)}, in {duration(event.since - seen.at, minutes_from_s=120)}"
        parts += [Text(), Text(f"{number}: {first}. {printable(event.next_step)}")]
    return parts
