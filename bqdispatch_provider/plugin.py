"""Airflow's plugin: the page "BqTail dispatch" in the menu, and as a tab of each DAG.

Every component of Airflow imports this module, so it imports nothing that is slow. The page needs Airflow 3.1.1: before
that, an app of a plugin is not told who has logged in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin

from bqdispatch_provider import compat

NAME = "BqTail dispatch"
PATH = "/bqdispatch"
"""Path of the page below the address of Airflow."""

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Serve the page. FastAPI is imported with the first request: only Airflow's API server serves it."""
    from bqdispatch_provider.page.app import app as page  # noqa: PLC0415

    await page(scope, receive, send)


def _views() -> list[dict[str, str]]:
    address = urlsplit(compat.conf.get("api", "base_url", fallback="") or "").path.rstrip("/") + f"{PATH}/"
    return [
        {"name": NAME, "href": address, "destination": "nav", "url_route": "bqdispatch", "category": "browse"},
        {"name": NAME, "href": f"{address}?dag={{DAG_ID}}", "destination": "dag", "url_route": "bqdispatch_dag"},
    ]


class BqDispatchPlugin(AirflowPlugin):
    """The page, where Airflow can show it."""

    name = "bqdispatch"
    fastapi_apps: list[Any] = [{"name": NAME, "app": app, "url_prefix": PATH}] if compat.has_plugin_pages() else []
    external_views: list[Any] = _views() if compat.has_plugin_pages() else []
