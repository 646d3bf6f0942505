"""A real Airflow whose processes are killed (SIGKILL), or asked to end, or two of whose runs overlap.

When to kill is told by calls that the stand-in gets, never by a time: the answer to one of them is held back, and who
waits for it is killed.
"""

import itertools
import signal

from runs import UNBATCHED, has_ended, is_all_finished, kill, put_files, returned, states, trigger
from waiting import HELD_MS
from world import JOURNAL, TASKS, TRIGGER

POOLS = ("bqdispatch_sql", "bqdispatch_jobs")
BATCHED = ("ds.a", "q:ds.b$20260101", "ds.c--d", "example.com:legacy.ds.e")

KILLS = 15
MOMENTS = [
    ("storage.objects.insert", {"bucket": JOURNAL, "name": "*/detect.shares"}),
    ("storage.objects.insert", {"bucket": TASKS, "name": "*/intents/*[0-9].json"}),
    ("storage.objects.copy", {"bucket": TRIGGER, "name": "_bqjob_/*"}),
    ("storage.objects.delete", {"bucket": TASKS, "name": "*--dispatch"}),
    ("storage.objects.insert", {"bucket": TASKS, "name": "*/intents/*-windows.json"}),
    ("storage.objects.compose", {"bucket": TASKS, "name": "*.claim"}),
    ("storage.objects.copy", {"bucket": TRIGGER, "name": "_batch_/*"}),
    ("storage.objects.compose", {"bucket": TASKS, "name": "*.fired"}),
    ("storage.objects.insert", {"bucket": JOURNAL, "name": "*/dispatch_jobs.json"}),
    ("storage.objects.insert", {"bucket": JOURNAL, "name": "*/performance.json"}),
]
"""Calls of tasks alone: what the sensor saw, what is to move, a move, its end, what is to be fired, a claim, its copy,
the note of the firing, a part of the report, and the end of the run."""
VICTIMS = ({"task"}, {"task"}, {"worker", "task"}, {"task"}, {"worker"})
"""A worker is the executor's process that looks after a task; without it, a task goes on while its next try begins."""

AFTER_A_CRASH = 200
"""Seconds after which everybody takes up what a dispatcher has left: more than ``CLAIM_TIMEOUT``."""


class Killer:
    """Kill processes of an Airflow while they wait for an answer, and count them."""

    def __init__(self, live, control, wait_until):
        self.live, self.control, self.wait_until = live, control, wait_until
        self.killed = {"task": 0, "worker": 0, "triggerer": 0}

    def kill(self, kinds, begin, call, after=False, later=0, **where):
        """Kill while such a call waits for its answer, which comes when all are dead.

        :param kinds: what to kill.
        :param begin: leads to the call.
        :param after: whether the call was carried out already.
        :param later: seconds by which the clock is moved before the answer comes.
        """
        self.control.add_fault(call, "slow", ms=HELD_MS, times=1, after=after, **where)
        begin()
        looks = itertools.count(1)

        def has_come():
            if self.control.faults()[0]["times"] == 0:
                return True
            if next(looks) % 20 == 0:  # another task may have done with it what this call was to do
                begin()
            return False

        self.wait_until(has_come, f"{call} of {where}")
        # Workers first: they would tell of their tasks' end.
        for kind in sorted(kinds, reverse=True):
            self.killed[kind] += kill(self.live, kind)
        self.control.advance(later)
        self.control.clear_faults()


def test_killed_tasks_workers_and_triggerers_lose_and_double_nothing(live, world, bqtail, wait_until, unpaused, trials):
    control, killer = world.control, Killer(live, world.control, wait_until)
    with unpaused("killed"):
        wait_until(lambda: "deferred" in states(live, "killed", task_id="detect"), "the sensor is deferred")
        for _ in range(3):
            killer.kill({"triggerer"}, lambda: put_files(bqtail, *BATCHED), "storage.objects.list", bucket=TASKS)
            live.start("triggerer")

        def more_events():
            put_files(bqtail, *BATCHED[:2], *UNBATCHED)
            control.advance(40)

        for at in itertools.count():
            call, where = MOMENTS[at % len(MOMENTS)]
            victims = VICTIMS[at % len(VICTIMS)]
            killer.kill(victims, more_events, call, after=bool(at % 2), later=AFTER_A_CRASH, **where)
            if at + 1 >= len(MOMENTS) and sum(killer.killed.values()) >= KILLS:
                break
        wait_until(lambda: control.advance(1) and is_all_finished(bqtail), "all events are through")
    account = bqtail.account()
    assert account.ok, str(account)
    assert all(killer.killed.values())
    trials(
        "tasks, workers and triggerers of an Airflow killed during a call",
        sum(killer.killed.values()),
        account.events,
        account.missing,
        account.doubled,
    )


def test_two_dag_runs_that_have_found_the_same_dispatch_it_once(live, world, bqtail, wait_until, unpaused, trials):
    put_files(bqtail, *BATCHED, *10 * UNBATCHED)
    rounds = 0
    with unpaused("overlapping"):
        while not is_all_finished(bqtail):
            rounds += 1
            world.control.advance(AFTER_A_CRASH)
            run_side_by_side(live, wait_until, rounds)
            wait_until(lambda: not world.names(TRIGGER, "_b"), "BqTail has consumed all of it")
    account = bqtail.account()
    assert account.ok, str(account)
    trials("two overlapping DAG runs that found the same", rounds, account.events, account.missing, account.doubled)


def test_a_task_that_is_asked_to_end_finishes_what_it_has_begun_and_the_next_run_does_the_rest(
    live, world, wait_until, unpaused
):
    names = set(world.traces(1700))
    world.control.add_fault("storage.batch", "slow", ms=HELD_MS, after=True)
    with unpaused("on_a_worker"):
        run = trigger(live, "on_a_worker", "asked")
        wait_until(lambda: world.names(TRIGGER), "it dispatches")
        assert kill(live, "task", signal.SIGTERM) == 1
        wait_until(lambda: (live.home / "asked_to_end").exists(), "it has heard that")
        world.control.clear_faults()
        dispatched = document_of(live, world, wait_until, run)
        left = names & set(world.names())
        assert 0 < len(left) < len(names)
        assert dispatched == {world.url_of(name) for name in names - left}
        assert len(world.names(TRIGGER)) == len(dispatched)
        rest = document_of(live, world, wait_until, trigger(live, "on_a_worker", "next"))
        assert rest == {world.url_of(name) for name in left}
        assert len(world.names(TRIGGER)) == len(names)
        world.consume()


def document_of(live, world, wait_until, run):
    """What a run of one task has dispatched, by its document."""
    wait_until(lambda: has_ended(live, run), "the run has ended")
    task = live.get(f"{run}/taskInstances/dispatch")
    assert (task["state"], task["try_number"]) == ("success", 1)
    return set(world.document_at(returned(live, run, "dispatch")["document"])["Jobs"])


def run_side_by_side(live, wait_until, number):
    """Two runs: their tasks wait for the pools until both have looked, and then dispatch at the same time."""
    set_slots(live, 0)
    both = [trigger(live, "overlapping", f"{number}-{which}") for which in ("first", "second")]
    looked = ["success"] * 2 * number
    wait_until(lambda: states(live, "overlapping", task_id="detect") == looked, "both have looked")
    first, second = (found_by(live, run) for run in both)
    assert first == second
    set_slots(live, -1)
    wait_until(lambda: all(has_ended(live, run) for run in both), "both have ended")


def set_slots(live, slots):
    for pool in POOLS:
        live.patch(f"pools/{pool}", {"name": pool, "slots": slots, "include_deferred": False})


def found_by(live, run):
    """The events that a run's sensor handed on."""
    return [(share["lane"], share["events"], share["first"]) for share in returned(live, run, "detect")]
