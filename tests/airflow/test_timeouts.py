"""A task whose execution timeout strikes while it dispatches, and BqTail's account of it."""

import pytest
import requests
from world import TASKS, TRIGGER

from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail

LATER_MS = 4000
"""Later than the DAG's execution timeout."""


@pytest.fixture
def bqtail(world):
    """A BqTail with due windows and finished jobs."""
    settings = BqTailSettings.for_dispatcher(
        world.config(),
        window_s=20,
        unbatched=frozenset({"ds.b"}),
        chain=("load",),
        pending_ms=(0, 0),
        running_ms=(0, 0),
    )
    stand_in = StandInBqTail(world.client, requests.Session(), world.url, settings)
    for _ in range(8):
        stand_in.put_file("ds.a")
        stand_in.put_file("ds.b")
        world.control.advance(30)
    return stand_in


@pytest.mark.parametrize(("call", "bucket"), [("copy", TRIGGER), ("delete", TASKS)])
def test_a_task_that_times_out_in_the_middle_of_a_move_is_finished_by_its_next_try(
    world, run, bqtail, trials, call, bucket
):
    (*_, name, _) = [name for name in world.names() if name.startswith("proj:")]
    world.control.add_fault(
        f"storage.objects.{call}", "slow", ms=LATER_MS, times=1, after=True, bucket=bucket, name=f"*{name}*"
    )
    done = run("timed_out")
    assert done.state == "success"
    assert done.tries("dispatch") > 1
    assert world.control.faults()[0]["times"] == 0
    assert not [name for name in world.names() if name.startswith(("proj:", "intents/"))]
    while bqtail.step():  # what the windows loaded has traces of its own
        world.control.advance(10)
        world.cycle()
    account = bqtail.account()
    assert account.ok, str(account)
    assert account.finished == account.events == 16
    trials(f"an Airflow task times out between two calls ({call})", 1, account.events, account.missing, account.doubled)
