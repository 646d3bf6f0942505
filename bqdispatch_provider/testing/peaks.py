"""Maximum numbers of concurrent jobs, by kind and by the groups that a dispatcher limits."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

GROUPS: Final = {"load": "jobs", "copy": "jobs", "query": "sql", "extract": "jobs"}
"""Group in which a dispatcher counts each kind of job."""


def peaks_of(spans: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    """Return the maximum numbers of concurrent jobs for each kind and each group.

    :param spans: kind, start and end of each job, in milliseconds since the epoch.
    """
    edges: dict[str, list[tuple[int, int]]] = {name: [] for name in (*GROUPS, "sql", "jobs")}
    for kind, begin, end in spans:
        for name in (kind, GROUPS[kind]):
            # At the same time an end (-1) sorts before a start (+1), so the two jobs do not overlap.
            edges[name] += [(begin, 1), (end, -1)]
    return {name: max(accumulate((step for _, step in sorted(steps)), initial=0)) for name, steps in edges.items()}
