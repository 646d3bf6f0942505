"""``bqdispatch replay``: list what is in quarantine or waits for a decision, or put it back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from bqdispatch_provider.commands.options import connect, dispatcher_of
from bqdispatch_provider.commands.output import FAILED, OK, print_error, print_table, printable
from bqdispatch_provider.commands.replay import Decisions, Undecided
from bqdispatch_provider.delivery.quarantine import QuarantineStore, ReplayError
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS


@dataclass(frozen=True)
class _Waiting:
    """An object in quarantine, or a window that waits for a decision.

    :param url: of the object.
    :param names: all URLs by which a user may name it.
    :param since: when it began to wait.
    :param reason: why it waits.
    :param put_back: puts it back, and returns what was done.
    """

    url: str
    names: Collection[str]
    since: datetime
    reason: str
    put_back: Callable[[], str]


def execute(options: argparse.Namespace) -> int:
    """List what waits, or put it back.

    :param options: of the command line.
    :returns: the exit code: 1 when something cannot be listed, or was not put back.
    """
    config, client = connect(options)
    with QuarantineStore(client, config) as store, dispatcher_of(config, client) as dispatcher:
        decisions = Decisions(dispatcher)
        try:
            waiting = list(_waiting(store, decisions))
        except GOOGLE_ERRORS as error:
            print_error(f"{config.error_url!r} or {config.async_task_url!r} cannot be listed: {_said(error)}")
            return FAILED
        if not options.urls and not options.all:
            _print_waiting(waiting)
            return OK
        chosen = {each.url: each for each in waiting if options.all}
        all_found = True
        for url in dict.fromkeys(options.urls):
            try:
                chosen |= {each.url: each for each in _named(url, waiting, decisions)}
            except ReplayError as error:
                print_error(f"{url}: {error}")
                all_found = False
            except GOOGLE_ERRORS as error:
                print_error(f"{url}: cannot be read; try again: {_said(error)}")
                all_found = False
        return OK if _put_back(chosen.values()) and all_found else FAILED


def _named(url: str, waiting: Iterable[_Waiting], decisions: Decisions) -> list[_Waiting]:
    """Return the objects that a URL names.

    :raises ReplayError: if there are none.
    """
    named = [each for each in waiting if url in each.names]
    if not named and (missed := decisions.missed(url)) is not None:
        named = [_undecided(decisions, missed)]
    if not named:
        decisions.check_name(url)
        raise ReplayError("nothing of that URL waits; `bqdispatch replay` without a URL lists what does")
    return named


def _waiting(store: QuarantineStore, decisions: Decisions) -> Iterator[_Waiting]:
    for each in store.listing():
        names = (each.url, printable(each.url), store.task_url(each))
        yield _Waiting(each.url, names, each.since, each.reason, partial(decisions.put_back, store, each))
    for undecided in decisions.listing():
        yield _undecided(decisions, undecided)


def _undecided(decisions: Decisions, undecided: Undecided) -> _Waiting:
    names = (undecided.url, printable(undecided.url))
    since, put_back = undecided.marker.created, partial(decisions.fire, undecided)
    return _Waiting(undecided.url, names, since, undecided.reason, put_back)


def _print_waiting(waiting: Collection[_Waiting]) -> None:
    rows = [(each.url, f"{each.since:%Y-%m-%d %H:%M:%S}", each.reason) for each in waiting]
    print_table(("in quarantine", "since (UTC)", "why"), rows)
    if not rows:
        print("Nothing is in quarantine.", file=sys.stderr)


def _put_back(chosen: Iterable[_Waiting]) -> bool:
    """Put objects back, each whatever becomes of the others.

    :returns: false when one was not put back.
    """
    all_back = True
    for each in chosen:
        try:
            print(printable(each.put_back()))
        except ReplayError as error:
            print_error(error)
            all_back = False
        except GOOGLE_ERRORS as error:
            print_error(f"{each.url!r} was not put back; try again: {_said(error)}")
            all_back = False
    return all_back


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
