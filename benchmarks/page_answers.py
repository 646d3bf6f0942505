"""Measure how soon the page in Airflow answers beside a large backlog, and what it asks Google meanwhile.

A run looks at 100,000 waiting traces and leaves its document and its figures, as in a real Airflow. The other hours of
a week are as large as the history lets them be. Then a browser's requests are made, one after the other, and after that
those of many people at one time.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import requests
from surroundings import airflow, stand_in
from workloads import DOCUMENT, Workload, fill, traces

from bqdispatch_provider.core.history import LAG_BOUNDS_S, MAX_PROJECTS, SPAN, Figures, Hour
from bqdispatch_provider.cycle.history import hour_url
from bqdispatch_provider.testing.standin import StandInControl
from demo.live import LiveAirflow

LATENCY_MS = 30
HOURS = 7 * 24
WATCHERS = 100
INTERVAL_S = 10.0
"""Interval in which the page asks again; so long the requests to Google are counted."""

LATER_S = 30.0
"""Time for which later answers are measured: the journal is read again a few times."""

BACKLOG = Workload("100,000 waiting traces", 100_000, 0, traces(1), "")
DAG = """
import pendulum
from airflow.providers.common.compat.sdk import DAG
with DAG("bqdispatch", schedule=None, start_date=pendulum.datetime(2024, 1, 1, tz="UTC"), catchup=False):
    pass
"""
RUN = """
import sys
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.names import JournalName
with Dispatcher(DispatchConfig.from_url(sys.argv[1])) as dispatcher:
    url = f"{dispatcher.config.journal_url}{JournalName.RUNS}benchmark.json"
    report = dispatcher.run(0, label=RunLabel("bqdispatch", url))
    dispatcher.store.write_json(url, report.to_dict())
"""


def page_answers() -> str:
    """Measure, and return the figures as a sentence."""
    with stand_in() as (url, control):
        fill(BACKLOG, control)
        _fill_history(control)
        _run(url)
        control.set_latency(LATENCY_MS)
        with airflow(url, DOCUMENT, {"bqdispatch.py": DAG}) as live:
            _wait_for_dag(live)
            page = _Page(live)
            first = [page.answer(route) for route in page.routes()]
            page.check()
            later: list[float] = []
            until = time.monotonic() + LATER_S
            while time.monotonic() < until:
                later += [page.answer(route) for route in page.routes()]
                time.sleep(0.2)
            control.reset_counters()
            watched = page.watch()
            asked = sum(control.requests_by_method().values())
    return (
        f"the page in Airflow beside {BACKLOG.title} and {HOURS} hours of history, {LATENCY_MS} ms for each request to "
        f"Google, each route: the first answer after {_spread(first)}, later ones after {_spread(later)}, and "
        f"{_spread(watched)} while {WATCHERS} people watch; for all of them it makes {asked} requests to Google in ten "
        "seconds; to be reached: 1 s, 8 requests"
    )


class _Page:
    """The page as a browser asks for it.

    :param live: the Airflow that serves it.
    """

    def __init__(self, live: LiveAirflow) -> None:
        self._url, self._headers = f"{live.url}/bqdispatch/", {"Authorization": f"Bearer {live.token}"}
        self._session = requests.Session()

    def routes(self) -> Iterator[str]:
        """Yield the routes in the order in which a browser asks for them, and then for the other ranges."""
        yield ""
        files = re.findall(r'"(static/[^"]+)"', self._get("").text)
        yield from dict.fromkeys(files)
        yield from ("api/setups", *(f"api/state?setup=bqdispatch_default&range={span}" for span in _RANGES))

    def answer(self, route: str) -> float:
        """Return how long an answer takes, in seconds."""
        began = time.perf_counter()
        self._get(route)
        return time.perf_counter() - began

    def watch(self) -> list[float]:
        """Return how long the answers take while many people have the page open, each of whom asks in his turn."""
        with ThreadPoolExecutor(WATCHERS) as watchers:
            return [took for each in watchers.map(self._ask_once, range(WATCHERS)) for took in each]

    def _ask_once(self, number: int) -> list[float]:
        time.sleep(number * INTERVAL_S / WATCHERS)
        state = f"api/state?setup=bqdispatch_default&range={_RANGES[number % len(_RANGES)]}"
        return [self.answer("api/setups"), self.answer(state)]

    def check(self) -> None:
        """Check that the page shows the backlog and the week, once all is read.

        :raises RuntimeError: if it does not.
        """
        until = time.monotonic() + LATER_S
        while True:
            state = self._get("api/state?setup=bqdispatch_default&range=week").json()
            waiting, seen = sum(state["overview"]["reasons"].values()), sum(each["seen"] for each in state["series"])
            if waiting == BACKLOG.listed and seen >= len(state["series"]) - 1:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"{waiting} waiting, {seen} points seen, {state['overview']['problems']}")
            time.sleep(0.5)

    def _get(self, route: str) -> requests.Response:
        answer = self._session.get(f"{self._url}{route}", headers=self._headers, timeout=60)
        answer.raise_for_status()
        return answer


_RANGES = ("hour", "day", "week")


def _fill_history(control: StandInControl) -> None:
    """Write a week of figures, of as many projects as the history keeps."""
    last = datetime.fromtimestamp(control.now(), UTC).replace(minute=0, second=0, microsecond=0)
    hours: dict[datetime, Hour] = defaultdict(lambda: Hour(dags={"bqdispatch"}))
    for number in range(int(timedelta(hours=HOURS) / SPAN)):
        at = last - (number + 1) * SPAN
        hours[at.replace(minute=0)].add(at, _figures(at))
    control.seed_objects(
        "journal",
        [
            {
                "name": hour_url(DOCUMENT["JournalURL"], at).removeprefix("gs://journal/"),
                "content": json.dumps(hour.to_dict()),
            }
            for at, hour in hours.items()
        ],
    )


def _figures(at: datetime) -> Figures:
    figures = Figures(seen=at)
    for number in range(MAX_PROJECTS):
        states = {state: Counter(sql=3, jobs=5, windows=2) for state in ("Running", "Pending", "Throttled")}
        lags = Counter(range(len(LAG_BOUNDS_S)))
        waiting = Counter({"job running": 8, "limit reached": 10})
        counted = Counter(sql=30, jobs=50, windows=9)
        mine = Figures(counted, lags=lags, seen=at, states=states, waiting=waiting)
        figures.add(mine)
        figures.projects[f"project-{number}"] = mine
    return figures


def _run(url: str) -> None:
    """Let a run look at the backlog, and leave what the page reads."""
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": url, "BIGQUERY_EMULATOR_HOST": url}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(DOCUMENT))
        subprocess.run([sys.executable, "-c", RUN, config.as_uri()], env=environment, check=True)


def _wait_for_dag(live: LiveAirflow) -> None:
    """Wait until Airflow has read the file."""
    while not live.get("dags")["dags"]:
        time.sleep(0.5)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s (at most {max(seconds):.2f} s)"


if __name__ == "__main__":
    print(page_answers())
