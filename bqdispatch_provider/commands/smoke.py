"""``bqdispatch smoke``: check that a set-up works, by looking at it and by dispatching two events of its own."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable, Iterator, Mapping

import requests
from google.cloud.storage import Client

from bqdispatch_provider.commands.agreement import check_bqtail, check_other_set_ups, check_pools
from bqdispatch_provider.commands.bucket_checks import BucketChecks
from bqdispatch_provider.commands.checks import Check, CheckResult, print_checks
from bqdispatch_provider.commands.job_checks import check_jobs
from bqdispatch_provider.commands.options import connect, google_credentials, read_config
from bqdispatch_provider.commands.output import INTERRUPTED, airflow_to_stderr, graceful_stop, progress
from bqdispatch_provider.commands.pools import (
    AirflowError,
    LocalPools,
    expected_pools,
    has_airflow,
    pool_problems,
    slot_problems,
)
from bqdispatch_provider.commands.trial import FOLDER, Trial
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.clients import default_session
from bqdispatch_provider.gcp.threads import StopRequest

_NO_AIRFLOW = "no Airflow is set up in this environment"


def execute(options: argparse.Namespace) -> int:
    """Check a set-up, and print a table of what was found.

    :param options: of the command line.
    :returns: the exit code: 1 when something is wrong.
    """
    config, client = connect(options)
    bqtail = _bqtail_config(options) if options.bqtail_config else None
    with google_credentials():
        session = default_session()
    stop = StopRequest()
    checks = check_set_up(
        config,
        client,
        session,
        _pool_problems(config, options.setup),
        bqtail=bqtail,
        others=_other_configs(options.setup),
        go_on=lambda: not stop.is_made,
    )
    found = []
    with progress("Looking at the set-up …") as show, graceful_stop(stop):
        for check in checks:
            found.append(check)
            show(f"{check.what}: {check.result}")
    code = print_checks(found)
    return INTERRUPTED if stop.is_made else code


def _bqtail_config(options: argparse.Namespace) -> DispatchConfig:
    try:
        return read_config(options, options.bqtail_config)
    except ConfigError as error:
        raise ConfigError(error.findings, f"BqTail ({options.bqtail_config!r})") from error


def _pool_problems(config: DispatchConfig, setup: SetUp) -> Mapping[str, str] | str:
    """Return what is wrong with the pools of this environment's Airflow, and what to do, or why that is unknown."""
    if not has_airflow():
        return _NO_AIRFLOW
    wanted = expected_pools(config, setup)
    try:
        problems = pool_problems(LocalPools().read(), wanted)
    except AirflowError as error:
        return str(error)
    step = f": `{setup.pools_command}` sets it"
    slots = slot_problems(wanted, setup)
    return {name: "; ".join(filter(None, [slots[name], said and said + step])) for name, said in problems.items()}


def _other_configs(setup: SetUp) -> Mapping[str, DispatchConfig | Exception] | str:
    """Return the configurations of the other connections in this environment's Airflow, or why they are unknown."""
    if not has_airflow():
        return _NO_AIRFLOW
    with airflow_to_stderr():
        try:
            from bqdispatch_provider.hooks import BqDispatchHook  # noqa: PLC0415  (Airflow takes seconds)

            return BqDispatchHook.configs(but=setup.conn_id)
        except Exception as error:
            return f"the connections cannot be listed ({type(error).__name__}): check that `airflow db migrate` has run"


def check_set_up(
    config: DispatchConfig,
    client: Client,
    session: requests.Session,
    pools: Mapping[str, str] | str,
    *,
    bqtail: DispatchConfig | None = None,
    others: Mapping[str, DispatchConfig | Exception] | str | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Check]:
    """Yield the checks of a set-up, one after the other.

    The trial writes into the task folder. However this ends, its objects are gone then.

    :param config: of the set-up, with its project filled in.
    :param client: a ``google.cloud.storage.Client``.
    :param session: a ``requests.Session`` with credentials for BigQuery.
    :param pools: what is wrong with each of Airflow's pools, and what to do, empty when nothing is; or why that is
        unknown.
    :param bqtail: BqTail's own configuration, which has to agree; ``None``: not compared.
    :param others: the configurations of Airflow's other connections by their IDs, or why one is unknown; or why all
        are; ``None``: not compared.
    :param go_on: asked while the trial waits for its events.
    """
    for mistake in config.ignored_mistakes:
        yield Check("configuration", config.url or "", CheckResult.FAILED, mistake)
    trial_id = uuid.uuid4().hex[:12]
    with Dispatcher(config, client, session) as dispatcher:
        buckets = BucketChecks(config, client, dispatcher.store, f"{FOLDER}/{trial_id}")
        can_try = yield from buckets.checks()
        jobs = yield from check_jobs(dispatcher)
    if bqtail is not None:
        yield from check_bqtail(config, bqtail)
    if others is not None:
        yield from check_other_set_ups(config, others)
    yield from check_pools(pools)
    if can_try:
        trial = Trial(config, client, session, trial_id, jobs.finished, location=jobs.location, go_on=go_on)
        yield from trial.checks()
    else:
        finding = "needs the permissions on the task folder, and a task bucket from which objects can be deleted"
        yield Check("trial", f"{config.async_task_url}{FOLDER}", CheckResult.NOT_CHECKED, finding)
