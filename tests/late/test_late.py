"""Storage events that come after their window was fired: no file is lost in silence, and none is loaded twice.

A sample of the cells; ``make soak`` carries out all, and kills a dispatcher at each call of each.
"""

import os

import pytest
from cells import CELLS, run, run_killed

EVERY = int(os.environ.get("BQDISPATCH_CELLS_EVERY", "7"))
SAMPLE = CELLS[::EVERY]
KILLED = CELLS[5 :: 6 * EVERY]
POINTS = range(1, 1000, int(os.environ.get("BQDISPATCH_POINTS_EVERY", "9")))


@pytest.mark.parametrize("cell", SAMPLE, ids=str)
def test_each_file_is_loaded_once_or_named(cloud, world, cell):
    result = run(cloud.url, world.control, cell)
    assert result.ok, str(result)


@pytest.mark.parametrize("cell", SAMPLE[::4], ids=str)
def test_each_file_is_loaded_once_or_named_by_one_run_of_many_cycles(cloud, world, cell):
    result = run(cloud.url, world.control, cell, one_run=True)
    assert result.ok, str(result)


@pytest.mark.parametrize("cell", KILLED, ids=str)
def test_each_file_is_loaded_once_or_named_although_dispatchers_are_killed(cloud, world, cell):
    killed = 0
    for kill_at, after, result in run_killed(cloud.url, world.control, cell, POINTS):
        assert result.ok, f"killed {'after' if after else 'before'} call {kill_at}: {result}"
        killed += 1
    assert killed > 3
