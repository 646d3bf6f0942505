"""What OpenLineage is told of a dispatch: the tables as outputs, the jobs as facets of the run."""

from __future__ import annotations

from itertools import islice
from typing import Any

from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet, RunFacet
from airflow.providers.openlineage.extractors import OperatorLineage
from attr import define

from bqdispatch_provider.assets import each_job
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.report import Report

MOST_JOBS = 1000
"""Jobs in the facet at most; the document has all."""


@define
class BqDispatchRunFacet(RunFacet):
    """What was dispatched.

    :param jobs: for each job ``project``, ``location``, ``job_id``, ``action``, ``step``, ``event_id``, ``end_time``,
        where it has written one its ``table`` and, where it ended badly, its ``error``.
    :param number: how many jobs there are, also where not all of them are told.
    :param document: where the response document lies.
    """

    jobs: list[dict[str, Any]]
    number: int
    document: str


def lineage_of(report: Report, config: DispatchConfig, url: str) -> OperatorLineage[Any, Any]:
    """The tables that jobs went well into, as outputs; all jobs in ``bqdispatch``, and one alone in ``externalQuery``.

    :param report: what was dispatched.
    :param config: the dispatcher's.
    :param url: where the report lies.
    """
    tables: dict[str, None] = {}
    jobs: list[dict[str, Any]] = []
    for job, name, table in each_job(report, config):
        full = f"{table.project}.{table.dataset}.{table.table}" if table else ""
        if full and not job.get("Error"):
            tables[full] = None
        told: dict[str, Any] = {
            "project": job["Project"],
            "location": job["Region"],
            "job_id": job["ID"],
            **({"table": full} if full else {}),
            "action": name.action,
            "step": name.step,
            "event_id": name.event_id,
            "end_time": job.get("EndTime", ""),
        }
        jobs.append({**told, "error": job["Error"]} if job.get("Error") else told)
    facets: dict[str, Any] = {}
    if jobs:
        facets["bqdispatch"] = BqDispatchRunFacet(list(islice(jobs, MOST_JOBS)), len(jobs), url)
    if len(jobs) == 1:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=jobs[0]["job_id"], source="bigquery")
    return OperatorLineage(outputs=[Dataset(namespace="bigquery", name=table) for table in tables], run_facets=facets)
