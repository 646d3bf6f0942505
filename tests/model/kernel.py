"""Explore every state of a small model by breadth, and say how a bad one is reached.

A model is a class with these methods; states are hashable, and equal ones are explored once:

- ``start()`` returns the first state;
- ``steps(state)`` yields every :class:`Step` that can come next, each a single call or a single event;
- ``wrong(state)`` returns what must never be, in a sentence, or ``""``;
- ``settled(state)`` tells whether nothing is left to do;
- ``canonical(state)`` returns the one of those that differ in nothing that matters, and whether its two dispatchers
  have changed places;
- ``knows(state, which)`` returns what one dispatcher knows.
"""

import re
from collections import defaultdict, deque
from typing import NamedTuple

_DISPATCHER = re.compile(r"\bD([01])\b")


class Step(NamedTuple):
    """What happens next.

    :param who: a dispatcher (``D0``, ``D1``), ``BqTail``, ``late`` for a call that arrives after its sender has given
        it up, ``time``, or ``fate`` for deaths and lost answers.
    :param what: the call or event.
    :param result: what came of it, where a dispatcher is told.
    :param state: the state after it.
    :param hoped: whether it may be relied on: nobody may rely on a second event, a death or a lost answer to get out of
        a state.
    """

    who: str
    what: str
    result: str
    state: tuple
    hoped: bool = True


class Found(NamedTuple):
    """A way to a state that must not be.

    :param why: what is wrong there.
    :param steps: how it is reached, one line a step.
    """

    why: str
    steps: list[str]

    def __str__(self):
        return "\n".join([self.why, *(f"  {number:2}. {step}" for number, step in enumerate(self.steps, 1))])


class Explored(NamedTuple):
    """What came of an exploration.

    :param states: how many there are.
    :param found: the shortest way to a wrong state, or to one from which nothing leads to a settled one.
    :param automata: what one dispatcher can do next: by what it knows, each call with its result, and what it knows
        then.
    :param settled: how many states are settled.
    """

    states: int
    found: Found | None
    automata: dict
    settled: int


def explore(model, most=2_000_000):
    """Explore all states of a model, until the first wrong one.

    :param most: a bound on the states, which a model that is finite does not reach.
    :raises RuntimeError: when there are more states.
    """
    first = model.start()
    numbers = {first: 0}
    came = [(-1, None, False)]  # by state: from which, by what, and whether the dispatchers changed places then
    before = [[]]  # by state: from which it can be hoped for
    settled = []
    automata = defaultdict(set)
    queue = deque([first])
    number = -1
    while queue:
        state = queue.popleft()
        number += 1
        if why := model.wrong(state):
            return Explored(len(numbers), Found(why, _way(came, number)), automata, len(settled))
        if model.settled(state):
            settled.append(number)
        for step in model.steps(state):
            for which in range(len(state.dispatchers)):
                knew, knows = model.knows(state, which), model.knows(step.state, which)
                if step.who == f"D{which}":
                    automata[knew].add((step.what, step.result, knows))
                elif knew != knows and step.who != "fate":
                    automata[knew].add(("", "", knows))  # what others have done made something untrue
            after, swapped = model.canonical(step.state)
            known = numbers.get(after)
            if known is None:
                known = numbers[after] = len(came)
                came.append((number, step, swapped))
                before.append([])
                queue.append(after)
                if known >= most:
                    raise RuntimeError(f"more than {most} states")
            if step.hoped and known != number:
                before[known].append(number)
    stuck = _stuck(before, settled)
    found = None if stuck is None else Found("nothing leads to a settled state from here", _way(came, stuck))
    return Explored(len(numbers), found, automata, len(settled))


def _stuck(before, settled):
    """Return the first state from which none of the settled ones is reached; ``None`` if there is none."""
    reaches = bytearray(len(before))
    todo = list(settled)
    for each in todo:
        reaches[each] = 1
    while todo:
        for each in before[todo.pop()]:
            if not reaches[each]:
                reaches[each] = 1
                todo.append(each)
    stuck = reaches.find(0)
    return None if stuck < 0 else stuck


def _way(came, number):
    steps = []
    while came[number][0] >= 0:
        number, step, swapped = came[number]
        steps.append((f"{step.who}: {step.what}{f' -> {step.result}' if step.result else ''}", swapped))
    told, turned = [], False
    for text, swapped in reversed(steps):
        told.append(_DISPATCHER.sub(lambda found: f"D{1 - int(found[1])}", text) if turned else text)
        turned ^= swapped
    return told


def put(sequence, index, value):
    """Return a tuple with one item replaced."""
    return (*sequence[:index], value, *sequence[index + 1 :])
