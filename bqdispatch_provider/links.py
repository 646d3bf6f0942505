"""Links from a task's page to Google Cloud's console: the job, the task folder, the response document.

A task keeps the URLs of its links (:func:`keep`). Airflow 3 reads them when the task ends, and stores them as XComs.
Airflow 2 reads them in its web server, so for Airflow 2 they are stored here under the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink

from bqdispatch_provider.compat import stores_links
from bqdispatch_provider.gcp.emulators import STORAGE, emulator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.core.report import Report

CONSOLE = "https://console.cloud.google.com"


class _Link(BaseOperatorLink):
    """A link whose URL the task keeps."""

    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        """The key of the XCom that holds the URL."""
        return self.key

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the URL; empty if the task has none.

        :param operator: the task. It knows the URL while it runs.
        :param ti_key: key of the task instance whose XCom holds the URL.
        """
        kept: Mapping[str, str] | None = getattr(operator, "links", None)
        if kept is not None:
            return kept.get(self.key, "")
        from airflow.providers.common.compat.sdk import XCom  # noqa: PLC0415  (only Airflow 2's web server needs it)

        return XCom.get_value(key=self.key, ti_key=ti_key) or ""


class BigQueryJobLink(_Link):
    """The job of the first trace that a task dispatched."""

    name = "BigQuery job"
    key = "bqdispatch_job"


class TaskFolderLink(_Link):
    """The folder of the first event that a task found or dispatched."""

    name = "Task folder"
    key = "bqdispatch_folder"


class ResponseDocumentLink(_Link):
    """The response document that a task has written."""

    name = "Response document"
    key = "bqdispatch_document"


Links = Mapping[type[_Link], str]
"""URLs of links. A link without a URL is not shown."""


def keep(operator: Any, context: Context, links: Links) -> None:
    """Keep a task's links, for its page.

    :param operator: the running task.
    :param context: the task's.
    :param links: the task's links.
    """
    operator.links = xcoms_of(links)
    if not stores_links():
        for key, url in operator.links.items():
            context["ti"].xcom_push(key=key, value=url)


def xcoms_of(links: Links) -> dict[str, Any]:
    """Return the XComs that hold links; none with a stand-in for Cloud Storage, which has no console.

    :param links: the task's links.
    """
    return {} if emulator(STORAGE) else {link.key: url for link, url in links.items() if url}


def links_of_dispatch(report: Report, task_folder: str, document_url: str) -> Links:
    """Return the links of a task that has dispatched: its first job, its first event's folder, and its document.

    :param report: what the task dispatched.
    :param task_folder: URL of the task folder, with a slash at the end.
    :param document_url: URL of the response document.
    """
    first = next(iter((*report.jobs, *report.batched)), task_folder)
    return {
        BigQueryJobLink: job_page(report),
        TaskFolderLink: folder_page(first),
        ResponseDocumentLink: object_page(document_url),
    }


def job_page(report: Report) -> str:
    """Return the page of the first job whose trace was dispatched; empty if there is none.

    :param report: what was dispatched.
    """
    for job in report.jobs.values():
        return page_of_job(job["Project"], job["ID"], job["Region"])
    return ""


def page_of_job(project: str, job_id: str, location: str | None) -> str:
    """Return the page of a BigQuery job.

    :param location: of the job; ``None`` if it is not known.
    """
    parts = [quote(part or "", safe="") for part in (project, job_id, location)]
    return f"{CONSOLE}/bigquery?project={parts[0]}&ws=!1m5!1m4!1m3!1s{parts[0]}!2s{parts[1]}!3s{parts[2]}"


def folder_page(url: str) -> str:
    """Return the page of an object's folder.

    :param url: the object's, or the folder's with a slash at the end, ``gs://…``.
    """
    return f"{CONSOLE}/storage/browser/{_path(url.rpartition('/')[0])}"


def object_page(url: str) -> str:
    """Return the page of an object.

    :param url: ``gs://…``.
    """
    return f"{CONSOLE}/storage/browser/_details/{_path(url)}"


def _path(url: str) -> str:
    return quote(url.removeprefix("gs://"))
