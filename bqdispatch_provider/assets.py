"""Data-aware scheduling: an asset for each table, and an event of it for each trace whose job went well."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from bqdispatch_provider.compat import conf, emitted, make_known, triggering_events
from bqdispatch_provider.names import TableName, TraceName

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.report import Report

log = logging.getLogger(__name__)

_A_SECOND = 100
"""Events that Airflow writes in a second, with a good margin: one took 2.5 ms on two cores."""

_LONGEST = 1500


def table_asset(table: str) -> Asset:
    """The asset of a BigQuery table, for the schedule of a DAG that starts when BqTail has loaded it.

    On Airflow 2 it is a dataset. Its URI is one that Airflow asks no provider about, which would cost each task of the
    file a second.

    :param table: ``project.dataset.table``, or with a colon after the project; a ``$partition`` does not matter.
    :raises ValueError: when this names no table, or no project.
    """
    name = TableName.parse(table)
    if name.project is None:
        raise ValueError(f"{table!r} names no project; expected project.dataset.table")
    return Asset(_uri(name))


def loaded(context: Context, table: str) -> list[dict[str, Any]]:
    """What has started a run that is scheduled by a table's asset: the extra of each event, which tells of the job.

    :param context: the running task's.
    :param table: as :func:`table_asset` takes it.
    :raises ValueError: as there.
    """
    return [dict(event.extra) for event in triggering_events(context, table_asset(table))]


def with_alias(outlets: Sequence[Any], alias: str) -> list[Any]:
    """Return a task's outlets with an alias at their end, without which Airflow does not take its events.

    :param outlets: those that the task has.
    :param alias: through which all its events go: a DAG that is scheduled by it starts whatever table it is.
    """
    return [*outlets, AssetAlias(alias)]


def emit(context: Context, alias: str, report: Report, config: DispatchConfig, url: str) -> int:
    """Note an asset event for each trace that was dispatched and whose job went well; gives how many traces that are.

    Airflow writes them down once the task succeeds, and never otherwise, so a task that is tried again emits what any
    of its tries has dispatched, as its merged report has it; less what Airflow knows of, where it can tell (3.2 on).

    It writes them while the worker waits, no longer than ``[workers] execution_api_timeout``, 5 s, and the task fails
    if they take longer. So there are 100 for each second of it at most: beyond, the traces of a table share one event,
    whose extra is the last one's, with ``more``, the number of the others, and ``document``, where all of them stand.

    :param context: the running task's, which has the alias among its outlets.
    :param alias: its name.
    :param report: what was dispatched.
    :param config: the dispatcher's, from which follow the task folder, and the project of tables that name none.
    :param url: where the report lies.
    """
    told = list(_told(report, config))
    if told and report.started is not None and _was_begun_before(context, report.started):
        told = list(_missing(told, emitted(context, alias, report.started) or ()))
    at_most = round(conf.getfloat("workers", "execution_api_timeout", fallback=5.0) * _A_SECOND)
    events = told if len(told) <= at_most else list(_by_table(told, url))
    if len(events) > at_most:
        log.warning(
            "%d tables were dispatched to, and %d of them have no asset event, since Airflow would not write more in "
            "time: raise [workers] execution_api_timeout",
            len(events),
            len(events) - at_most,
        )
    if events:
        make_known(alias)
    accessor = context["outlet_events"][AssetAlias(alias)]
    for uri, extra in events[:at_most]:
        accessor.add(Asset(uri), extra=extra)
    return len(told)


def _was_begun_before(context: Context, started: datetime) -> bool:
    """Tell whether a report may tell of an earlier try, or of a run of the same ID that somebody has deleted."""
    run: Any = context["dag_run"]
    return context["ti"].try_number > 1 or (run.start_date is not None and started < run.start_date)


def _missing(
    told: Iterable[tuple[str, dict[str, Any]]], known: Iterable[tuple[str, Mapping[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Leave out what an earlier try has emitted.

    :param known: what it has emitted; one event may stand for all of a table's until then.
    """
    known = list(known)
    jobs = {(uri, extra.get("project"), extra.get("job_id")) for uri, extra in known}
    until = {uri: str(extra.get("end_time", "")) for uri, extra in known if "more" in extra}
    for uri, extra in told:
        is_known = (uri, extra["project"], extra["job_id"]) in jobs
        if not is_known and not (uri in until and extra["end_time"] <= until[uri]):
            yield uri, extra


def each_job(report: Report, config: DispatchConfig) -> Iterator[tuple[dict[str, str], TraceName, TableName | None]]:
    """Go through the jobs whose traces were dispatched, each with the table that it has written; the last to end last.

    :param report: what was dispatched.
    :param config: from which the task folder follows.
    """
    for url, job in sorted(report.jobs.items(), key=lambda each: each[1].get("EndTime", "")):
        try:
            name = TraceName.parse(url.removeprefix(f"{config.async_task_url.rstrip('/')}/"))
            table = TableName.parse(job["Table"]) if "Table" in job else None
        except ValueError as error:  # the configuration may have changed meanwhile
            log.warning("There is no table for it: %s", error)
        else:
            yield job, name, table


def _told(report: Report, config: DispatchConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The URI of the table's asset, and the extra, of each trace whose job went well."""
    for job, name, table in each_job(report, config):
        if table is None or job.get("Error") or _is_transient(table, name):
            continue
        # Flat, and of values that can be hashed, as Airflow 2 needs it.
        yield (
            _uri(table),
            {
                "event_id": name.event_id,
                "step": name.step,
                "action": name.action,
                "job_id": job["ID"],
                "project": job["Project"],
                "location": job["Region"],
                "end_time": job.get("EndTime", ""),
            },
        )


def _is_transient(table: TableName, name: TraceName) -> bool:
    """Tell whether BqTail has made a table for one event alone, of which nobody can know beforehand."""
    return table.table.endswith(f"_{name.event_id}")


def _by_table(told: Sequence[tuple[str, dict[str, Any]]], url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    extras: dict[str, list[dict[str, Any]]] = {}
    for uri, extra in told:
        extras.setdefault(uri, []).append(extra)
    for uri, all_of_it in extras.items():
        yield uri, {**all_of_it[-1], "more": len(all_of_it) - 1, "document": url}


def _uri(table: TableName) -> str:
    """Names are untrusted text, of any script, and Airflow's columns are not endless."""
    parts = (table.project or "", table.dataset, table.table)
    uri = "x-bqtail://" + "/".join(quote(part, safe="") for part in parts)
    if len(uri) <= _LONGEST:
        return uri
    return f"{uri[: _LONGEST - 17]}~{hashlib.sha256(uri.encode()).hexdigest()[:16]}"
