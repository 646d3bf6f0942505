"""What one dispatcher of a model can do for one object, call by call, and whether a recorded sequence is that."""

from collections import defaultdict
from collections.abc import Callable, Iterable

Edge = tuple[str, str, tuple]
"""A call, what came of it, and what the dispatcher knows then."""


class Automaton:
    """The calls of one dispatcher, in every order in which the explored model has them.

    :param edges: what :func:`kernel.explore` found.
    :param start: what a dispatcher knows at first.
    :param shown: the calls that are compared; the others happen in between, unseen.
    :param about: tells from what a dispatcher knows whether it is about the object in question.
    """

    def __init__(
        self,
        edges: dict[tuple, set[Edge]],
        start: tuple,
        shown: Iterable[str],
        about: Callable[[tuple], bool] = lambda knows: True,
    ) -> None:
        self._start = start
        self.shown = self._shown = frozenset(shown)
        self._silent: dict[tuple, set[tuple]] = defaultdict(set)
        self._steps: dict[tuple, dict[str, set[tuple[str, tuple]]]] = defaultdict(lambda: defaultdict(set))
        for knows, ways in edges.items():
            for call, result, then in ways:
                if call in self._shown and about(knows):
                    self._steps[knows][call].add((result, then))
                else:
                    self._silent[knows].add(then)

    def accepts(self, calls: Iterable[tuple[str, str]]) -> bool:
        """Return whether a dispatcher can make these calls, in this order, with these results.

        :param calls: each call's name and ``ok``, ``refused``, ``lost`` where no answer came, or ``?`` for any. A
            call that goes again at once, since its answer was lost, counts once, with what came of it at last.
        """
        return self.first_unknown(calls) is None

    def first_unknown(self, calls: Iterable[tuple[str, str]]) -> int | None:
        """Return the position of the first call that is not one of the model's; ``None`` if all are."""
        here = self._closed({self._start})
        for position, (call, result) in enumerate(_once_each(list(calls))):
            here = self._closed(
                {
                    then
                    for knows in here
                    for told, then in self._steps[knows].get(call, ())
                    if result == "?" or told == result or told not in ("ok", "refused", "lost")
                }
            )
            if not here:
                return position
        return None

    def _closed(self, here: set[tuple]) -> set[tuple]:
        todo = list(here)
        while todo:
            for then in self._silent.get(todo.pop(), ()):
                if then not in here:
                    here.add(then)
                    todo.append(then)
        return here


def _once_each(calls: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out the tries of a call after which the same call comes again; a copy is never tried again."""
    return [
        call
        for call, after in zip(calls, [*calls, ("", "")][1:], strict=True)
        if not (call[1] == "lost" and after[0] == call[0] and call[0] != "copy")
    ]
