"""One bad apple costs one apple: a fault of each kind, of one object, one project or everything."""

import os
import random

import pytest
from apples import Cell, carry_out, cells

ALL = bool(os.environ.get("BQDISPATCH_APPLES"))
SAMPLE = 40


def chosen():
    """All cells, or some that are others for each version of the list, and the same for everybody."""
    found = cells((0, 1, 3))
    return found if ALL else random.Random(7).sample(found, SAMPLE)


@pytest.mark.parametrize("cell", chosen(), ids=str)
def test_nothing_is_lost_doubled_or_kept_waiting_in_silence(hasty, cell: Cell, record_property):
    told = carry_out(hasty, cell)
    wrong = told.wrong(cell)
    result = "wrong" if wrong else "named" if told.held_up(cell) else "dispatched"
    record_property("cell", [cell.call, cell.whose, cell.lasts, cell.limit, result])
    assert wrong == [], told
