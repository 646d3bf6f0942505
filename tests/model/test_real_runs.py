"""The models' steps are the code's: each sequence of calls that real runs make is one of a model's dispatcher.

Real dispatchers run against the stand-in. Each is killed before or after one of its requests, which here means that
nothing that it sends afterwards arrives, and others take up what it leaves. (That a process which is killed does no
more than that, tests/faults shows.) A recorder stands in front of what they send.
"""

import itertools
import os
import threading
from collections import Counter
from contextlib import suppress

import pytest
import recorder
import requests
from automaton import Automaton
from kernel import explore
from traces import IDLE as NO_TRACE
from traces import Traces
from windows import IDLE as NO_WINDOW
from windows import Windows
from world import FOLDER, TASKS, TRIGGER

from bqdispatch_provider.testing.bqtail import BqTailSettings, Rule, StandInBqTail

ALL = bool(os.environ.get("BQDISPATCH_MODEL"))
"""Whether to kill before and after each request, and not in turn at every other one."""

AFTER_A_CRASH = 200
MANY = "ds.many"


def union(*explored):
    edges = {}
    for each in explored:
        assert each.found is None, each.found
        for knows, ways in each.automata.items():
            edges.setdefault(knows, set()).update(ways)
    return edges


@pytest.fixture(scope="module")
def of_traces():
    shown = {"write intent", "renew intent", "fence", "copy", "list versions", "delete", "set aside"}
    return [Automaton(union(explore(Traces("a"))), NO_TRACE, shown)]


@pytest.fixture(scope="module")
def of_windows():
    shown = {
        "write intent",
        "write left",
        "claim",
        "fence",
        "copy",
        "list versions",
        "write fired",
        "delete window",
        "write undecided",
    }
    small = {"fails": False, "drops": False}
    edges = union(
        explore(Windows("A", losses=1, dispatchers=1, **small)),
        explore(Windows("A", deaths=0, **small)),
        explore(Windows("A", many=True, losses=1, dispatchers=1, **small)),
        explore(Windows("A", many=True, deaths=0, **small)),
    )
    return [Automaton(edges, NO_WINDOW, shown, lambda knows: knows[1] == 1)]


@pytest.fixture(scope="module")
def of_late_windows():
    """Of the window that is made first, and of the one that comes back."""
    shown = {"write intent", "claim", "copy", "write fired", "delete window", "write undecided"}
    edges = union(explore(Windows("AA", dispatchers=1, deaths=0, fails=False)))
    return [Automaton(edges, NO_WINDOW, shown, lambda knows, number=number: knows[1] == number) for number in (1, 2)]


class Killed(BaseException):
    """Nothing is sent any more."""


class Gate:
    """Stands between a dispatcher and the services; after so many requests nothing gets through."""

    def __init__(self, send, kill_at, after):
        self._send, self._kill_at, self._after = send, kill_at, after
        self._count, self._lock = 0, threading.Lock()

    @property
    def closed(self):
        return self._count >= self._kill_at if self._kill_at else False

    def send(self, session, request, **more):
        with self._lock:
            self._count += 1
            count = self._count
        if self._kill_at and (count > self._kill_at or (count == self._kill_at and not self._after)):
            raise Killed
        response = self._send(session, request, **more)
        if count == self._kill_at:
            raise Killed
        return response


class Runs:
    """Dispatchers, one after the other, each with its record."""

    def __init__(self, world, folder, monkeypatch, then=("query", "delete", "insert", "notify")):
        self.world, self.folder, self.patch, self.number = world, folder, monkeypatch, 0
        rules = {MANY: Rule(multi_path=True)}
        settings = BqTailSettings.for_dispatcher(world.config(), window_s=20, chain=("load",), then=then, rules=rules)
        self.bqtail = StandInBqTail(world.client, requests.Session(), world.url, settings)

    def prepare(self):
        """Two due windows, of which one has many folders, and two traces."""
        for dest in ("ds.a", "ds.b"):
            self.bqtail.put_file(dest)
        self.world.control.advance(40)
        self.run()
        self.consume()
        for dest in ("ds.c", MANY):
            self.bqtail.put_file(dest)
        self.world.control.advance(40)

    def consume(self):
        while self.bqtail.step():
            pass

    def run(self, kill_at=0, after=False):
        """Run one to its end, whichever that is; gives its record, and whether it was killed."""
        self.number += 1
        record = self.folder / f"{self.number}.jsonl"
        writing = recorder.Recorder(record, TASKS, FOLDER, TRIGGER)
        with self.patch.context() as patch:
            gate = Gate(writing.passing(requests.Session.send), kill_at, after)
            patch.setattr(
                requests.Session, "send", lambda session, request, **more: gate.send(session, request, **more)
            )
            with suppress(Killed), self.world.dispatcher() as dispatcher:
                dispatcher.cycle()
        writing.close()
        return record, gate.closed


def strangers(record, of_traces, of_windows):
    """What a run did for each object that no dispatcher of a model does, and how much of it was compared."""
    calls = Counter()
    for (name, generation), done in recorder.by_object(recorder.read(record)).items():
        automata = of_windows if name.endswith(".win") else of_traces
        # That it is there already, from the same cycle, changes nothing.
        shown = [each for each in done if each[0] in automata[0].shown and each != ("write fired", "refused")]
        calls.update(what for what, _ in shown)
        if shown and not any(automaton.accepts(shown) for automaton in automata):
            yield f"{name} {generation}: {shown}"
    strangers.compared.update(calls)


strangers.compared = Counter()


@pytest.mark.parametrize(
    ("drops", "comes_back", "calls"),
    [
        (False, True, {"claim": 1, "write fired": 1, "delete window": 2}),
        (True, True, {"claim": 2, "write fired": 2, "delete window": 2}),
        (True, False, {"claim": 1, "write fired": 1, "delete window": 2, "write undecided": 1}),
    ],
    ids=["loaded, late event", "dropped, late event", "dropped"],
)
def test_the_calls_for_a_window_that_comes_back_or_was_dropped_are_the_models(
    world, tmp_path, monkeypatch, of_traces, of_late_windows, drops, comes_back, calls
):
    strangers.compared.clear()
    runs = Runs(world, tmp_path, monkeypatch, then=("query",))  # the files stay, so that their events can come late
    file = runs.bqtail.put_file("ds.a")
    if drops:
        runs.bqtail.forget_rule("ds.a")
    world.control.advance(40)
    for cycle in range(8):
        record, _ = runs.run()
        assert list(strangers(record, of_traces, of_late_windows)) == []
        runs.consume()
        world.control.advance(AFTER_A_CRASH)
        if comes_back and cycle == 1:
            runs.bqtail.late_event(file)
    of_window = {"claim", "write fired", "delete window", "write undecided"}
    assert {what: times for what, times in strangers.compared.items() if what in of_window} == calls


def test_each_sequence_of_calls_that_real_runs_make_is_one_of_the_model(
    world, tmp_path, monkeypatch, of_traces, of_windows
):
    monkeypatch.setattr("bqdispatch_provider.delivery.own_intents.RENEW_INTERVAL_S", 0.0)
    found = []
    strangers.compared.clear()
    for kill_at in itertools.count(1, 1 if ALL else 2):
        for after in (False, True) if ALL else (kill_at % 4 == 1,):
            world.control.reset()
            runs = Runs(type(world)(world.url, world.control), tmp_path, monkeypatch)
            runs.prepare()
            record, killed = runs.run(kill_at, after)
            records = [record]
            for _ in range(2):
                runs.consume()
                world.control.advance(AFTER_A_CRASH)
                records.append(runs.run()[0])
            for each in records:
                found += [f"killed at {kill_at}: {what}" for what in strangers(each, of_traces, of_windows)]
                each.unlink()
        if not killed:
            break
    print(f"{kill_at} requests; compared:", dict(strangers.compared))
    assert not found, "\n".join(found)
    for what in (
        "write intent",
        "renew intent",
        "claim",
        "fence",
        "copy",
        "list versions",
        "write fired",
        "delete",
        "delete window",
    ):
        assert strangers.compared[what], f"no run made the call {what!r}"
