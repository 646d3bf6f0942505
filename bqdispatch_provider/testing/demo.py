"""``make demo``: a moving system on one machine: stand-ins for Google Cloud and BqTail, and a real Airflow between."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
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

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.pools import pools_of
from bqdispatch_provider.testing.bqtail import Account, BqTailSettings, DataFile, Rule, StandInBqTail
from bqdispatch_provider.testing.live import LiveAirflow
from bqdispatch_provider.testing.standin import StandIn

PROJECT, TRIGGER, OPS = "demo-project", "demo_project_bqtail", "demo-ops"
DOCUMENT = {
    "ProjectID": PROJECT,
    "AsyncTaskURL": f"gs://{OPS}/BqDispatch/Tasks/",
    "JournalURL": f"gs://{OPS}/BqTail/Journal/",
    "ErrorURL": f"gs://{OPS}/BqTail/Errors/",
    "MaxConcurrentSQL": 5,
    "MaxConcurrentJobs": 3,
}
TABLES = {
    "sales.orders": "one folder a window",
    "sales.returns": "one folder a window",
    "web.clicks": "loads run in another project",
    "web.sessions": "many folders a window",
}
LOADS_ELSEWHERE = "demo-loads"
RULES = {
    "web.clicks": Rule(transient_project=LOADS_ELSEWHERE),
    "web.sessions": Rule(multi_path=True),
}
LATE_S = 40.0
"""Longer than a window waits to be fired: then comes the event of a folder's first file, now and then."""
FIRST_EVENTS = 60
_PATIENCE_S = 900.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What a user, a closed window and a supervisor send; none of them may leave a process behind."""
_STARTING = "Starting the stand-ins and Airflow (about a minute) …"

console = Console()
notes = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    :returns: with ``--once`` 0 when each of the first events went through exactly once and no limit was passed, else 1.
    """
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help=f"end by itself after {FIRST_EVENTS} events, with the account"
    )
    parser.add_argument("--port", type=int, default=8080, help="of Airflow's page; a free one when it is taken")
    parser.add_argument(
        "--dags",
        type=Path,
        default=Path(__file__).parents[2] / "dags",
        help="folder of the DAG files (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    # The handlers raise nothing: an exception could strike while a process is being started, or ended.
    asked = threading.Event()
    for number in _SIGNALS:
        signal.signal(number, lambda *_: asked.set())
    try:
        with _workplace(asked) as home, _Demo(home, options.dags, options.port, asked) as demo:
            return demo.once() if options.once else demo.watch()
    except _Stopped:
        _say("Stopped; nothing is left running.")
        return 130


class _Stopped(Exception):
    """Somebody has asked the demo to end."""


def _say(text: str) -> None:
    """Print, unless the terminal is gone: that ends nothing else early."""
    with suppress(OSError):
        notes.print(text, soft_wrap=True)


@contextmanager
def _workplace(asked: threading.Event) -> Iterator[Path]:
    """Make a folder, and remove it unless something went wrong: then its logs are wanted."""
    home = Path(tempfile.mkdtemp(prefix="bqdispatch-demo-"))
    try:
        yield home
    except BaseException as error:
        # Writing to a terminal that is gone fails, which is no failure once its end has asked the demo to stop.
        if not isinstance(error, _Stopped) and not (isinstance(error, OSError) and asked.is_set()):
            _say(f"The demo failed; its logs are in {home}")
            raise
        shutil.rmtree(home, ignore_errors=True)
        raise _Stopped from error
    shutil.rmtree(home, ignore_errors=True)


@dataclass
class _Feed:
    """Data files that land in the trigger bucket, and storage events that come late for some of them."""

    bqtail: StandInBqTail
    every_s: float
    number: int | None
    stopped: threading.Event
    landed: list[DataFile] = field(default_factory=list)

    def run(self) -> None:
        while not self.stopped.is_set() and (self.number is None or len(self.landed) < self.number):
            self.landed.append(self._put_file(len(self.landed)))
            if len(self.landed) % 20 == 0:
                self.bqtail.late_event(self.landed[-10])
            self.stopped.wait(self.every_s)

    def _put_file(self, number: int) -> DataFile:
        dest = tuple(TABLES)[number % len(TABLES)]
        if dest not in RULES or not RULES[dest].multi_path:
            return self.bqtail.put_file(dest)
        if number % 24 == 19:  # a folder of which nobody has heard when its window is fired
            return self.bqtail.put_file(dest, folder=f"late-{number}", event_delay=LATE_S)
        return self.bqtail.put_file(dest, folder=f"part-{number // len(TABLES) % 2}")


class _Demo:
    def __init__(self, home: Path, dags: Path, port: int, asked: threading.Event) -> None:
        self._home = home
        self._asked = asked
        self._held = ExitStack()
        self._config = DispatchConfig.from_dict(DOCUMENT)
        self._cloud = StandIn()
        self._stopped = threading.Event()
        self._reports: dict[str, dict[str, Any]] = {}
        self._dags, self._port = dags, port

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
        if self._asked.is_set():
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
            self._config, window_s=15, pending_ms=(100, 500), running_ms=(500, 2500), rules=RULES
        )
        self._bqtail = StandInBqTail(self._client, requests.Session(), self._cloud.url, settings)
        self._in_background(lambda: self._bqtail.run(self._stopped))
        self._check()
        self._airflow = LiveAirflow(
            self._home / "airflow",
            self._dags,
            pools_of(self._config),
            {
                "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps(
                    {"conn_type": "bqdispatch", "extra": {"config": DOCUMENT}}
                ),
                "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
                    {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": PROJECT}}
                ),
                # Back to back instead of every minute, so that there is something to see.
                "BQDISPATCH_SCHEDULE": "@continuous",
                "BQDISPATCH_SQL_SLOTS": str(self._config.max_concurrent_sql),
                "BQDISPATCH_JOBS_SLOTS": str(self._config.max_concurrent_jobs),
            },
            port=self._port,
            may_go_on=self._check,
        )
        self._held.enter_context(self._airflow)

    def _in_background(self, work: Any) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._held.callback(thread.join)
        self._held.callback(self._stopped.set)

    def watch(self) -> int:
        """Show what happens until it is stopped."""
        self._feed(every_s=1.5, number=None)
        with self._live() as live:
            while True:
                self._look(live)
                self._pause(1)

    def once(self) -> int:
        """Let the first events through, and show what became of them."""
        self._feed(every_s=0.25, number=FIRST_EVENTS)
        until = time.monotonic() + _PATIENCE_S
        with self._live() as live:
            while not self._is_over() and time.monotonic() < until:
                self._look(live)
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
        """Tell whether all events are through, and the runs that have dispatched for them have told so."""
        counters = self._bqtail.counters()
        reported = sum(sum(report["Dispatched"].values()) for report in self._reports.values())
        return counters.finished >= FIRST_EVENTS and reported >= counters.dispatched + counters.batches

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
        whole = account.ok and account.events == FIRST_EVENTS
        return 0 if whole and within and not errors else 1

    def _feed(self, every_s: float, number: int | None) -> None:
        notes.print(
            f"Airflow's page: {self._airflow.url}/dags/bqdispatch  login: admin  password: {self._airflow.password}",
            soft_wrap=True,
            highlight=False,
        )
        feed = _Feed(self._bqtail, every_s, number, self._stopped)
        self._in_background(feed.run)

    def _live(self) -> Live:
        return Live(console=notes, refresh_per_second=4, transient=False)

    def _look(self, live: Live) -> None:
        self._airflow.check()
        self._read_reports()
        live.update(self._table())

    def _read_reports(self) -> None:
        """Read the response documents that have come into the journal since the last look."""
        prefix = "BqTail/Journal/runs/"
        for blob in self._client.list_blobs(OPS, prefix=prefix):
            parts = blob.name.removeprefix(prefix).split("/")
            if len(parts) == 3 and parts[2] not in self._reports:  # day, DAG, run
                with suppress(ValueError):
                    self._reports[parts[2]] = json.loads(blob.download_as_bytes())

    def _table(self) -> Group:
        counters = self._bqtail.counters()
        throttled = sum(
            (Counter(report["Throttled"]) for report in list(self._reports.values())[-1:]), Counter()
        ).total()
        table = Table(title=f"{counters.finished:,} of {counters.events:,} events finished")
        figures = {
            "waiting": counters.waiting,
            "running": counters.running,
            "dispatched": counters.dispatched,
            "batches": counters.batches,
            "consumed": counters.consumed,
            "throttled": throttled,
            "DAG runs": len(self._reports),
        }
        for name in figures:
            table.add_column(name, justify="right")
        table.add_row(*(f"{number:,}" for number in figures.values()))
        return Group(table, Text("Ctrl-C stops it.", style="dim"))


def _by_table(account: Account) -> Table:
    """Return what became of each table's files, by its rule."""
    table = Table("table", "rule", "files loaded", "loads", "in project", title="by table")
    dests = {chain.event_id: chain.dest for chain in account.chains}
    loads = [(dests[job.chain], job.project) for job in account.jobs if job.kind == "load" and job.accepted]
    for dest, rule in TABLES.items():
        files = sum(len(chain.files) for chain in account.chains if chain.dest == dest)
        projects = sorted({project for each, project in loads if each == dest})
        number = sum(each == dest for each, _ in loads)
        table.add_row(dest, rule, f"{files:,}", f"{number:,}", ", ".join(projects))
    return table


if __name__ == "__main__":
    sys.exit(main())
