"""Links from a task's page to Google Cloud's console: the job, the task folder, the response document.

A task keeps its links where it knows them (:func:`keep`). Airflow 3 asks for them when the task ends, and stores them
as XComs; for Airflow 2, whose web server asks, they are stored here under the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink

from bqdispatch_provider.compat import stores_links
from bqdispatch_provider.emulators import STORAGE, emulator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.report import Report

CONSOLE = "https://console.cloud.google.com"


class _Link(BaseOperatorLink):
    """A link whose URL the task has kept."""

    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        """The key of the XCom that holds the URL."""
        return self.key

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The URL; empty when the task has none.

        :param operator: the task, which knows it as long as it runs.
        :param ti_key: names the task instance whose XCom holds it.
        """
        kept: Mapping[str, str] | None = getattr(operator, "links", None)
        if kept is not None:
            return kept.get(self.key, "")
        from airflow.providers.common.compat.sdk import XCom  # noqa: PLC0415  (Airflow 2's web server alone needs it)

        return XCom.get_value(key=self.key, ti_key=ti_key) or ""


class BigQueryJobLink(_Link):
    """The job of the first trace that a task dispatched."""

    name = "BigQuery job"
    key = "bqdispatch_job"


class TaskFolderLink(_Link):
    """Where the first event lay that a task saw or dispatched."""

    name = "Task folder"
    key = "bqdispatch_folder"


class ResponseDocumentLink(_Link):
    """The response document that a task has written."""

    name = "Response document"
    key = "bqdispatch_document"


def keep(operator: Any, context: Context, links: Mapping[type[_Link], str]) -> None:
    """Keep a task's links, which are what its page shows.

    :param operator: the running task.
    :param context: the task's.
    :param links: a URL for each, empty where there is none.
    """
    operator.links = kept(links)
    if not stores_links():
        for key, url in operator.links.items():
            context["ti"].xcom_push(key=key, value=url)


def kept(links: Mapping[type[_Link], str]) -> dict[str, Any]:
    """Return the XComs that hold links; none where stand-ins take the place of Google Cloud, which have no console.

    :param links: a URL for each, empty where there is none.
    """
    if emulator(STORAGE):
        return {}
    return {link.key: url for link, url in links.items() if url}


def job_of(report: Report) -> str:
    """The page of the first job whose trace was dispatched; empty when there is none.

    :param report: what was dispatched.
    """
    for job in report.jobs.values():
        project, job_id, location = (quote(job[key] or "", safe="") for key in ("Project", "ID", "Region"))
        return f"{CONSOLE}/bigquery?project={project}&ws=!1m5!1m4!1m3!1s{project}!2s{job_id}!3s{location}"
    return ""


def folder_of(url: str) -> str:
    """The page of the folder of an object.

    :param url: the object's, or the folder's with a slash at its end, ``gs://…``.
    """
    return f"{CONSOLE}/storage/browser/{_path(url.rpartition('/')[0])}"


def of_report(report: Report, task_folder: str) -> dict[type[_Link], str]:
    """The links of a task that has dispatched: to the first job, and to where the first event lay.

    :param report: what was dispatched.
    :param task_folder: URL of the task folder, with a slash at its end.
    """
    first = next(iter((*report.jobs, *report.batched)), task_folder)
    return {BigQueryJobLink: job_of(report), TaskFolderLink: folder_of(first)}


def object_of(url: str) -> str:
    """The page of an object.

    :param url: ``gs://…``.
    """
    return f"{CONSOLE}/storage/browser/_details/{_path(url)}"


def _path(url: str) -> str:
    return quote(url.removeprefix("gs://"))
