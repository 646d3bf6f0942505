"""Planning: what must hold for every folder, limit and state, told anew from the rules and compared with the plan."""

import json
from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Load, Share
from bqdispatch_provider.core.listing import StoredObject, classify
from bqdispatch_provider.core.model import Job, Key, Lane, Outcome
from bqdispatch_provider.core.planning import plan
from bqdispatch_provider.core.plans import Cleanup, Quarantine, Snapshot
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.targets import REPLAY, REPLAYED, undecided_name
from bqdispatch_provider.core.windows import Firing, LateAction, OpenFiring, Verdict
from bqdispatch_provider.names import TraceName, WindowName

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROJECTS = ["p", "q", "example.com:legacy"]
EDGES = [0.0, 2.9, 3.0, 3.1, 6.9, 7.1, 59.9, 60.0, 60.1, 119.9, 120.1, 179.9, 180.1, 3601.0, 90_001.0, 10**7]
AGES = st.sampled_from(EDGES) | st.floats(0, 1000)
NOISE = ["a.grp", "x.win", "strange", "y.wis", "f/9.loc", "", "intents/me-000001.json", "proj:p:US/x.cnt", "\n"]
NOISE += ["intents/me-000001.json.done", "intents/me-000002-windows.json", "ds.gone_7_1600000000.wis", "undecided/x"]
NOISE += [undecided_name("ds.t_7_1600000000.win", 3, "gs://ops/tasks")]


def config(sql, jobs):
    places = {"AsyncTaskURL": "gs://ops/tasks", "JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/errors"}
    return DispatchConfig.from_dict(
        {**places, "ProjectID": "p", "MaxConcurrentSQL": sql, "MaxConcurrentJobs": jobs},
    )


def stored(name, age, generation=1, **more):
    return StoredObject(name, generation, NOW - timedelta(seconds=age), **more)


@dataclass
class Folder:
    """A task folder, its jobs and its ledger, with what a reader of docs/protocol.md says of each object."""

    objects: list[StoredObject]
    config: DispatchConfig
    jobs: dict[Any, Job] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    firings: dict[str, dict[int, Firing]] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    loads: dict[Key, Load] = field(default_factory=dict)
    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    open: list[OpenFiring] = field(default_factory=list)
    abandoned: list[OpenFiring] = field(default_factory=list)
    held: tuple[tuple[datetime, str], ...] = ()
    cleanup: Cleanup = field(default_factory=Cleanup)

    ready: dict[str, tuple[str, bool, datetime]] = field(default_factory=dict)
    """What may go: project, whether it is SQL, and since when it waits."""
    begun: set[str] = field(default_factory=set)
    """What of it somebody has begun to fire, and takes a place whether it goes or not."""
    active: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """What certainly counts against a limit besides, per project and kind."""
    unfired: set[str] = field(default_factory=set)
    may_go: set[str] = field(default_factory=set)
    """Fired windows that were kept long enough, or must not be kept."""
    late: dict[str, Verdict] = field(default_factory=dict)
    """What has returned, and is due to be judged."""

    def snapshot(self, objects=None):
        listing = classify(self.objects if objects is None else objects, "p", NOW)
        return Snapshot(
            listing,
            self.jobs,
            self.errors,
            firings=self.firings,
            unreadable_windows=self.hidden,
            loads=self.loads,
            verdicts=self.verdicts,
            open_firings=tuple(self.open),
            abandoned=tuple(self.abandoned),
            blocks=self.held,
            cleanup=self.cleanup,
            findings=("a folder was missed",),
        )

    def left(self, action):
        """Windows that were claimed and removed, and that a verdict is about."""
        return {each.key for each in self.abandoned if (of := self.verdicts.get(each.key)) and of.action is action}

    def is_claimed(self, name):
        return 2 in self.firings.get(name, {})

    def plan(self, objects=None):
        return plan(self.snapshot(objects), self.config, NOW)


@st.composite
def folders(draw):
    limit = st.integers(0, 4)
    made = Folder([], config(draw(limit), draw(limit)))
    made.errors = dict.fromkeys(draw(st.sets(st.sampled_from(PROJECTS), max_size=1)), "403")
    if draw(st.integers(0, 3)) == 0:
        made.held = ((NOW - timedelta(seconds=draw(AGES)), "an intent cannot be read"),)
    for number in range(draw(st.integers(0, 12))):
        put_trace(draw, made, number)
    for number in range(draw(st.integers(0, 8))):
        put_window(draw, made, number)
    for number in range(draw(st.integers(0, 2))):
        leave_claim(draw, made, number)
    dropped = [Quarantine(f"ds.dropped{n}_7_1.win", 3, NOW, "", undecided=True, claimed=True) for n in range(9)]
    made.cleanup = Cleanup(
        tuple(dropped[: draw(st.integers(0, 2))]),
        tuple((f"intents/spent-{n}.json", 4) for n in range(draw(st.integers(0, 2)))),
        made.cleanup.fired,
        ((("ds.gone_7_1.win", 3), 0),),
    )
    made.objects += [stored(name, draw(AGES)) for name in draw(st.sets(st.sampled_from(NOISE), max_size=4))]
    return made


def is_held(made, created):
    return any(created <= at for at, _ in made.held)


HELD = st.sampled_from(["", "", "", "a hold"])


def put_trace(draw, made, number):
    project = draw(st.sampled_from(PROJECTS))
    action = draw(st.sampled_from(["load", "reload", "copy", "query", "export", "other"]))
    at_root = project == "p" and draw(st.booleans())
    region = draw(st.sampled_from(["US", None])) if not at_root else None
    name = TraceName(None if at_root else project, region, "other.t", str(number), 1, action)
    state = draw(st.sampled_from(["PENDING", "RUNNING", "DONE", "DONE", "DONE", None]))
    age = draw(AGES)
    trace = stored(name.name, age, draw(st.integers(1, 2**62)), protected_by=draw(HELD))
    made.objects.append(trace)
    is_sql = action == "query"
    if state and not (project in made.errors and draw(st.booleans())):
        (found,) = classify([trace], "p", NOW).traces
        made.jobs[found.job] = Job(region or "US", state)
        made.active[project, is_sql] += state != "DONE"
        if state == "DONE" and age >= 3 and not trace.protected_by and not is_held(made, trace.created):
            made.ready[trace.name] = (project, is_sql, trace.created)
    else:
        made.active[project, is_sql] += project in made.errors or age < 60


def put_window(draw, made, number):
    project = draw(st.sampled_from([*PROJECTS, None]))
    ended, age = draw(AGES), draw(AGES)
    end = datetime.fromtimestamp(int(NOW.timestamp() - ended), UTC)
    name = WindowName(f"{project}:ds.t{number}" if project else f"ds.t{number}", "7", end)
    mark = draw(st.sampled_from([None, None, "claimed", "fired", "fired", "go", "hidden", "on its way back"]))
    late = draw(st.sampled_from([None, None, *LateAction])) if mark in (None, "claimed") else None
    put_back = late is not None and draw(st.integers(0, 4)) == 0
    metadata = {REPLAY: "1"} if mark == "on its way back" else {REPLAYED: "1"} if put_back else {}
    window = stored(name.name, age, 2, protected_by=draw(HELD), metadata=metadata)
    made.objects.append(window)
    key = (window.name, 2)
    beside = draw(st.integers(0, 3)) == 0
    if beside:
        made.objects.append(stored(f"{name.locations}9.loc", age, 6))
    ago, ledger = draw(AGES | st.sampled_from([100.0, 4000.0, 100_000.0])), {}
    at = NOW - timedelta(seconds=ago)
    if mark == "go":
        made.objects.append(stored(name.sentinel, ago, 5, size=1))
    elif mark in ("claimed", "fired"):
        ledger[2] = Firing(at, at if mark == "fired" else None)
    elif mark == "hidden":
        made.hidden[window.name] = "403"
    if late:
        ledger[1] = Firing(NOW, NOW)
        if put_back or draw(st.integers(0, 9)):
            stale = ((f"{name.locations}9.loc", 6),) if beside else ()
            made.verdicts[key] = Verdict(late, "because", stale)
    if ledger:
        made.firings[window.name] = ledger
    proven = mark == "claimed" and draw(st.integers(0, 4)) == 0
    if proven:
        made.cleanup = replace(made.cleanup, fired=(*made.cleanup.fired, key))
    billed = draw(st.sampled_from([*PROJECTS, None]))
    if billed:
        made.loads[key] = Load(billed, "4711")
    limited = bool(made.config.max_concurrent_jobs)
    is_due = NOW - timedelta(seconds=7) > end
    left_alone = mark == "claimed" and ago < 180
    if mark == "fired" and not window.protected_by and (ago > 120 or beside):
        made.may_go.add(window.name)
    if mark != "fired":
        made.unfired.add(window.name)
    counts = billed or project or "p"
    begun = mark in (None, "claimed", "hidden") and draw(st.integers(0, 3)) == 0
    if begun:
        made.open.append(OpenFiring(*key, counts, "4711", beside, NOW))
    may_be = mark in (None, "claimed") and not left_alone and is_due and age >= 3 and not proven
    if may_be and late and not put_back:
        verdict = made.verdicts.get(key, Verdict(LateAction.WAIT, ""))
        made.late[window.name] = verdict
        may_be = verdict.action is LateAction.FIRE
    known = bool(billed) if limited else True
    blind = bool(billed) and billed in made.errors
    if may_be and known and not blind and not window.protected_by and not is_held(made, window.created):
        made.ready[window.name] = (counts, False, end)
        if begun or mark == "claimed":
            made.begun.add(window.name)
    elif begun:
        made.active[counts, False] += 1


def leave_claim(draw, made, number):
    """A window of many folders that somebody has claimed, removed, and not fired."""
    end = datetime.fromtimestamp(int(NOW.timestamp() - draw(AGES)), UTC)
    name = WindowName(f"ds.left{number}", "7", end)
    billed = draw(st.sampled_from([*PROJECTS, None]))
    since = NOW - timedelta(seconds=draw(AGES))
    left = OpenFiring(name.name, 2, billed or "", "4711" if billed else "", True, since)
    made.abandoned.append(left)
    made.firings[name.name] = {2: Firing(NOW - timedelta(seconds=200))}
    if billed:
        made.loads[left.key] = Load(billed, "4711")
    is_open = draw(st.booleans())
    if is_open:
        made.open.append(replace(left, project=billed or "p"))
    late = draw(st.sampled_from([None, None, *LateAction]))
    if late:
        made.firings[name.name][1] = Firing(NOW, NOW)
        made.verdicts[left.key] = Verdict(late, "because")
    known = billed is not None or not made.config.max_concurrent_jobs
    blind = billed in made.errors
    if known and not blind and late in (None, LateAction.FIRE) and not is_held(made, since):
        made.ready[name.name] = (billed or "p", False, end)
        made.begun.add(name.name)
    elif is_open:
        made.active[billed or "p", False] += 1


def dispatched(made):
    return {event.name for events in made.events.values() for event in events}


@given(folders())
def test_every_object_has_exactly_one_outcome(folder):
    made = folder.plan()
    others = {Outcome(each): number for each, number in made.outcomes.items()}
    assert len(dispatched(made)) + len(made.cleanup.quarantines) + sum(others.values()) == made.listed
    assert made.listed == len(folder.objects) + len(folder.abandoned) + len(folder.cleanup.quarantines)
    aside = [each.name for each in made.cleanup.quarantines]
    assert len({*aside, *dispatched(made)}) == len(aside) + sum(len(events) for events in made.events.values())


@given(folders())
def test_what_is_ready_is_dispatched_or_throttled_and_nothing_else(folder):
    made = folder.plan()
    assert dispatched(made) <= folder.ready.keys()
    assert made.outcomes.get(Outcome.THROTTLED, 0) == len(folder.ready) - len(dispatched(made))
    by_name = {each.name: (each.generation, each.created) for each in folder.objects}
    by_name |= {each.window: (each.generation, each.since) for each in folder.abandoned}
    for lane, events in made.events.items():
        for event in events:
            assert (event.generation, event.created) == by_name[event.name]
            _, is_sql, _ = folder.ready[event.name]
            expected = Lane.WINDOWS if event.name.endswith(".win") else Lane.SQL if is_sql else Lane.JOBS
            assert lane is expected
            assert event.load == folder.loads.get(event.key)
            assert event.claimed == (2 in folder.firings.get(event.name, {}))
            assert event.stale_locations == (
                folder.late[event.name].stale_locations if event.name in folder.late else ()
            )


@given(folders())
def test_active_and_dispatched_pass_no_limit_and_no_more_is_throttled_than_must_be(folder):
    """A firing that was begun takes a place from then on: whether it goes, or waits for another that was begun."""
    made = folder.plan()
    gone = dispatched(made)
    for place in {ready[:2] for ready in folder.ready.values()}:
        limit = folder.config.max_concurrent_sql if place[1] else folder.config.max_concurrent_jobs
        mine = {name for name, ready in folder.ready.items() if ready[:2] == place}
        if not limit:
            assert mine <= gone
            continue
        begun, fresh = mine & folder.begun, mine - folder.begun
        assert len(begun & gone) == min(max(limit - folder.active[place], 0), len(begun)), place
        assert len(fresh & gone) == min(max(limit - folder.active[place] - len(begun), 0), len(fresh)), place


@given(folders())
def test_nothing_goes_before_what_waits_longer(folder):
    made = folder.plan()
    announced = {firing.window for firing in folder.open}

    def turn(name):
        rank = 0 if name in announced else 1 if name in folder.begun else 2
        return (rank, folder.ready[name][2])

    waiting = defaultdict(list)
    for name, (project, is_sql, _) in folder.ready.items():
        if name not in dispatched(made):
            waiting[project, is_sql].append(turn(name))
    for name in dispatched(made):
        project, is_sql, _ = folder.ready[name]
        assert all(turn(name) <= each for each in waiting[project, is_sql])
    for lane, events in made.events.items():
        turns = [turn(event.name) for event in events]
        assert turns == sorted(turns), lane


@given(folders(), st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(folder, random):
    def in_order(made):
        aside, stale = sorted(made.cleanup.quarantines, key=repr), sorted(made.cleanup.stale)
        cleanup = replace(made.cleanup, quarantines=tuple(aside), stale=tuple(stale))
        waits = tuple(sorted(made.waits, key=repr))
        return replace(made, cleanup=cleanup, errors=tuple(sorted(made.errors)), waits=waits)

    shuffled = folder.objects.copy()
    random.shuffle(shuffled)
    assert in_order(folder.plan(shuffled)) == in_order(folder.plan())


@given(folders())
def test_what_was_observed_stays_as_it_is(folder):
    """So several may look at it at once."""
    snapshot = folder.snapshot()
    before = deepcopy(snapshot)
    assert plan(snapshot, folder.config, NOW) == plan(snapshot, folder.config, NOW)
    assert snapshot == before


@given(folders())
def test_nothing_is_deleted_but_fired_windows_after_a_while_and_what_was_judged_to_be_loaded(folder):
    made = folder.plan()
    stale = dict(made.cleanup.stale)
    assert len(stale) == len(made.cleanup.stale)
    assert not stale.keys() & {*dispatched(made), *(each.name for each in made.cleanup.quarantines)}
    by_name = {each.name: each for each in folder.objects}
    loaded = {
        name
        for name, verdict in folder.late.items()
        if verdict.action is LateAction.DROP and not by_name[name].protected_by
    }
    windows = {name for name in stale if name.endswith(".win")}
    assert windows == folder.may_go | loaded
    assert windows & folder.unfired == loaded
    beside = {name for window in loaded for name, _ in folder.late[window].stale_locations}
    assert stale.keys() == windows | beside | {name for name, _ in folder.cleanup.stale}
    for name in windows | beside:
        assert (by_name[name].generation, by_name[name].protected_by) == (stale[name], "")
    left = folder.left(LateAction.DROP)
    assert set(made.cleanup.late) == {*((name, by_name[name].generation) for name in loaded), *left}
    claimed = {(name, 2) for name in loaded if folder.is_claimed(name)}
    assert set(made.cleanup.fired) == {*folder.cleanup.fired, *claimed, *left}
    assert made.cleanup.gone == folder.cleanup.gone


@given(folders())
def test_windows_wait_for_a_decision_in_the_task_folder_and_no_other_object_does(folder):
    made = folder.plan()
    by_name = {each.name: each for each in folder.objects}
    twins = {
        each.object.name
        for each in classify(folder.objects, "p", NOW).windows
        if each.sentinel and each.object.created > each.sentinel.created and REPLAY not in each.object.metadata
    }
    judged = {
        name
        for name, verdict in folder.late.items()
        if verdict.action is LateAction.UNDECIDED and not by_name[name].protected_by
    }
    judged |= {name for name, _ in folder.left(LateAction.UNDECIDED)}
    dropped = {each.name for each in folder.cleanup.quarantines}
    assert {each.name for each in made.cleanup.quarantines} == twins | judged | dropped
    for each in made.cleanup.quarantines:
        assert each.undecided
        assert each.claimed == (each.name in dropped or folder.is_claimed(each.name))


@given(folders())
def test_shares_are_the_plans_events_and_travel_as_json(folder):
    made = folder.plan()
    there = [Share.from_dict(json.loads(json.dumps(share.to_dict()))) for share in made.shares()]
    assert all(share.events for share in there)
    for lane in Lane:
        events = [event for share in there if share.lane is lane for event in share.events]
        assert [event.key for event in events] == [event.key for event in made.events[lane]]
        assert events == list(made.events[lane])
    assert {share.planned for share in there} <= {made.now}


@given(folders())
def test_a_plans_report_accounts_for_everything_but_its_events(folder):
    made = folder.plan()
    report = Report.from_plan(made)
    left = report.listed - report.outcomes.total()
    assert left == len(dispatched(made)) + len(made.cleanup.quarantines)
