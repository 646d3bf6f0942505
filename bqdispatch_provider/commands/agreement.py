"""Checks of a set-up against what it has to agree with: BqTail's configuration, other set-ups, Airflow's pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from bqdispatch_provider.commands.checks import Check, CheckResult
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.names import in_words

_COMMON_KEYS = {
    "ProjectID": "project_id",
    "AsyncTaskURL": "async_task_url",
    "TriggerBucket": "trigger_bucket",
    "PostJobPrefix": "post_job_prefix",
    "BatchPrefix": "batch_prefix",
    "JournalURL": "journal_url",
}


def check_bqtail(config: DispatchConfig, bqtail: DispatchConfig) -> Iterator[Check]:
    """Compare the keys that both configurations have.

    :param config: of the set-up, with its project filled in.
    :param bqtail: BqTail's own configuration.
    """
    theirs, where = bqtail.for_project(config.project_id), bqtail.url or ""
    for key, attribute in _COMMON_KEYS.items():
        mine, other = (str(getattr(each, attribute)) for each in (config, theirs))
        result, finding = CheckResult.OK, mine
        if key == "ProjectID" and not bqtail.project_id:
            result = CheckResult.NOT_CHECKED
            finding = f"is missing there, so BqTail takes its function's own project: see that this is {mine!r}"
        elif mine != other:
            result, finding = CheckResult.FAILED, f"is {mine!r} here and {other!r} there: give the same in both"
            if key == "JournalURL":
                result = CheckResult.WARNING
                finding += ", since BqTail's balancer reads performance.json in its own journal"
        yield Check(f"{key} of both", where, result, finding)


def check_other_set_ups(
    config: DispatchConfig, others: Mapping[str, DispatchConfig | Exception] | str
) -> Iterator[Check]:
    """Check that no other set-up of this Airflow shares events of the task folder, the journal or the quarantine.

    :param config: of the set-up.
    :param others: the configurations of Airflow's other connections by their IDs, or why one is unknown; or why all
        are.
    """
    what = "other set-ups"
    if isinstance(others, str):
        yield Check(what, "Airflow", CheckResult.NOT_CHECKED, others)
        return
    shared = False
    for conn_id, other in others.items():
        where = f"connection {conn_id}"
        if isinstance(other, Exception):
            yield Check(
                what,
                where,
                CheckResult.NOT_CHECKED,
                f"not compared, since its configuration is unknown: {in_words(other)}",
            )
        elif _overlap(config.async_task_url, other.async_task_url):
            shared = True
            finding = (
                f"has the task folder {other.async_task_url!r}, so both would dispatch the same events, each with "
                "limits, pools and a journal of its own: give each set-up a task folder of its own, none inside "
                "another's, or delete one of the connections; if this is the connection of the set-up itself, name "
                "the set-up with --setup"
            )
            yield Check(what, where, CheckResult.FAILED, finding)
        else:
            for result, finding in _shared_places(_places(config), _places(other)):
                shared = shared or result is CheckResult.FAILED
                yield Check(what, where, result, finding)
    if not shared:
        yield Check(what, "Airflow", CheckResult.OK, "no other connection is known to share events of this task folder")


def _places(config: DispatchConfig) -> dict[str, str]:
    return {"AsyncTaskURL": config.async_task_url, "JournalURL": config.journal_url, "ErrorURL": config.error_url}


def _shared_places(mine: Mapping[str, str], its: Mapping[str, str]) -> Iterator[tuple[CheckResult, str]]:
    """Yield what is wrong with the places of two set-ups whose task folders lie apart.

    :param mine: folders of this set-up, by their keys.
    :param its: of the other one.
    """
    tasks = "AsyncTaskURL"
    for (key, place), (own_key, own) in product(its.items(), mine.items()):
        pair = f"has the {key} {place!r}, and this set-up the {own_key} {own!r}"
        if (own_key == tasks and place.startswith(own)) or (key == tasks and own.startswith(place)):
            yield CheckResult.FAILED, f"{pair}: every object in a task folder is taken for an event; give each its own"
        elif {key, own_key} != {tasks, "JournalURL"} and _overlap(place, own):
            yield CheckResult.WARNING, f"{pair}: give each a folder of its own"


def _overlap(one: str, other: str) -> bool:
    """Tell whether two folders are the same, or one lies inside the other."""
    return one.startswith(other) or other.startswith(one)


def check_pools(problems: Mapping[str, str] | str) -> Iterator[Check]:
    """Check that Airflow's pools mirror the limits.

    :param problems: what is wrong with each pool, and what to do, empty when nothing is; or why that is unknown.
    """
    if isinstance(problems, str):
        yield Check("pools", "Airflow", CheckResult.NOT_CHECKED, problems)
        return
    for name, problem in problems.items():
        if problem:
            yield Check("pool", name, CheckResult.FAILED, problem)
        else:
            yield Check("pool", name, CheckResult.OK, "mirrors its limit")
