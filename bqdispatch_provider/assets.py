"""Assets for scheduling: one for each BigQuery table, with an event for each dispatched job that has written it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from bqdispatch_provider.compat import conf, emitted, make_known, triggering_events
from bqdispatch_provider.core.targets import shortened
from bqdispatch_provider.names import TableName, TraceName, in_one_line

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.core.report import Report

log = logging.getLogger(__name__)

_EVENTS_PER_SECOND = 100
"""Events that Airflow certainly writes in a second. One took 2.5 ms on two cores."""

_MAX_URI_CHARS = 1500
"""Airflow's database columns are limited."""

_Event = tuple[str, dict[str, Any]]
"""The URI of an asset, and the extra of its event."""


def table_asset(table: str) -> Asset:
    """Return the asset of a BigQuery table, for the schedule of a DAG that starts when BqTail has loaded the table.

    On Airflow 2 it is a dataset.

    :param table: ``project.dataset.table``, or with a colon after the project. A ``$partition`` is ignored.
    :raises ValueError: if this names no table or no project.
    """
    name = TableName.parse(table)
    if name.project is None:
        raise ValueError(f"{table!r} names no project; expected project.dataset.table")
    return Asset(_uri(name))


def loaded(context: Context, table: str) -> list[dict[str, Any]]:
    """Return the jobs that have started a run by a table's asset.

    :param context: the running task's.
    :param table: as :func:`table_asset` takes it.
    :returns: the extra of each event: ``event_id``, ``step``, ``action``, ``job_id``, ``project``, ``location`` and
        ``end_time`` of the job. ``more`` and ``document`` are added if the event stands for several jobs.
    :raises ValueError: if this names no table or no project.
    """
    return [dict(event.extra) for event in triggering_events(context, table_asset(table))]


def with_alias(outlets: Sequence[Any], alias: str) -> list[Any]:
    """Return a task's outlets and an alias, which Airflow needs to accept the task's events.

    :param outlets: the task's own.
    :param alias: name of the alias. A DAG that is scheduled by it starts after events of every table.
    """
    return [*outlets, AssetAlias(alias)]


def emit(context: Context, alias: str, report: Report, config: DispatchConfig, url: str) -> None:
    """Add an asset event for each dispatched trace whose job has written a table.

    Airflow writes the events only if the task succeeds. So a retry emits what all tries have dispatched, as its merged
    report says, less what Airflow says it has written already (from 3.2 on).

    Airflow writes them while the worker waits, for ``[workers] execution_api_timeout`` (5 s) at most, or the task
    fails. So 100 events for each of these seconds are the limit. Above it, the jobs of a table share one event, with
    the extra of the last job, the number of the others as ``more``, and the report's URL as ``document``.

    :param context: the running task's.
    :param alias: name of the alias among the task's outlets.
    :param report: what was dispatched.
    :param config: the dispatcher's.
    :param url: URL of the report.
    """
    events = list(_events(report, config))
    if events and report.started is not None and _has_earlier_try(context, report.started):
        events = list(_without(emitted(context, alias, report.started) or (), events))
    limit = round(conf.getfloat("workers", "execution_api_timeout", fallback=5.0) * _EVENTS_PER_SECOND)
    if len(events) > limit:
        events = list(_one_per_table(events, url))
    if len(events) > limit:
        log.warning(
            "%d of %d tables get no asset event, since Airflow would not write more in time; raise [workers] "
            "execution_api_timeout",
            len(events) - limit,
            len(events),
        )
    if events:
        make_known(alias)
    accessor = context["outlet_events"][AssetAlias(alias)]
    for uri, extra in events[:limit]:
        accessor.add(Asset(uri), extra=extra)


def _has_earlier_try(context: Context, started: datetime) -> bool:
    """Return True if a report may contain an earlier try, or a deleted run of the same ID."""
    run: Any = context["dag_run"]
    return context["ti"].try_number > 1 or (run.start_date is not None and started < run.start_date)


def _without(known: Iterable[tuple[str, Mapping[str, Any]]], events: Iterable[_Event]) -> Iterator[_Event]:
    """Leave out the events that an earlier try has emitted.

    :param known: the earlier events. One of them may stand for all jobs of its table until then.
    """
    known = list(known)
    jobs = {(uri, extra.get("project"), extra.get("job_id")) for uri, extra in known}
    until = {uri: str(extra.get("end_time", "")) for uri, extra in known if "more" in extra}
    for uri, extra in events:
        is_known = (uri, extra["project"], extra["job_id"]) in jobs
        if not is_known and not (uri in until and extra["end_time"] <= until[uri]):
            yield uri, extra


def each_job(report: Report, config: DispatchConfig) -> Iterator[tuple[dict[str, str], TraceName, TableName | None]]:
    """Yield the jobs whose traces were dispatched, in the order of their ends.

    :param report: what was dispatched.
    :param config: the dispatcher's. It names the task folder.
    :returns: each job, the name of its trace, and the table that it has written.
    """
    for url, job in sorted(report.jobs.items(), key=lambda each: each[1].get("EndTime", "")):
        try:
            name = TraceName.parse(url.removeprefix(config.async_task_url))
            table = TableName.parse(job["Table"]) if "Table" in job else None
        except ValueError as error:  # the configuration may have changed meanwhile
            log.warning("Skipping the asset event and the lineage of %s: %s", in_one_line(url), error)
        else:
            yield job, name, table


def facts_of(job: Mapping[str, str], name: TraceName) -> dict[str, Any]:
    """Return what asset events and lineage say of a job. Airflow 2 needs a flat dict of hashable values.

    :param job: the job in the report.
    :param name: the trace's name.
    """
    return {
        "event_id": name.event_id,
        "step": name.step,
        "action": name.action,
        "job_id": job["ID"],
        "project": job["Project"],
        "location": job["Region"],
        "end_time": job.get("EndTime", ""),
    }


def _events(report: Report, config: DispatchConfig) -> Iterator[_Event]:
    """Yield an event for each trace whose job has written a table."""
    for job, name, table in each_job(report, config):
        if table is None or job.get("Error") or _is_transient(table, name):
            continue
        yield _uri(table), facts_of(job, name)


def _is_transient(table: TableName, name: TraceName) -> bool:
    """Return True if BqTail has created the table for one event only, so that no DAG can wait for it."""
    return table.table.endswith(f"_{name.event_id}")


def _one_per_table(events: Iterable[_Event], url: str) -> Iterator[_Event]:
    extras: dict[str, list[dict[str, Any]]] = {}
    for uri, extra in events:
        extras.setdefault(uri, []).append(extra)
    for uri, of_table in extras.items():
        yield uri, {**of_table[-1], "more": len(of_table) - 1, "document": url}


def _uri(table: TableName) -> str:
    """Return the URI of a table's asset.

    Names are untrusted, in any script, and may be too long. For a scheme with a registered provider, Airflow would load
    every provider in each task, which takes a second.
    """
    parts = (table.project or "", table.dataset, table.table)
    uri = "x-bqtail://" + "/".join(quote(part, safe="") for part in parts)
    return shortened(uri, _MAX_URI_CHARS)  # quoted, so a character is a byte
