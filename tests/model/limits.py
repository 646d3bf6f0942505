"""Open firings under a limit: what is fired and not seen yet counts, by intents that others see.

A window's firing is a claim and a copy here; what may go wrong between them is in :mod:`windows`.
"""

from typing import NamedTuple

from kernel import Step, put

GONE = 2
IDLE = ("idle", 0, frozenset())
WAITS, CLAIMED, COPIED, TRACED, RUNNING, OVER = "waits", "claimed", "copied", "traced", "running", "over"
NEXT = {
    COPIED: (TRACED, "writes the trace of load"),
    TRACED: (RUNNING, "submits load"),
    RUNNING: (OVER, "is through with load"),
}


class World(NamedTuple):
    """What there is.

    :param windows: by window, how far it is.
    :param owners: by window, who claimed it; -1 for nobody.
    :param intents: of each its owner, its window, and the dispatchers that looked before it was written and still go by
        that look. It is not deleted as long as there is one: a look is too old to go by before such an intent is old
        enough to be deleted.
    :param limit: how many loads may run at once.
    """

    windows: tuple
    owners: tuple
    intents: frozenset
    limit: int
    dispatchers: tuple
    deaths: int


class Limits:
    """The model.

    :param windows: how many are due.
    :param limit: how many loads may run at once.
    :param lowered: what the limit is set to while dispatchers run.
    :param stopped: whether a dispatcher may be taken for dead that is only stopped: no dispatcher can help it.
    :param ages: whether a look may get too old to go by.
    :param without: guards that are taken out: ``look again`` (at intents, after one's own is written), ``younger`` (an
        intent may be deleted as soon as its load is seen), ``count again`` (whose look is too old counts once more),
        ``unclaimed`` (what was never claimed stops to count),
        ``open`` (what was fired counts until its load is seen), ``listed`` (a load that was submitted after the folder
        was listed counts by its firing).
    """

    def __init__(self, windows=2, limit=1, lowered=0, deaths=1, stopped=False, ages=True, without=()):
        self.number, self.limit, self.lowered = windows, limit, lowered
        self.deaths, self.stopped, self.ages, self.without = deaths, stopped, ages, frozenset(without)

    def start(self):
        return World((WAITS,) * self.number, (-1,) * self.number, frozenset(), self.limit, (IDLE, IDLE), self.deaths)

    def knows(self, w, which):
        return w.dispatchers[which]

    def canonical(self, w):
        return w, False

    def settled(self, w):
        return set(w.windows) == {OVER} and not w.intents

    def wrong(self, w):
        active = sum(each in NEXT for each in w.windows)
        if active > max(w.limit, self.limit):
            return f"{active} loads at once, and the limit is {w.limit}"
        if len(w.intents) > self.number + len(w.dispatchers) + self.deaths:
            return f"{len(w.intents)} intents for {self.number} windows"
        return ""

    def steps(self, w):
        for window, state in enumerate(w.windows):
            if state in NEXT:
                then, what = NEXT[state]
                yield Step("BqTail", f"{what} {window}", "", w._replace(windows=put(w.windows, window, then)))
        if self.lowered and w.limit != self.lowered:
            yield Step("fate", "the limit is lowered", "", w._replace(limit=self.lowered), hoped=False)
        for which, me in enumerate(w.dispatchers):
            yield from getattr(self, "_" + me[0].replace(" ", "_"))(w, which, me)
            if w.deaths and me[0] != "idle":
                yield self._die(w, which)

    def _die(self, w, which):
        owners = tuple(GONE if owner == which else owner for owner in w.owners)
        intents = frozenset((GONE if owner == which else owner, *more) for owner, *more in w.intents)
        dead = self._at(w._replace(owners=owners, intents=intents, deaths=w.deaths - 1), which, *IDLE)
        return Step("fate", f"D{which} dies", "", dead, hoped=False)

    def _at(self, w, which, at, window=0, seen=frozenset()):
        intents = w.intents
        if at in ("idle", "claim", "aged"):  # its plan is over, was found to be good, or is too old to go by
            intents = frozenset((owner, number, planning - {which}) for owner, number, planning in intents)
        me = IDLE if at == "idle" else (at, window, seen)
        return w._replace(dispatchers=put(w.dispatchers, which, me), intents=intents)

    def _look(self, which, what, result, state):
        return Step(f"D{which}", what, result, state)

    def _open(self, w, intents):
        """The windows that intents name, one set for each of what time makes of those that were never claimed."""
        certain = {window for _, window, _ in intents}
        if "unclaimed" in self.without:
            return {frozenset(certain)}
        old = {
            window
            for window in certain
            if w.windows[window] == WAITS
            and all(owner == GONE or self.stopped for owner, number, _ in intents if number == window)
        }
        return {frozenset(certain), frozenset(certain - old)}

    def _idle(self, w, which, me):
        if "open" in self.without:
            yield self._look(which, "list", "", self._at(w, which, "listed", 0, self._seen(w, frozenset())))
        elif WAITS in w.windows or CLAIMED in w.windows:
            for counted in self._open(w, w.intents):
                after = self._at(w, which, "listed", 0, self._seen(w, counted))
                yield self._look(which, "list", f"{sorted(counted)} are open", after)
        for intent in w.intents:
            if w.windows[intent[1]] in (RUNNING, OVER) and not self._is_kept(w, intent):
                after = w._replace(intents=w.intents - {intent})
                yield self._look(which, "delete intent", f"load {intent[1]} is seen", after)

    def _is_kept(self, w, intent):
        """Return whether an intent is younger than a look by which a dispatcher may still go."""
        if "younger" in self.without:
            return False
        if "count again" in self.without:
            return any(w.dispatchers[which][0] != "announced" for which in intent[2])
        return bool(intent[2])

    def _seen(self, w, counted):
        """Return what a list of the folder shows: open firings, traces, and which loads were submitted before."""
        traces = frozenset(window for window, state in enumerate(w.windows) if state in (TRACED, RUNNING))
        submitted = frozenset(window for window, state in enumerate(w.windows) if state in (RUNNING, OVER))
        return (counted, traces, submitted)

    def _listed(self, w, which, me, then="planning"):
        """Jobs are looked at after traces and intents. Of jobs that are not done only those of listed traces count.

        A job that is seen closes its firing, unless it may have been submitted after the list.
        """
        counted, traces, submitted = me[2]
        seen = {window for window, state in enumerate(w.windows) if state in (RUNNING, OVER)}
        done = {window for window, state in enumerate(w.windows) if state == OVER}
        closed = seen if "listed" in self.without else seen & (submitted | traces | done)
        active = (counted - closed) | (traces - done)
        yield self._look(which, "list jobs", "", self._at(w, which, then, me[1], active))

    def _planning(self, w, which, me):
        free = False
        for window, state in enumerate(w.windows):
            if state == WAITS and len(me[2] - {window}) < w.limit:
                free = True
                yield self._look(which, "plan", f"{window}", self._at(w, which, "planned", window, me[2]))
            if state == CLAIMED and w.owners[window] == GONE:
                free = True
                yield self._look(which, "take over", f"{window}", self._take(w, which, window))
        if not free:
            yield self._look(which, "plan", "none", self._at(w, which, "idle"))

    def _take(self, w, which, window):
        return self._at(w._replace(owners=put(w.owners, window, which)), which, "copy", window)

    def _planned(self, w, which, me):
        planning = frozenset(
            number
            for number, (at, *_) in enumerate(w.dispatchers)
            if number != which and at in ("listed", "planning", "planned", "announced", "listed anew")
        )
        after = w._replace(intents=w.intents | {(which, me[1], planning)})
        then = "claim" if "look again" in self.without else "announced"
        yield self._look(which, "write intent", "ok", self._at(after, which, then, me[1], me[2]))

    def _announced(self, w, which, me):
        _, window, seen = me
        if self.ages:
            aged = self._at(w, which, "aged", window)
            yield Step("fate", f"the look of D{which} gets old", "", aged, hoped=False)
        new = frozenset(each for each in w.intents if each[:2] != (which, window) and which in each[2])
        # What was open or running at the look is counted as it was then; what came since is in a new intent.
        for counted in self._open(w, new):
            if len((counted | seen) - {window}) < w.limit:
                yield self._look(which, "list intents", "free", self._at(w, which, "claim", window))
            else:
                yield self._look(which, "list intents", "full", self._at(w, which, "withdraw", window))

    def _aged(self, w, which, me):
        """Count again. The dispatcher's own intent is among those that it reads, and takes no slot from it."""
        for counted in self._open(w, w.intents):
            after = self._at(w, which, "listed anew", me[1], self._seen(w, counted))
            yield self._look(which, "list again", f"{sorted(counted)} are open", after)

    def _listed_anew(self, w, which, me):
        yield from self._listed(w, which, me, then="announced")

    def _withdraw(self, w, which, me):
        intents = frozenset(each for each in w.intents if each[:2] != (which, me[1]))
        yield self._look(which, "delete intent", "ok", self._at(w._replace(intents=intents), which, "idle"))

    def _claim(self, w, which, me):
        window = me[1]
        if w.windows[window] != WAITS:
            yield self._look(which, "claim", "refused", self._at(w, which, "idle"))
            return
        after = w._replace(windows=put(w.windows, window, CLAIMED), owners=put(w.owners, window, which))
        yield self._look(which, "claim", "ok", self._at(after, which, "copy", window))

    def _copy(self, w, which, me):
        window = me[1]
        if w.windows[window] == CLAIMED and w.owners[window] == which:
            after = w._replace(windows=put(w.windows, window, COPIED))
            yield self._look(which, "copy", "ok", self._at(after, which, "idle"))
        else:
            yield self._look(which, "copy", "refused", self._at(w, which, "idle"))
