"""Intents that are completed: one is deleted, or another object says so, and both go later on."""

from typing import NamedTuple

from kernel import Step, put

IDLE = ("idle", 0, ())


class World(NamedTuple):
    """What there is.

    :param intents: numbers of the intents that lie there.
    :param done: numbers of those that an object says to be completed.
    :param completed: numbers of the intents whose dispatcher has come to its end.
    :param doubted: whether a look took a completed intent for one of a dispatcher that did not.
    :param written: how many were written.
    """

    intents: frozenset
    done: frozenset
    completed: frozenset
    doubted: bool
    written: int
    dispatchers: tuple
    deaths: int


class Completed:
    """The model.

    :param intents: how many are written.
    :param without: ``order``: the object that says so is deleted before its intent.
    """

    def __init__(self, intents=3, deaths=2, without=()):
        self.number, self.deaths, self.without = intents, deaths, frozenset(without)

    def start(self):
        nothing = frozenset()
        return World(nothing, nothing, nothing, False, 0, (IDLE, IDLE), self.deaths)

    def knows(self, w, which):
        return w.dispatchers[which]

    def canonical(self, w):
        one, other = w.dispatchers
        return (w, False) if one <= other else (w._replace(dispatchers=(other, one)), True)

    def settled(self, w):
        return not w.intents and not w.done

    def wrong(self, w):
        if w.doubted:
            return "a completed intent casts doubt"
        most = len(w.dispatchers) + self.deaths + self.number
        return "too many objects" if len(w.intents) + len(w.done) > most + self.number else ""

    def _at(self, w, which, at, number=0, seen=()):
        return w._replace(dispatchers=put(w.dispatchers, which, (at, number, seen)))

    def steps(self, w):
        for which, (at, number, seen) in enumerate(w.dispatchers):
            who = f"D{which}"
            if at == "idle":
                if w.written < self.number:
                    wrote = w._replace(intents=w.intents | {w.written + 1}, written=w.written + 1)
                    yield Step(who, "write intent", "ok", self._at(wrote, which, "moving", w.written + 1), hoped=False)
                yield from self._looks(w, which)
            elif at == "moving":
                over = w._replace(completed=w.completed | {number})
                deleted = over._replace(intents=w.intents - {number})
                yield Step(who, "delete intent", "ok", self._at(deleted, which, *IDLE))
                noted = over._replace(done=w.done | {number})
                yield Step(who, "write done", "ok", self._at(noted, which, *IDLE))
            else:
                kind, *then = seen
                left = w._replace(**{kind: getattr(w, kind) - {number}})
                after = self._at(left, which, "deleting", number, tuple(then)) if then else self._at(left, which, *IDLE)
                yield Step(who, f"delete {kind}", f"{number}", after)
            if at != "idle" and w.deaths:
                dead = self._at(w, which, *IDLE)._replace(deaths=w.deaths - 1)
                yield Step("fate", f"{who} dies", "", dead, hoped=False)

    def _looks(self, w, which):
        """A look at one intent: those that are not completed are in doubt, once they are old."""
        moving = {number for at, number, _ in w.dispatchers if at == "moving"}
        for number in w.intents | w.done:
            there, noted = number in w.intents, number in w.done
            if there and not noted:
                if number in moving:
                    continue
                # The delete that says that it is completed may not have come; another object was never needed then.
                doubted = w.doubted or number in w.completed
                after = self._at(w._replace(doubted=doubted), which, "deleting", number, ("intents",))
                yield Step(f"D{which}", "list", f"{number} is old, and its traces are gone", after)
                continue
            if "order" in self.without:
                parts = ("done", "intents") if there else ("done",)
            else:
                parts = ("intents",) if there else ("done",)
            yield Step(f"D{which}", "list", f"{number}", self._at(w, which, "deleting", number, parts))
