"""The command ``python -m bqdispatch_provider.testing.bqtail``."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import requests
from google.api_core.exceptions import Conflict
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.gcp.threads import StopRequest
from bqdispatch_provider.testing.bqtail.settings import BqTailSettings
from bqdispatch_provider.testing.bqtail.stand_in import StandInBqTail

log = logging.getLogger(__name__)


_LOG_INTERVAL = 10
"""Number of data files after which the progress is logged."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Feed events into emulators, and print the account.

    ``STORAGE_EMULATOR_HOST`` and ``BIGQUERY_EMULATOR_HOST``, both with a scheme, are their addresses. Missing buckets
    are created. ``SIGUSR1`` ends the feed, and the process ends when all events went through. ``SIGTERM`` and
    ``SIGINT`` end it at once.

    :param arguments: options, see ``--help``; those of the process by default.
    :returns: exit code: 0 if every event went through exactly once, otherwise 1.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    storage_url, bigquery_url = os.environ.get("STORAGE_EMULATOR_HOST"), os.environ.get("BIGQUERY_EMULATOR_HOST")
    if not storage_url or not bigquery_url:
        raise SystemExit("Set STORAGE_EMULATOR_HOST and BIGQUERY_EMULATOR_HOST, both with a scheme")
    config = DispatchConfig.from_json(Path(options.config).read_bytes(), dict(options.var))
    settings = BqTailSettings.for_dispatcher(
        config,
        **{name: getattr(options, name) for name in _OPTIONS},
        unbatched=frozenset(options.direct),
    )
    client = Client(
        project=settings.project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": storage_url},
    )
    _create_buckets(client, config, settings.trigger_bucket)
    bqtail = StandInBqTail(client, requests.Session(), bigquery_url, settings)

    stop, fed, through = StopRequest(), StopRequest(), threading.Event()

    def end(number: int, _: object) -> None:
        fed.make()
        if number != signal.SIGUSR1:
            stop.make()

    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    stepping = threading.Thread(target=bqtail.run, args=(through, options.interval))
    stepping.start()
    try:
        _feed(bqtail, [*options.dest, *options.direct], options, fed)
        _drain(bqtail, options.drain, options.settle, stop)
    finally:
        through.set()
        stepping.join()
    account = bqtail.account()
    print(json.dumps(account.to_dict(details=options.details), indent=2))
    return 0 if account.ok else 1


def _create_buckets(client: Client, config: DispatchConfig, trigger_bucket: str) -> None:
    """Create the missing buckets of BqTail and its dispatcher."""
    urls = (config.async_task_url, config.journal_url, config.error_url)
    for bucket in {trigger_bucket, *(url.removeprefix("gs://").partition("/")[0] for url in urls)}:
        with suppress(Conflict):
            client.create_bucket(bucket)


def _feed(bqtail: StandInBqTail, dests: list[str], options: argparse.Namespace, fed: StopRequest) -> None:
    for number in itertools.count() if options.events is None else range(options.events):
        while not fed.is_made and bqtail.counters().unfinished >= options.max_unfinished:
            fed.wait(options.every)
        if fed.is_made:
            return
        bqtail.put_file(dests[number % len(dests)])
        if number % _LOG_INTERVAL == 0:
            log.info("%s", bqtail.counters())
        fed.wait(options.every)


def _drain(bqtail: StandInBqTail, patience: float, settle: float, stop: StopRequest) -> None:
    """Wait until all events are in finished chains, then for duplicates, which arrive later."""
    deadline = time.monotonic() + patience
    while not stop.is_made and time.monotonic() < deadline:
        counters = bqtail.counters()
        log.info("%s", counters)
        if counters.finished == counters.events:
            stop.wait(settle)
            return
        stop.wait(1)


_OPTIONS = ("location", "window_s", "data_prefix", "pending_ms", "running_ms", "failing", "seed", "delay_s", "workers")
"""Options with the names of settings."""


def _parser() -> argparse.ArgumentParser:
    description = "Feed events into emulators and print the account: did each go through exactly once?"
    parser = argparse.ArgumentParser(prog="python -m bqdispatch_provider.testing.bqtail", description=description)
    add = parser.add_argument
    add("--config", required=True, help="configuration of the dispatcher, a JSON file")
    add("--var", action="append", default=[], type=_pair, metavar="NAME=VALUE", help="variable of the configuration")
    add("--events", type=int, help="number of data files (default: no limit)")
    add(
        "--every", type=float, default=1.0, metavar="SECONDS", help="time between two data files (default: %(default)s)"
    )
    add(
        "--max-unfinished",
        type=float,
        default=math.inf,
        metavar="FILES",
        help="no data file comes while so many are on their way (default: no limit)",
    )
    add("--dest", nargs="+", default=["demo.batched"], help="destinations with batching (default: %(default)s)")
    add("--direct", nargs="*", default=["demo.direct"], help="destinations without batching (default: %(default)s)")
    add("--window-s", type=int, default=60, help="length of a window in seconds (default: %(default)s)")
    add("--location", default="US", help="location of all jobs (default: %(default)s)")
    add("--data-prefix", default="data/", help="prefix of data files (default: %(default)s)")
    add("--pending-ms", type=_range, metavar="MIN-MAX", help="time of jobs in PENDING (default: BigQuery's)")
    add("--running-ms", type=_range, metavar="MIN-MAX", help="time of jobs in RUNNING (default: BigQuery's)")
    add("--failing", type=float, default=0.0, help="share of jobs that fail (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of schedules and failures (default: %(default)s)")
    add("--delay-s", type=float, default=0.0, help="delay until an object is handled (default: %(default)s)")
    add("--workers", type=int, default=4, help="objects handled concurrently (default: %(default)s)")
    add(
        "--interval",
        type=float,
        default=0.2,
        help="seconds between two lists of the trigger bucket (default: %(default)s)",
    )
    add("--drain", type=float, default=600, help="maximum seconds to wait for the last chain (default: %(default)s)")
    add("--settle", type=float, default=5, help="seconds to wait for duplicates after it (default: %(default)s)")
    add("--details", action="store_true", help="print all loads, chains and jobs, too")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _range(text: str) -> tuple[int, int]:
    minimum, _, maximum = text.partition("-")
    try:
        return int(minimum), int(maximum or minimum)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected MIN-MAX in milliseconds") from None
