"""Planning: what must hold for every folder, limit and state, told anew from the rules and compared with the plan."""

import json
from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.model import Job, Lane, Outcome, Sentinel, Share, Snapshot, StoredObject, Tidy
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.planning import classify, limits, plan
from bqdispatch_provider.report import Report

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROJECTS = ["p", "q", "example.com:legacy"]
EDGES = [0.0, 2.9, 3.0, 3.1, 6.9, 7.1, 59.9, 60.0, 60.1, 179.9, 180.1, 3599.0, 3601.0, 86_399.0, 90_001.0, 10**7]
AGES = st.sampled_from(EDGES) | st.floats(0, 1000)
NOISE = ["a.grp", "x.win", "strange", "y.wis", "f/9.loc", "", "intents/me-000001.json", "proj:p:US/x.cnt", "\n"]


def config(sql, jobs):
    places = {"AsyncTaskURL": "gs://ops/tasks", "JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/errors"}
    return DispatchConfig.from_dict(
        {**places, "ProjectID": "p", "MaxConcurrentSQL": sql, "MaxConcurrentJobs": jobs},
    )


def stored(name, age, generation=1, **more):
    return StoredObject(name, generation, NOW - timedelta(seconds=age), **more)


@dataclass
class Folder:
    """A task folder and its jobs, with what a reader of docs/protocol.md says of each object."""

    objects: list[StoredObject]
    jobs: dict[Any, Job]
    errors: dict[str, str]
    config: DispatchConfig
    ready: dict[str, tuple[str, bool, datetime]]
    """What may go: project, whether it is SQL, and since when it waits."""
    active: Counter[tuple[str, bool]]
    """What certainly counts against a limit, per project and kind."""
    unfired: set[str]

    def plan(self, objects=None):
        listing = classify(self.objects if objects is None else objects, "p", NOW)
        return plan(Snapshot(listing, self.jobs, self.errors), self.config, NOW)


@st.composite
def folders(draw):
    limit = st.integers(0, 4)
    made = Folder([], {}, {}, config(draw(limit), draw(limit)), {}, Counter(), set())
    made.errors = dict.fromkeys(draw(st.sets(st.sampled_from(PROJECTS), max_size=1)), "403")
    held = st.sampled_from(["", "", "", "a hold"])
    for number in range(draw(st.integers(0, 12))):
        project = draw(st.sampled_from(PROJECTS))
        action = draw(st.sampled_from(["load", "reload", "copy", "query", "export", "other"]))
        at_root = project == "p" and draw(st.booleans())
        region = draw(st.sampled_from(["US", None])) if not at_root else None
        name = TraceName(None if at_root else project, region, "other.t", str(number), 1, action)
        state = draw(st.sampled_from(["PENDING", "RUNNING", "DONE", "DONE", "DONE", None]))
        age = draw(AGES)
        trace = stored(name.name, age, draw(st.integers(1, 2**62)), held=draw(held))
        made.objects.append(trace)
        is_sql = action == "query"
        if state and not (project in made.errors and draw(st.booleans())):
            (found,) = classify([trace], "p", NOW).traces
            made.jobs[found.job] = Job(region or "US", state)
            made.active[project, is_sql] += state != "DONE"
            if state == "DONE" and age >= 3 and not trace.held:
                made.ready[trace.name] = (project, is_sql, trace.created)
        else:
            made.active[project, is_sql] += project in made.errors or age < 60
    for number in range(draw(st.integers(0, 8))):
        project = draw(st.sampled_from([*PROJECTS, None]))
        ended, age = draw(AGES), draw(AGES)
        end = datetime.fromtimestamp(int(NOW.timestamp() - ended), UTC)
        name = WindowName(f"{project}:ds.t{number}" if project else f"ds.t{number}", "7", end)
        project = project or "p"
        window = stored(name.name, age, 2, held=draw(held))
        made.objects.append(window)
        mark = draw(st.sampled_from([None, None, "claimed", "fired", "fired", "twin", "go"]))
        ago = draw(AGES | st.sampled_from([100.0, 4000.0, 100_000.0]))
        if mark == "go":
            made.objects.append(stored(name.sentinel, ago, 5, size=1))
        elif mark:
            at = NOW - timedelta(seconds=ago)
            metadata = Sentinel.claim(1 if mark == "twin" else 2, "someone", at)
            if mark != "claimed":
                metadata = Sentinel.of(stored(name.sentinel, ago, 5, metadata=metadata)).fire(
                    1 if mark == "twin" else 2, 9, at
                )
            made.objects.append(stored(name.sentinel, ago, 5, metadata=metadata, size=9))
        if mark and draw(st.integers(0, 3)) == 0:
            made.objects.remove(window)
            continue
        if mark in (None, "claimed"):
            made.unfired.add(window.name)
        beside = Sentinel.of(made.objects[-1]) if mark else None
        fired = beside.fired if beside else None
        claimed = bool(beside) and not fired and NOW - beside.claimed < timedelta(minutes=3)
        fired_lately = bool(fired) and NOW - fired < timedelta(minutes=1)
        made.active[project, False] += claimed or fired_lately
        due = NOW - timedelta(seconds=7) > end
        blind = project in made.errors and made.config.max_concurrent_jobs
        if mark in (None, "claimed") and not claimed and due and age >= 3 and not blind and not window.held:
            made.ready[window.name] = (project, False, end)
    made.objects += [stored(name, draw(AGES)) for name in draw(st.sets(st.sampled_from(NOISE), max_size=4))]
    return made


def dispatched(made):
    return {event.name for events in made.events.values() for event in events}


@given(folders())
def test_every_object_has_exactly_one_outcome(folder):
    made = folder.plan()
    others = {Outcome(each): number for each, number in made.outcomes.items()}
    assert len(dispatched(made)) + len(made.tidy.quarantines) + sum(others.values()) == made.listed
    assert made.listed == len(folder.objects)
    aside = [each.name for each in made.tidy.quarantines]
    assert len({*aside, *dispatched(made)}) == len(aside) + sum(len(events) for events in made.events.values())


@given(folders())
def test_what_is_ready_is_dispatched_or_throttled_and_nothing_else(folder):
    made = folder.plan()
    assert dispatched(made) <= folder.ready.keys()
    assert made.outcomes.get(Outcome.THROTTLED, 0) == len(folder.ready) - len(dispatched(made))
    by_name = {each.name: each for each in folder.objects}
    for lane, events in made.events.items():
        for event in events:
            source = by_name[event.name]
            assert (event.generation, event.created) == (source.generation, source.created)
            project, is_sql, _ = folder.ready[event.name]
            expected = Lane.WINDOWS if event.name.endswith(".win") else Lane.SQL if is_sql else Lane.JOBS
            assert lane is expected
            assert not project or lane in limits(folder.config)


@given(folders())
def test_active_and_dispatched_pass_no_limit_and_no_more_is_throttled_than_must_be(folder):
    made = folder.plan()
    begun = Counter(folder.ready[name][:2] for name in dispatched(made))
    for (project, is_sql), number in Counter(ready[:2] for ready in folder.ready.values()).items():
        limit = folder.config.max_concurrent_sql if is_sql else folder.config.max_concurrent_jobs
        room = max(limit - folder.active[project, is_sql], 0) if limit else number
        assert begun[project, is_sql] == min(room, number), (project, is_sql, limit)


@given(folders())
def test_nothing_goes_before_what_waits_longer(folder):
    made = folder.plan()
    waiting = defaultdict(list)
    for name, (project, is_sql, since) in folder.ready.items():
        if name not in dispatched(made):
            waiting[project, is_sql].append(since)
    for name in dispatched(made):
        project, is_sql, since = folder.ready[name]
        assert all(since <= each for each in waiting[project, is_sql])
    for lane, events in made.events.items():
        since = [folder.ready[event.name][2] for event in events]
        assert since == sorted(since), lane


@given(folders(), st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(folder, random):
    def in_order(made):
        tidy = Tidy(tuple(sorted(made.tidy.quarantines, key=repr)), tuple(sorted(made.tidy.stale)))
        return replace(made, tidy=tidy)

    shuffled = folder.objects.copy()
    random.shuffle(shuffled)
    assert in_order(folder.plan(shuffled)) == in_order(folder.plan())


@given(folders())
def test_what_was_observed_stays_as_it_is(folder):
    """So several may look at it at once."""
    listing = classify(folder.objects, "p", NOW)
    snapshot = Snapshot(listing, folder.jobs, folder.errors)
    before = deepcopy(snapshot)
    assert plan(snapshot, folder.config, NOW) == plan(snapshot, folder.config, NOW)
    assert snapshot == before


@given(folders())
def test_only_fired_windows_are_deleted_and_sentinels_after_them(folder):
    made = folder.plan()
    stale = [name for name, _ in made.tidy.stale]
    assert not folder.unfired & set(stale)
    assert not set(stale) & {*dispatched(made), *(each.name for each in made.tidy.quarantines)}
    assert stale == sorted(stale, key=lambda name: name.endswith(".wis"))
    present = {each.name for each in folder.objects}
    for name in stale:
        assert not (name.endswith(".wis") and f"{name[:-4]}.win" in present)
    by_name = {each.name: each for each in folder.objects}
    for name, generation in made.tidy.stale:
        assert (by_name[name].generation, by_name[name].held) == (generation, "")
    assert Tidy.from_dict(json.loads(json.dumps(made.tidy.to_dict()))) == made.tidy


@given(folders(), st.integers(1, 5))
def test_shares_are_the_plans_events_in_small_pieces_and_travel_as_json(folder, size):
    made = folder.plan()
    shares = made.shares(limits(folder.config), size)
    there = [Share.from_dict(json.loads(json.dumps(share.to_dict()))) for share in shares]
    assert all(0 < len(share.events) <= size for share in there)
    for lane in Lane:
        events = [event for share in there if share.lane is lane for event in share.events]
        assert [event.key for event in events] == [event.key for event in made.events[lane]]
        assert events == list(made.events[lane])
    assert {share.limit for share in there} <= set(limits(folder.config).values())
    assert {share.planned for share in there} <= {made.now}


@given(folders())
def test_a_plans_report_accounts_for_everything_but_its_events(folder):
    made = folder.plan()
    report = Report.of_plan(made)
    left = report.listed - report.outcomes.total()
    assert left == len(dispatched(made)) + len(made.tidy.quarantines)


def test_stale_windows_come_before_stale_sentinels():
    objects = []
    for dest, ago in (("ds.a", 100_000), ("ds.b", 4000)):
        at = NOW - timedelta(seconds=ago)
        name = WindowName(dest, "7", at)
        claim = Sentinel.of(stored(name.sentinel, ago, 5, metadata=Sentinel.claim(2, "someone", at)))
        objects += [stored(name.sentinel, ago, 5, metadata=claim.fire(2, 9, at)), stored(name.name, ago, 2)]
    (_, orphaned_window, *_) = objects
    objects.remove(orphaned_window)
    made = plan(Snapshot(classify(objects, "p", NOW)), config(0, 0), NOW)
    assert made.tidy.stale == ((objects[2].name, 2), (objects[0].name, 5))
