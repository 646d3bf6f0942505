"""Situations in which an event waits. Each is told in the same words by explain, status, the report and the page."""

from world import FOLDER, TASKS

from bqdispatch_provider.core.model import Reason

LATER = 7200
"""Seconds after which each event has waited for long."""


def hold(world, name):
    blob = world.client.bucket(TASKS).blob(FOLDER + name)
    blob.temporary_hold = True
    blob.patch()


def running(world):
    return world.trace(state="RUNNING", age=LATER), {}


def throttled(world):
    world.trace(state="RUNNING", age=LATER + 60)
    return world.trace(age=LATER), {"MaxConcurrentJobs": 1}


def without_region(world):
    return world.trace(state=None, root=True, age=LATER), {}


def unknown(world):
    return world.trace(state=None, age=LATER), {}


def not_due(world):
    return world.window(due=-600, age=LATER), {}


def claimed(world):
    name = world.window(due=LATER)
    world.claim(name, ago=60)
    return name, {}


def held(world):
    name = world.trace(age=LATER)
    hold(world, name)
    return name, {}


def tried(world):
    """Let five runs try to dispatch. The clock ends where it was."""
    world.control.advance(-10)
    for _ in range(5):
        with world.dispatcher() as dispatcher:
            assert dispatcher.run(0).errors
        world.control.advance(2)


def refused(world):
    name = world.trace(age=LATER)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=400)
    tried(world)
    return name, {}


def not_permitted(world):
    name = world.trace(age=LATER)
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    tried(world)
    return name, {}


def late_twin(world):
    """A window of which a sentinel of the Go dispatcher says that it was fired before."""
    world.control.advance(-LATER)
    name = world.window(due=LATER, age=LATER)
    world.put(name.replace(".win", ".wis"), content=".", age=LATER + 60)
    assert world.cycle().outcomes["quarantined"] == 1
    (marker,) = [each for each in world.names() if each.startswith("undecided/")]
    world.control.advance(LATER)
    return marker, {}


def no_answer(world):
    name = world.trace(age=LATER)
    world.control.refuse("bigquery.jobs.list")
    world.control.refuse("bigquery.jobs.get")
    return name, {}


def pending(world):
    return world.trace(state="PENDING", age=LATER), {}


def misnamed(world):
    name = "proj:p:US/sales.orders--123_1_load--dispatch"
    world.put(name, age=LATER)
    return name, {}


SITUATIONS = [
    (running, Reason.JOB_RUNNING),
    (throttled, Reason.LIMIT),
    (without_region, Reason.NOT_FOUND),
    (unknown, Reason.NOT_FOUND),
    (claimed, Reason.IN_HAND),
    (held, Reason.PROTECTED),
    (no_answer, Reason.NO_ANSWER),
    (pending, Reason.JOB_PENDING),
    (not_due, Reason.NOT_DUE),
    (refused, Reason.REFUSED),
    (not_permitted, Reason.REFUSED),
    (late_twin, Reason.UNDECIDED),
    (misnamed, Reason.UNKNOWN_NAME),
]
"""Functions that make a situation, and return the event's name and more of the configuration; and the reason."""


def name_of(value):
    """Return the part of a test's ID that stands for a situation."""
    return getattr(value, "__name__", "")
