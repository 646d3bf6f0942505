"""The decisions of a plan about windows, and about abandoned ones: claimed, removed, and not fired."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from bqdispatch_provider.core import windows
from bqdispatch_provider.core.draft import Candidate, Draft, Item
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import StoredObject, Window
from bqdispatch_provider.core.model import BATCH_JOBS, Lane, Outcome, Reason
from bqdispatch_provider.core.named_events import project_of
from bqdispatch_provider.core.targets import REPLAYED
from bqdispatch_provider.core.traces import MIN_AGE
from bqdispatch_provider.core.windows import Firing, Firings, LateAction, OpenFiring, Verdict, WindowState
from bqdispatch_provider.names import WindowName


def plan_window(draft: Draft, window: Window) -> None:
    """Decide on one window; the draft takes the decision."""
    stored, now = window.object, draft.now
    item = Item(window.name, stored.name, window.name.end, window.project, BATCH_JOBS, stored.protected_by)
    firings = draft.snapshot.firings.get(stored.name, {})
    state = windows.state_of(window, firings, now)
    until_due, until_old_enough = windows.time_until_due(window.name, now), MIN_AGE - (now - stored.created)
    if state is WindowState.COMING_BACK:
        draft.pend_coming_back(item, stored)
    elif state is WindowState.FIRED_BY_GO and window.sentinel is not None:
        _plan_fired_by_go(draft, window, window.sentinel)
    elif state is WindowState.FIRED or window.key in draft.proven:
        draft.outcomes[Outcome.IGNORED] += 1
        if state is WindowState.FIRED and _is_kept_long_enough(draft, window, firings[stored.generation]):
            draft.stale.append(window.key)
    elif until_old_enough > timedelta():
        draft.outcomes[Outcome.TOO_YOUNG] += 1
        draft.due_in.append(max(until_old_enough, until_due))
    elif state is WindowState.NOT_DUE:
        draft.pend(item, Reason.NOT_DUE)
        draft.not_due.append(window.name)
        draft.due_in.append(until_due)
    else:
        draft.due_windows.append((window.key, item.since))
        _plan_due(draft, window, item, state, firings)


def _is_kept_long_enough(draft: Draft, window: Window, firing: Firing) -> bool:
    """Tell whether a fired window may be deleted.

    A window with many folders is deleted at once: beside the names of its folders it would swallow late events of new
    ones.
    """
    keep = timedelta(milliseconds=draft.config.max_trigger_delay_ms)
    old = firing.fired is not None and draft.now - firing.fired > keep
    return (old or bool(window.locations)) and not window.object.protected_by


def _plan_fired_by_go(draft: Draft, window: Window, sentinel: StoredObject) -> None:
    """Decide on a window beside a sentinel of the Go dispatcher. It was written before the copy, and says no more."""
    stored = window.object
    if stored.created <= sentinel.created:
        draft.outcomes[Outcome.IGNORED] += 1
        return
    fired = sentinel.created.isoformat(timespec="seconds")
    reason = (
        f"BqTail's own dispatcher fired a window of this name at {fired}, and nothing else is known about that; to "
        "fire this late twin could load files twice"
    )
    draft.quarantine(stored, reason, {"Sentinel": sentinel.name, "Fired": fired}, undecided=True)


def _plan_due(draft: Draft, window: Window, item: Item, state: WindowState, firings: Firings) -> None:
    stored, snapshot = window.object, draft.snapshot
    verdict: Verdict | None = None
    if _fails_as_unreadable(draft, item):
        return
    if state is WindowState.CLAIMED:
        draft.pend(item, Reason.IN_HAND, _claimed_by_another(firings[stored.generation]))
        return
    if windows.has_returned(window, firings):
        verdict = snapshot.verdicts.get(window.key)
        if verdict is None or verdict.action is not LateAction.FIRE:
            _plan_returned(draft, window, item, verdict, claimed=stored.generation in firings)
            return
    event = Event(
        *window.key,
        stored.created,
        claimed=stored.generation in firings,
        many_folders=bool(window.locations),
        replayed=REPLAYED in stored.metadata,
    )
    _fire(draft, item, event, verdict)


def _claimed_by_another(firing: Firing) -> str:
    until = firing.claimed + windows.CLAIM_TIMEOUT
    return (
        f"a dispatcher has claimed it at {firing.claimed:%H:%M:%S} UTC; if it does not fire it, another one takes it "
        f"up after {until:%H:%M:%S} UTC"
    )


def _plan_returned(draft: Draft, window: Window, item: Item, verdict: Verdict | None, *, claimed: bool) -> None:
    """Decide on a returned window that is not fired.

    :param claimed: whether a dispatcher that is gone has claimed it.
    """
    stored = window.object
    if verdict is None or verdict.action is LateAction.WAIT:
        draft.pend(item, Reason.RETURNED, verdict.reason if verdict else "")
        draft.awaited += 1
    elif stored.protected_by:
        draft.fail_protected(item)
    else:
        if verdict.action is LateAction.DROP:
            draft.stale.append(window.key)
        _give_up(draft, stored, verdict, claimed=claimed)


def _give_up(draft: Draft, which: StoredObject | Event, verdict: Verdict, *, claimed: bool) -> None:
    """Drop a returned window, or set it aside as undecided.

    The ledger records a claimed one as fired. Otherwise its claim would hold a slot of a limit, and every other window
    of its name would wait for it.
    """
    if verdict.action is LateAction.DROP:
        draft.stale += verdict.stale_locations
        draft.late.append(which.key)
        if claimed:
            draft.fired.append(which.key)
        draft.outcomes[Outcome.IGNORED] += 1
    else:
        draft.quarantine(which, verdict.reason, undecided=True, claimed=claimed)


def plan_abandoned(draft: Draft, firing: OpenFiring) -> None:
    """Decide on a window that is gone, and that its claimer has not fired; the draft takes the decision."""
    snapshot = draft.snapshot
    name = WindowName.parse(firing.window)
    item = Item(name, firing.window, name.end, project_of(name, draft.config), BATCH_JOBS)
    draft.due_windows.append((firing.key, item.since))
    verdict = snapshot.verdicts.get(firing.key)
    had_returned = bool(snapshot.firings.get(firing.window, {}).keys() - {firing.generation})
    if _fails_as_unreadable(draft, item):
        return
    if had_returned and (verdict is None or verdict.action is LateAction.WAIT):
        draft.pend(item, Reason.RETURNED, verdict.reason if verdict else "")
        draft.awaited += 1
        return
    event = Event(*firing.key, firing.since, claimed=True, many_folders=True)
    if verdict is not None and verdict.action is not LateAction.FIRE:
        _give_up(draft, event, verdict, claimed=True)
    else:
        _fire(draft, item, event, verdict)


def _fails_as_unreadable(draft: Draft, item: Item) -> bool:
    """Hold a window back whose firings, or whose content, cannot be read.

    :returns: whether it is held back.
    """
    said = draft.snapshot.unreadable_windows.get(item.path)
    if said is not None:
        draft.fail(item, Reason.REFUSED, said, f"window {item.path!r} waits: {said}")
    return said is not None


def _fire(draft: Draft, item: Item, event: Event, verdict: Verdict | None) -> None:
    """Offer a window to be fired, once it is known in which project its load will run.

    :param verdict: verdict on a window that has returned; ``None`` for others.
    """
    load = draft.snapshot.loads.get(event.key)
    if load is None and draft.config.max_concurrent_jobs:
        draft.pend(item, Reason.NEXT_CYCLE)  # the next look reads its content
        return
    if load is not None and load.project in draft.snapshot.project_errors:
        draft.fail(item, Reason.NO_ANSWER, draft.snapshot.project_errors[load.project])
        return
    event = replace(event, load=load)
    if verdict is not None:
        event = replace(event, stale_locations=verdict.stale_locations, kept_locations=verdict.kept_locations)
    draft.offer(Candidate(item, event, Lane.WINDOWS, load.project if load else item.project))
