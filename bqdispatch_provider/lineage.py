"""OpenLineage's view of a task: the tables that jobs have written as outputs, the jobs as facets of the run."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet, RunFacet
from airflow.providers.openlineage.extractors import OperatorLineage
from attr import define

from bqdispatch_provider.assets import each_job, facts_of
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.report import Report

MAX_FACET_JOBS = 1000
"""Jobs in a facet. The response document has all of them."""


@define
class BqDispatchRunFacet(RunFacet):
    """Dispatched jobs.

    :param jobs: the first 1,000 jobs, each with ``project``, ``location``, ``job_id``, ``action``, ``step``,
        ``event_id``, ``end_time``, the ``table`` that it has written, and the ``error`` if it failed.
    :param number: number of all jobs.
    :param document: URL of the response document.
    """

    jobs: list[dict[str, Any]]
    number: int
    document: str


def lineage_of(report: Report, config: DispatchConfig, url: str) -> OperatorLineage[Any, Any]:
    """Return the lineage of a task: written tables as outputs, and the jobs as the run facet ``bqdispatch``.

    A single job is the run facet ``externalQuery`` as well.

    :param report: what the task dispatched.
    :param config: the dispatcher's.
    :param url: URL of the response document.
    """
    tables: dict[str, None] = {}
    jobs: list[dict[str, Any]] = []
    for job, name, table in each_job(report, config):
        full = f"{table.project}.{table.dataset}.{table.table}" if table else ""
        if full and not job.get("Error"):
            tables[full] = None
        jobs.append(
            {
                **facts_of(job, name),
                **({"table": full} if full else {}),
                **({"error": job["Error"]} if job.get("Error") else {}),
            }
        )
    facets: dict[str, Any] = {}
    if jobs:
        facets["bqdispatch"] = BqDispatchRunFacet(jobs[:MAX_FACET_JOBS], len(jobs), url)
    if len(jobs) == 1:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=jobs[0]["job_id"], source="bigquery")
    return OperatorLineage(outputs=[Dataset(namespace="bigquery", name=table) for table in tables], run_facets=facets)
