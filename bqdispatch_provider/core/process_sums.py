"""Sums of what one process of a run has done, by which documents of the run are merged and nothing is counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.core import documents
from bqdispatch_provider.core.model import Outcome

if TYPE_CHECKING:
    from bqdispatch_provider.core.report import Report

FINAL = (Outcome.DISPATCHED, Outcome.QUARANTINED)
"""Outcomes that add up over cycles: no later cycle lists the object again."""

_ATTRIBUTES: Mapping[str, str] = {"Cycles": "cycles", "GetCount": "get_count", "ListTime": "list_ms", "Late": "late"}
"""Keys of the sums that are attributes of a report."""


def sums_of(report: Report) -> Counter[str]:
    """Return the sums of a process: of attributes, of final outcomes, and ``Dispatched <project> <counter>``.

    :param report: of the process alone.
    """
    return Counter(
        {key: getattr(report, attribute) for key, attribute in _ATTRIBUTES.items()}
        | {str(outcome): report.outcomes[outcome] for outcome in FINAL}
        | {
            f"Dispatched {project} {counter}": number
            for project, gauges in report.counts.items()
            for counter, number in gauges.get("Dispatched", {}).items()
        }
    )


def add_sums(report: Report, sums: Mapping[str, int]) -> None:
    """Add sums, or their changes, to a report."""
    for key, number in sums.items():
        if key in _ATTRIBUTES:
            setattr(report, _ATTRIBUTES[key], getattr(report, _ATTRIBUTES[key]) + number)
        elif key in FINAL:
            report.outcomes[Outcome(key)] += number
        else:
            _, project, counter = _split(key)
            report.counts[project]["Dispatched"][counter] += number


def parse_sums(value: Any) -> Counter[str]:
    """Read what :func:`sums_of` returned.

    :raises ValueError: when it is something else.
    """
    sums = documents.numbers(value)
    for key in sums:
        if key not in _ATTRIBUTES and key not in FINAL and _split(key)[0] != "Dispatched":
            raise ValueError(f"{key[:80]!r} is no sum of a process")
    return sums


def _split(key: str) -> tuple[str, str, str]:
    """Return the parts of ``Dispatched <project> <counter>``; a project is untrusted text, and may hold spaces."""
    gauge, _, rest = key.partition(" ")
    project, _, counter = rest.rpartition(" ")
    return gauge, project, counter
