"""The cells tell lost, doubled and named files apart, whoever dispatches: here dispatchers that are played by hand."""

import pytest
from cells import (
    CELLS,
    DELAYS,
    DOUBLED,
    DROPPED,
    FAILED,
    FIRSTS,
    KNOWN,
    KNOWN_THEN_NEW,
    LOADED,
    LOST,
    MANY_FOLDERS,
    NAMED,
    NEW,
    ONCE,
    ONE_FOLDER,
    Calls,
    Cell,
    run,
    run_killed,
    table,
    totals,
)
from world import TRIGGER

FIVE_SECONDS, HALF_AN_HOUR = 5, 1800


@pytest.fixture
def trial(cloud, world):
    return lambda *cell, **more: run(cloud.url, world.control, Cell(*cell), **more)


class Simple:
    """Fires each generation of a window once, and removes what it has fired after a time.

    :param kept_s: how long a fired window stays.
    :param says: whether it reports each window that it has fired.
    """

    def __init__(self, kept_s, says=False):
        self.kept_s, self.says, self.fired = kept_s, says, {}

    def __call__(self, world):
        trigger = world.client.bucket(TRIGGER)
        tasks = world.client.bucket("ops")
        errors = []
        for name in world.names():
            blob = world.blob(name)
            if name.startswith("proj:"):
                tasks.copy_blob(blob, trigger, f"_bqjob_/2026-03-01_12/{name}.json")
                world.delete(name)
            elif name.endswith(".win"):
                key = (name, blob.generation)
                if key not in self.fired:
                    tasks.copy_blob(blob, trigger, f"_batch_/{name}")
                    self.fired[key] = world.control.now()
                elif world.control.now() - self.fired[key] > self.kept_s:
                    world.delete(name)
                if self.says:
                    errors.append(f"fired {name}")
        return errors


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("first", FIRSTS)
def test_the_first_firing_is_where_its_cell_says_when_the_event_comes(trial, delay, first):
    assert trial(MANY_FOLDERS, NEW, delay, True, first, dispatch=Simple(120)).first == first


def test_there_is_a_cell_for_each_case():
    assert len(CELLS) == len(set(CELLS)) == 240


def test_a_file_whose_event_finds_the_fired_window_is_lost(trial):
    result = trial(MANY_FOLDERS, NEW, FIVE_SECONDS, True, LOADED, dispatch=Simple(120))
    assert result.files == {"first": ONCE, "second": ONCE, "new": LOST}
    assert not result.ok and result.worst == LOST


def test_a_file_that_is_lost_and_named_is_named(trial):
    result = trial(MANY_FOLDERS, NEW, FIVE_SECONDS, True, LOADED, dispatch=Simple(120, says=True))
    assert result.files["new"] == result.worst == NAMED and result.ok


def test_a_file_whose_event_makes_the_window_anew_is_loaded(trial):
    result = trial(MANY_FOLDERS, NEW, HALF_AN_HOUR, True, LOADED, dispatch=Simple(120))
    assert set(result.files.values()) == {ONCE} and result.ok


def test_files_that_are_kept_are_doubled_by_a_window_that_is_made_anew(trial):
    result = trial(ONE_FOLDER, KNOWN, HALF_AN_HOUR, False, LOADED, dispatch=Simple(120))
    assert result.files == {"first": DOUBLED, "known": DOUBLED}


def test_what_a_dropped_firing_leaves_is_lost_or_loaded_by_the_next(trial):
    assert trial(ONE_FOLDER, KNOWN, FIVE_SECONDS, True, DROPPED, dispatch=Simple(120)).worst == LOST
    assert trial(ONE_FOLDER, KNOWN, HALF_AN_HOUR, True, DROPPED, dispatch=Simple(120)).worst == ONCE


def test_what_a_failed_load_leaves_is_loaded_once_by_the_next(trial):
    assert trial(ONE_FOLDER, KNOWN, FIVE_SECONDS, True, FAILED, dispatch=Simple(120)).worst == "failed"
    assert trial(ONE_FOLDER, KNOWN, HALF_AN_HOUR, False, FAILED, dispatch=Simple(120)).worst == ONCE


def test_events_come_in_their_order(trial):
    """The known folder's makes the window anew, which looks into both."""
    result = trial(MANY_FOLDERS, KNOWN_THEN_NEW, HALF_AN_HOUR, False, LOADED, dispatch=Simple(120))
    assert result.files == {"first": DOUBLED, "second": ONCE, "known": DOUBLED, "new": ONCE}


def test_a_dispatcher_that_is_killed_sends_nothing_any_more(cloud, world):
    window = world.window()
    calls = Calls(kill_at=3)
    with calls.of_a_dispatcher():
        world.cycle()
    assert calls.killed and calls.count >= 3
    assert not world.names(TRIGGER, "_batch_/") and window in world.names()
    assert world.session.get(f"{cloud.url}/storage/v1/b/{TRIGGER}").ok


def test_a_dispatcher_is_killed_before_and_after_each_call(cloud, world):
    cell = Cell(ONE_FOLDER, KNOWN, FIVE_SECONDS, True, LOADED)
    points = [(at, after) for at, after, _ in run_killed(cloud.url, world.control, cell, points=(1, 2, 10_000))]
    assert points == [(1, False), (1, True), (2, False), (2, True)]


def test_the_table_has_a_row_for_each_kind_and_delay(trial):
    result = trial(MANY_FOLDERS, NEW, FIVE_SECONDS, True, LOADED, dispatch=Simple(120))
    lines = table([result])
    assert len(lines) == 2 + 24 and len({line.count("|") for line in lines}) == 1
    assert "| many folders | new folder | +5 s |  |  | LOST |  |  |  |  |  |  |  |" in lines
    assert totals([result]) == "0 in which a file was loaded twice, 1 in which a file was lost"
