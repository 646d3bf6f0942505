"""Traces: intents, copies, deletes, and doubts that are settled, for one name that BqTail writes once or twice.

A generation matters only as the present one or not, since none comes twice; so whatever names a former one is forgotten
here, unless a guard that makes it harmless is taken out.
"""

from typing import NamedTuple

from kernel import Step, put

GONE = 2
"""The owner of what was written by a dispatcher that is no more."""

IDLE = ("idle", 0, 0, False, False)
MOVING = {"ready", "refused", "there", "doubt", "fenced", "half", "aside", "copied", "through", "open"}
"""Steps at which a dispatcher has an intent, which it renews every ten seconds."""


class World(NamedTuple):
    """What there is.

    :param trace: ``()``, or its number, its content, and whether it was given a new generation to settle a doubt.
    :param target: number of the trace whose copy lies at the usual target; 0 for none.
    :param others: numbers of traces whose copies lie beside it.
    :param kept: numbers of traces whose copies were consumed and can still be seen.
    :param consumed: numbers of the traces that BqTail has consumed, by a copy of theirs or of their content.
    :param landed: by trace, how often a copy of it has come to lie in the trigger bucket.
    :param doubted: by trace, whether it was delivered again although nobody could say if it had been before.
    :param aside: numbers of the traces that were set aside.
    :param lost: whether a trace, or a copy that was not consumed, has gone without a delivery.
    :param written: how many traces BqTail has written.
    :param intents: owners of intents that name the trace as it is now, and whether each is the present one.
    :param late: calls on their way whose senders no longer wait for them.
    :param dispatchers: by dispatcher where it is, whether what it knows is the trace as it is now, the number of the
        trace, whether it is in doubt, and whether it goes to the other target.
    """

    trace: tuple
    target: int
    others: frozenset
    kept: frozenset
    consumed: frozenset
    landed: tuple
    doubted: tuple
    aside: frozenset
    lost: bool
    written: int
    intents: frozenset
    late: frozenset
    dispatchers: tuple
    deaths: int
    losses: int
    denials: int


class Traces:
    """The model.

    :param contents: what BqTail writes, one after the other, under the one name.
    :param keeps: whether the trigger bucket keeps what is deleted.
    :param on_doubt: ``deliver`` or ``quarantine``.
    :param without: guards that are taken out: ``source`` and ``target`` (preconditions of the copy), ``fence``,
        ``intent``, ``look after`` (the intents of others are looked at before one's own is written), ``versions``,
        ``younger`` (a copy from before the trace was written is taken for its), ``order`` (of looks at versions),
        ``generation`` (of a delete), ``proof`` (a refused copy is taken for one that was made), ``denied delete`` and
        ``denied fence`` (one that the service denies is taken for somebody else's).
    :param denials: how many calls the service denies whose preconditions hold.
    """

    def __init__(self, contents="a", keeps=True, on_doubt="deliver", deaths=1, losses=1, denials=0, without=()):
        self.contents, self.keeps, self.on_doubt = contents, keeps, on_doubt
        self.deaths, self.losses, self.denials, self.without = deaths, losses, denials, frozenset(without)

    def start(self):
        none = (0,) * len(self.contents)
        return World(
            trace=(),
            target=0,
            others=frozenset(),
            kept=frozenset(),
            consumed=frozenset(),
            landed=none,
            doubted=none,
            aside=frozenset(),
            lost=False,
            written=0,
            intents=frozenset(),
            late=frozenset(),
            dispatchers=(IDLE, IDLE),
            deaths=self.deaths,
            losses=self.losses,
            denials=self.denials,
        )

    def knows(self, w, which):
        return w.dispatchers[which]

    def canonical(self, w):
        one, other = w.dispatchers
        if one <= other:
            return w, False
        turned = (1, 0, GONE)
        intents = frozenset((turned[owner], now) for owner, now in w.intents)
        late = frozenset((call[0], turned[call[1]], *call[2:]) for call in w.late)
        return w._replace(dispatchers=(other, one), intents=intents, late=late), True

    def settled(self, w):
        return (
            w.written >= 1
            and not (w.trace or w.target or w.others)
            and all(each[0] == "idle" for each in w.dispatchers)
        )

    def wrong(self, w):
        if w.lost:
            return "a trace is gone and was never delivered"
        for times, doubted in zip(w.landed, w.doubted, strict=True):
            if times > 1 + (doubted if not self.keeps and self.on_doubt == "deliver" else 0):
                return "a trace was delivered twice"
        return ""

    def steps(self, w):
        yield from self._bqtail(w)
        for call in w.late:
            done, told = self._do(w._replace(late=w.late - {call}), call)
            if told == "ok":
                yield Step("late", call[0], "", done, hoped=False)
        for which, (at, *_) in enumerate(w.dispatchers):
            yield from getattr(self, "_" + at.replace(" ", "_"))(w, which, w.dispatchers[which])
            if at in MOVING and "intent" not in self.without:
                # Its precondition lets it change nothing but for how long others think that its dispatcher lives, and
                # here that is anybody's choice at any time.
                yield self._look(w, which, "renew intent", "", at)
            if w.deaths and at != "idle":
                yield from self._die(w, which)

    # BqTail

    def _bqtail(self, w):
        if w.written < len(self.contents):
            number = w.written + 1
            trace = (number, self.contents[w.written], False)
            yield Step(
                "BqTail",
                f"writes trace {number}",
                "",
                self._changed(w, trace)._replace(written=number),
                hoped=not w.written,
            )
        if w.target:
            yield Step("BqTail", "consumes the copy", "", self._kept(w, w.target)._replace(target=0))
        for number in w.others:
            yield Step("BqTail", "consumes the other", "", self._kept(w, number)._replace(others=w.others - {number}))

    def _kept(self, w, number):
        # What is consumed now was written before, and so was whatever else of the same content has been written yet.
        same = {each for each in range(1, w.written + 1) if self.contents[each - 1] == self.contents[number - 1]}
        return w._replace(kept=w.kept | {number} if self.keeps else w.kept, consumed=w.consumed | same)

    # What calls do

    def _changed(self, w, trace):
        """Give the trace another generation, or take it away: whatever names the former one names nothing now."""
        dispatchers = tuple(put(each, 1, 0) if each[1] else each for each in w.dispatchers)
        late = frozenset((*call[:2], 0, *call[3:]) for call in w.late if call[0] in self._blind())
        return w._replace(trace=trace, intents=frozenset(), late=late, dispatchers=dispatchers)

    def _blind(self):
        """The late calls that matter although they name a former generation."""
        return {"copy"} & ({"copy"} if "source" in self.without else set())

    def _do(self, w, call):
        """Carry out a call: the world after it, and what is answered.

        :param call: its name, its sender, whether it names the present generation, and more.
        """
        name, sender, present, *more = call
        return getattr(self, "_do_" + name.replace(" ", "_"))(w, sender, present, *more)

    def _do_write_intent(self, w, sender, present):
        if not present:
            return w, "ok"
        return w._replace(intents=w.intents | {(sender, False)}), "ok"

    def _do_copy(self, w, sender, present, number, other):
        if not w.trace or not (present or "source" in self.without):
            return w, "refused"
        number, content, _ = w.trace
        landed = put(w.landed, number - 1, min(w.landed[number - 1] + 1, 3))
        if other:
            return w._replace(others=w.others | {number}, landed=landed), "ok"
        lost = w.lost
        if w.target:
            if "target" not in self.without:
                return w, "refused"
            lost = lost or self.contents[w.target - 1] != content
        return w._replace(target=number, landed=landed, lost=lost), "ok"

    def _do_fence(self, w, sender, present):
        if not w.trace or not present:
            return w, "refused"
        return self._changed(w, (*w.trace[:2], True)), "ok"

    def _do_delete(self, w, sender, present):
        if not w.trace or not (present or "generation" in self.without):
            return w, "refused"
        number, content, _ = w.trace
        live = {w.target, *w.others} - {0}
        proven = number in w.aside | w.consumed or any(self.contents[each - 1] == content for each in live)
        return self._changed(w, ())._replace(lost=w.lost or not proven), "ok"

    def _do_set_aside(self, w, sender, present):
        if not w.trace or not present:
            return w, "refused"
        return w._replace(aside=w.aside | {w.trace[0]}), "ok"

    def _call(self, w, which, call, ok, refused, lost, denied):
        """A call of a dispatcher: its answer comes, or is lost, and then it may be carried out later, or never.

        :param ok: where the dispatcher goes on; ``refused``, ``lost`` and ``denied`` likewise.
        """
        yield from self._denied(w, which, call[0], denied)
        after, result = self._do(w, call)
        yield Step(f"D{which}", call[0], result, self._at(after, which, ok if result == "ok" else refused))
        if w.losses:
            late = w.late | {call} if call[2] or call[0] in self._blind() else w.late
            gone = w._replace(late=late, losses=w.losses - 1)
            yield Step(f"D{which}", call[0], "lost", self._at(gone, which, lost), hoped=False)

    def _denied(self, w, which, what, at):
        """A call that the service denies, now, whatever its preconditions."""
        if w.denials:
            denied = self._at(w._replace(denials=w.denials - 1), which, at)
            yield Step(f"D{which}", what, "denied", denied, hoped=False)

    def _look(self, w, which, what, result, at, **more):
        """A call that only reads."""
        return Step(f"D{which}", what, result, self._at(w, which, at, **more))

    def _at(self, w, which, at, doubt=None, other=None, present=None):
        if at == "idle":
            return w._replace(dispatchers=put(w.dispatchers, which, IDLE))
        _, now, number, doubted, to = w.dispatchers[which]
        me = (
            at,
            now if present is None else present,
            number,
            doubted if doubt is None else doubt,
            to if other is None else other,
        )
        return w._replace(dispatchers=put(w.dispatchers, which, me))

    def _die(self, w, which):
        at, present, number, _, other = w.dispatchers[which]
        calls = {
            "planned": ("write intent", GONE, present),
            "ready": ("copy", GONE, present, number, other),
            "doubt": ("fence", GONE, present),
            "copied": ("delete", GONE, present),
        }
        intents = frozenset((GONE, False) if owner == which else (owner, now) for owner, now in w.intents)
        late = frozenset((call[0], GONE if call[1] == which else call[1], *call[2:]) for call in w.late)
        dead = self._at(w, which, "idle")._replace(intents=intents, late=late, deaths=w.deaths - 1)
        yield Step("fate", f"D{which} dies", "", dead, hoped=False)
        call = calls.get(at)
        if call and (call[2] or call[0] in self._blind()):
            sent = dead._replace(late=dead.late | {call})
            yield Step("fate", f"D{which} dies, its {call[0]} is on its way", "", sent, hoped=False)

    # Where a dispatcher is, and what it does next

    def _idle(self, w, which, me):
        if w.trace:
            number, _, fenced = w.trace
            at = "ready" if "intent" in self.without else "looked" if "look after" in self.without else "planned"
            doubt = fenced and at != "ready"
            after = w._replace(dispatchers=put(w.dispatchers, which, (at, 1, number, doubt, False)))
            yield Step(f"D{which}", "list", "trace", after)

    def _looked(self, w, which, me):
        """Without the guard: others' intents are looked at, and only then one's own is written."""
        yield from self._announced(w, which, me, "planned")

    def _planned(self, w, which, me):
        present = me[1]
        intents = w.intents | {(which, True)} if present else w.intents
        at = "ready" if "look after" in self.without else "announced"
        if at == "ready" and me[3]:
            at = "doubt"
        yield self._look(w._replace(intents=intents), which, "write intent", "ok", at)
        yield from self._denied(w, which, "write intent", "idle")
        if w.losses:
            late = w.late | {("write intent", which, present)} if present else w.late
            gone = w._replace(late=late, losses=w.losses - 1)
            yield Step(f"D{which}", "write intent", "lost", self._at(gone, which, "idle"), hoped=False)

    def _announced(self, w, which, me, then=""):
        # Who wrote an intent may be moving, or is gone and it is old: which of both, only time tells.
        others = {(owner, now) for owner, now in w.intents if not (owner == which and now)}
        if any(owner != which for owner, _ in others):
            yield self._look(w, which, "list intents", "held", "idle" if then else "through")
        doubt = me[3] or bool(others)
        yield self._look(w, which, "list intents", "free", then or ("doubt" if doubt else "ready"), doubt=doubt)

    def _ready(self, w, which, me):
        _, present, number, _, other = me
        lost = "ready" if "intent" in self.without else "doubt"
        refused = "copied" if "proof" in self.without else "refused"
        yield from self._call(w, which, ("copy", which, present, number, other), "copied", refused, lost, "through")

    def _refused(self, w, which, me):
        """Look at both ends: first the source."""
        present = bool(w.trace and me[1])
        yield self._look(w, which, "look at trace", "there" if present else "gone", "there" if present else "through")

    def _there(self, w, which, me):
        """And then the target."""
        _, _, number, _, other = me
        lying = number in w.others and number if other else w.target
        content = self.contents[number - 1]
        if not lying:
            yield self._look(w, which, "look at target", "gone", "through")
        elif self.contents[lying - 1] == content:
            yield self._look(w, which, "look at target", "equal", "copied")
        elif not other:
            yield self._look(w, which, "look at target", "another", "ready", other=True)

    def _doubt(self, w, which, me):
        if "fence" in self.without:
            yield self._look(w, which, "go on", "", "fenced")
            return
        yield from self._denied(w, which, "fence", "through" if "denied fence" in self.without else "open")
        done, result = self._do(w, ("fence", which, me[1]))
        done = self._at(done, which, "fenced", present=1) if result == "ok" else self._at(done, which, "through")
        yield Step(f"D{which}", "fence", result, done)
        if w.losses:
            # It looks who has done it; what is on its way then can come at any time, and is seen or not.
            if me[1]:
                seen = self._do(w, ("fence", which, 1))[0]._replace(losses=w.losses - 1)
                yield Step(f"D{which}", "fence", "lost", self._at(seen, which, "fenced", present=1), hoped=False)
            late = w.late | {("fence", which, 1)} if me[1] else w.late
            gone = w._replace(late=late, losses=w.losses - 1)
            yield Step(f"D{which}", "fence", "lost", self._at(gone, which, "open"), hoped=False)

    def _fenced(self, w, which, me):
        if "versions" in self.without:
            yield self._look(w, which, "go on", "", "ready", doubt=False)
            return
        first = self._of_it(w, me, w.kept if "order" in self.without else {w.target, *w.others})
        what = "list deleted versions" if "order" in self.without else "list versions"
        yield self._look(w, which, what, "found" if first else "none", "copied" if first else "half")

    def _half(self, w, which, me):
        second = self._of_it(w, me, {w.target, *w.others} if "order" in self.without else w.kept)
        what = "list versions" if "order" in self.without else "list deleted versions"
        if second:
            yield self._look(w, which, what, "found", "copied")
        elif self.keeps:
            yield self._look(w, which, what, "none", "ready", doubt=False)
        elif self.on_doubt == "deliver":
            doubted = put(w.doubted, me[2] - 1, min(w.doubted[me[2] - 1] + 1, 2))
            yield self._look(w._replace(doubted=doubted), which, what, "none", "ready", doubt=False)
        else:
            yield self._look(w, which, what, "none", "aside")

    def _of_it(self, w, me, numbers):
        """The copies of this trace, or of one written later: none from before it was written says anything of it."""
        number = me[2]
        return [
            each
            for each in numbers
            if each
            and self.contents[each - 1] == self.contents[number - 1]
            and (each >= number or "younger" in self.without)
        ]

    def _aside(self, w, which, me):
        yield from self._call(w, which, ("set aside", which, me[1]), "copied", "through", "through", "through")

    def _copied(self, w, which, me):
        denied = "through" if "denied delete" in self.without else "open"
        yield from self._call(w, which, ("delete", which, me[1]), "through", "through", "open", denied)

    def _through(self, w, which, me):
        intents = w.intents - {(which, True)}
        yield self._look(w._replace(intents=intents), which, "delete intent", "ok", "idle")

    def _open(self, w, which, me):
        """What is in doubt stays written down, by the intent that is there; it is of the past from now on."""
        mine = {(which, True)} & w.intents
        intents = w.intents - mine | ({(which, False)} if mine else set())
        yield self._look(w._replace(intents=intents), which, "leave intent", "", "idle")
