"""``make demo``: a moving system on one machine: stand-ins for Google Cloud and BqTail, and a real Airflow between."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from rich.console import Console, Group
from rich.json import JSON
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bqdispatch_provider.commands.pools import expected_pools
from bqdispatch_provider.commands.status import layout, overviews
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.gcp.threads import StopRequest
from bqdispatch_provider.testing.bqtail import Account, BqTailSettings, StandInBqTail
from bqdispatch_provider.testing.standin import StandIn
from demo.feed import BURST, RULES, TABLES, Feed
from demo.live import LiveAirflow

PROJECT, TRIGGER, OPS = "acme-shop", "acme_shop_bqtail", "acme-ops"
"""Names that the sample DAGs have, so that they work here."""

DOCUMENT = {
    "ProjectID": PROJECT,
    "AsyncTaskURL": f"gs://{OPS}/BqDispatch/Tasks/",
    "JournalURL": f"gs://{OPS}/BqTail/Journal/",
    "ErrorURL": f"gs://{OPS}/BqTail/Errors/",
    "MaxConcurrentSQL": 5,
    "MaxConcurrentJobs": 3,
}
DAGS = ("bqdispatch.py", "examples/after_a_table.py")
DISPATCHING, FOLLOWING = "bqdispatch", "after_a_table"
"""IDs of the DAG that dispatches, and of the one that starts when a table was loaded."""

FIRST_FILES = 60
_LEGEND = (
    "A file waits until the load of its window has taken it. Then it is in a chain of jobs: load, copy, query.\n"
    "Lanes and limits count jobs and windows, not files. Now and then {burst} folders come at one time, more than the\n"
    "limit of {limit} jobs: see throttled rise and fall. Ctrl-C stops it."
)
_PATIENCE_S = 1800.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals of a user, a closed window and a supervisor. None of them may leave a process behind."""
_STARTING = "Starting the stand-ins and Airflow (about a minute) …"

console = Console()
notes = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    :returns: the exit code. With ``--once`` 0 if each of the first files went through exactly once and no limit was
        exceeded, else 1; 130 when it was stopped.
    """
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help=f"stop after {FIRST_FILES} files, and print what became of them"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8080,
        help="port of Airflow's page; a free one if it is taken (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    # The handlers raise nothing: an exception could strike while a process is being started, or ended.
    asked = StopRequest()
    for number in _SIGNALS:
        signal.signal(number, lambda *_: asked.make())
    try:
        with _workplace(asked) as home, _Demo(home, options.port, asked, once=options.once) as demo:
            return demo.once() if options.once else demo.watch()
    except _Stopped:
        _say("Stopped; nothing is left running.")
        return 130


class _Stopped(Exception):
    """Somebody has asked the demo to end."""


def _say(text: str) -> None:
    """Print, unless the terminal is gone: what has to be stopped is stopped all the same."""
    with suppress(OSError):
        notes.print(text, soft_wrap=True)


@contextmanager
def _workplace(asked: StopRequest) -> Iterator[Path]:
    """Make a folder, and remove it again. After a failure it stays, for its logs."""
    home = Path(tempfile.mkdtemp(prefix="bqdispatch-demo-"))
    try:
        yield home
    except BaseException as error:
        # A terminal that is closed asks the demo to stop, and then writing to it fails. That is no failure of the demo.
        if not isinstance(error, _Stopped) and not (isinstance(error, OSError) and asked.is_made):
            _say(f"The demo failed; its logs are in {home}")
            raise
        shutil.rmtree(home, ignore_errors=True)
        raise _Stopped from error
    shutil.rmtree(home, ignore_errors=True)


class _Demo:
    def __init__(self, home: Path, port: int, asked: StopRequest, *, once: bool) -> None:
        self._home = home
        self._once = once
        self._asked = asked
        self._held = ExitStack()
        self._config = DispatchConfig.from_dict(DOCUMENT)
        self._cloud = StandIn()
        self._stopped = threading.Event()
        self._reports: dict[str, dict[str, Any]] = {}
        self._port = port

    def __enter__(self) -> _Demo:
        try:
            if not notes.is_terminal:
                notes.print(_STARTING)
            with notes.status(_STARTING):
                self._start()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _say("Stopping …")
        self._held.close()

    def _check(self) -> None:
        if self._asked.is_made:
            raise _Stopped

    def _pause(self, seconds: float) -> None:
        self._asked.wait(seconds)
        self._check()

    def _start(self) -> None:
        self._held.enter_context(self._cloud)
        # For the clients of this process, and by inheritance for Airflow's.
        os.environ["STORAGE_EMULATOR_HOST"] = os.environ["BIGQUERY_EMULATOR_HOST"] = self._cloud.url
        self._client = Client(
            project=PROJECT, credentials=AnonymousCredentials(), client_options={"api_endpoint": self._cloud.url}
        )
        for bucket in (OPS, TRIGGER):
            self._client.create_bucket(bucket)
        settings = BqTailSettings.for_dispatcher(
            self._config,
            window_s=15 if self._once else 30,
            pending_ms=(100, 500),
            running_ms=(500, 2500),
            rules=RULES,
        )
        self._bqtail = StandInBqTail(self._client, requests.Session(), self._cloud.url, settings)
        self._in_background(lambda: self._bqtail.run(self._stopped))
        self._looks = self._held.enter_context(overviews(self._config, self._client))
        self._check()
        self._airflow = LiveAirflow(
            self._home / "airflow",
            _dags(self._home / "dags"),
            expected_pools(self._config),
            _environment(self._config),
            port=self._port,
            may_go_on=self._check,
        )
        self._held.enter_context(self._airflow)
        self._airflow.switch_on(DISPATCHING)

    def _in_background(self, work: Any) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._held.callback(thread.join)
        self._held.callback(self._stopped.set)

    def watch(self) -> int:
        """Show what happens until somebody stops the demo."""
        feed = self._feed()
        self._in_background(feed.run)
        with self._live() as live:
            self._airflow.switch_on(FOLLOWING)
            while True:
                self._look(live)
                self._pause(2)

    def once(self) -> int:
        """Let the first files through, and print what became of them.

        :returns: the exit code.
        """
        feed = self._feed()
        self._in_background(lambda: feed.put_files(FIRST_FILES))
        until = time.monotonic() + _PATIENCE_S
        with self._live() as live:
            while not self._is_over() and time.monotonic() < until:
                self._look(live)
                self._read_reports()
                self._pause(1)
            self._look(live)
        for run, report in self._reports.items():
            if report["Jobs"] or report["Batched"] or report["Errors"]:
                console.print(Text(f"\nResponse document of run {run}:", style="bold"))
                console.print(
                    JSON.from_data(report) if console.is_terminal else Text(json.dumps(report)), soft_wrap=True
                )
        return self._settle(self._bqtail.account())

    def _is_over(self) -> bool:
        """Tell whether all files are through, and all runs that dispatched their events have reported."""
        counters = self._bqtail.counters()
        reported = sum(sum(report["Dispatched"].values()) for report in self._reports.values())
        return counters.finished >= FIRST_FILES and reported >= counters.dispatched + counters.batches

    def _settle(self, account: Account) -> int:
        wanted = {"sql": self._config.max_concurrent_sql, "jobs": self._config.max_concurrent_jobs}
        console.print(
            f"\nThe account. An event is a data file that landed. {len(account.chains)} windows gathered them; each\n"
            "went through one chain of jobs (load, copy, query, query) to a streamed row and a message.",
            highlight=False,
        )
        console.print(account.table())
        console.print(_by_table(account))
        within = True
        for project, peaks in account.peaks.items():
            for group, limit in wanted.items():
                within = within and peaks[group] <= limit
                console.print(f"most {group} at one time in {project}: {peaks[group]}, limit {limit}")
        errors = [error for report in self._reports.values() for error in report["Errors"]]
        for error in errors:
            console.print(Text(f"error: {error}", style="red"))
        whole = account.ok and account.events == FIRST_FILES
        return 0 if whole and within and not errors else 1

    def _feed(self) -> Feed:
        notes.print(
            f"Open {self._airflow.url}/plugin/bqdispatch  login: admin  password: {self._airflow.password}",
            soft_wrap=True,
            highlight=False,
        )
        return Feed(self._bqtail, self._stopped)

    def _live(self) -> Live:
        return Live(console=notes, refresh_per_second=4, transient=False)

    def _look(self, live: Live) -> None:
        self._airflow.check()
        live.update(self._seen())

    def _read_reports(self) -> None:
        """Read the response documents that are new in the journal."""
        prefix = "BqTail/Journal/runs/"
        for blob in self._client.list_blobs(OPS, prefix=prefix):
            parts = blob.name.removeprefix(prefix).split("/")
            if len(parts) == 3 and parts[2] not in self._reports:  # day, DAG, run
                with suppress(ValueError):
                    self._reports[parts[2]] = json.loads(blob.download_as_bytes())

    def _seen(self) -> Group:
        """Return how it goes: the files, and the dispatcher's own words."""
        seen = next(self._looks)
        legend = _LEGEND.format(burst=BURST, limit=self._config.max_concurrent_jobs)
        return Group(
            Text(f"{self._bqtail.counters()}\n", "bold"),
            *([seen] if isinstance(seen, str) else [layout(seen)]),
            Text(legend, "dim"),
        )


def _dags(folder: Path) -> Path:
    """Fill a folder with the DAGs that work here."""
    folder.mkdir()
    for name in DAGS:
        shutil.copy(Path(__file__).parents[1] / "dags" / name, folder)
    return folder


def _environment(config: DispatchConfig) -> dict[str, str]:
    """Return the environment variables of Airflow by which the DAGs find their connections and limits."""
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": PROJECT}}
    return {
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps({"conn_type": "bqdispatch", "extra": {"config": DOCUMENT}}),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(google),
        # Back to back instead of every minute, so that there is something to see.
        "BQDISPATCH_SCHEDULE": "@continuous",
        "BQDISPATCH_SQL_SLOTS": str(config.max_concurrent_sql),
        "BQDISPATCH_JOBS_SLOTS": str(config.max_concurrent_jobs),
    }


def _by_table(account: Account) -> Table:
    """Return a table of what became of each table's files."""
    table = Table("table", "rule", "files loaded", "loads", "in project", title="by table")
    dests = {chain.event_id: chain.dest for chain in account.chains}
    loads = [(dests[job.chain], job.project) for job in account.jobs if job.kind == "load" and job.accepted]
    for dest, rule in TABLES.items():
        files = sum(len(chain.files) for chain in account.chains if chain.dest == dest)
        projects = sorted({project for each, project in loads if each == dest})
        number = sum(each == dest for each, _ in loads)
        table.add_row(dest, rule, f"{files:,}", f"{number:,}", ", ".join(projects))
    return table
