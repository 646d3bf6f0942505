"""``bqdispatch deploy``: set everything up in Cloud Composer, or print for Terraform what the account needs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bqdispatch_provider import __version__
from bqdispatch_provider.commands.access import Access
from bqdispatch_provider.commands.agreement import check_other_set_ups
from bqdispatch_provider.commands.checks import CheckResult
from bqdispatch_provider.commands.composer import Composer, Environment
from bqdispatch_provider.commands.gcloud import DeployError, Gcloud, Step
from bqdispatch_provider.commands.options import read_config
from bqdispatch_provider.commands.output import FAILED, OK, print_error
from bqdispatch_provider.commands.package_index import PackageIndex, check_own_index, find_wheel
from bqdispatch_provider.commands.packages import Wheel
from bqdispatch_provider.commands.pools import expected_pools
from bqdispatch_provider.commands.rights import Rights, required_rights
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.connection_extra import ConnectionExtra
from bqdispatch_provider.core.connection import UpdatedConnection, accounts_of, stored_extra
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.names import in_one_line

_GOOGLE = "google_cloud_default"
"""The Google Cloud connection that works as the environment's account."""

_CONNECTION = "AIRFLOW_CONN_"
"""Variables whose names begin so hold connections."""


def composer(options: argparse.Namespace) -> int:
    """Set everything up in an environment of Cloud Composer, or print the commands.

    :param options: of the command line.
    :returns: the exit code: 1 when a step failed.
    """
    config = read_config(options)
    try:
        wheel = None if options.published else find_wheel(options.wheel)
        gcloud = Gcloud(wheel.programs if wheel else ())
        environment = Environment.find(gcloud, options.environment, options.location, options.project)
        target = Composer(gcloud, environment, options.setup)
        connection = target.connection(_extra(options, config))
        account = (environment.account, *accounts_of(connection.extra.get("impersonation_chain")))[-1]
        for step in _steps(options, config, target, wheel, connection):
            if options.dry_run:
                print(step.as_comment() if step.done else f"{step.as_comment()}\n{step.as_typed()}")
                continue
            print(f"{step.title} … {step.done}", *map(in_one_line, step.notes), sep="\n  ", file=sys.stderr, flush=True)
            if not step.done:
                gcloud.run(step)
    except DeployError as error:
        print_error(error)
        return FAILED
    if not options.dry_run:
        print(
            f"Done. Now check it as the account {account}: `gcloud auth application-default login "
            f"--impersonate-service-account={account}`, then `bqdispatch smoke --config {options.config}`. Then switch "
            f"the DAG {options.setup.dag_id} on. If the cloud function has run before, read docs/migration.md first",
            file=sys.stderr,
        )
    return OK


def rights(options: argparse.Namespace) -> int:
    """Print the rights that the account needs, for Terraform's data source.

    :param options: of the command line.
    :returns: the exit code.
    """
    config = read_config(options).for_project(options.project)
    print(json.dumps(_rights(options, config, options.impersonation_chain).for_terraform(), indent=1))
    return OK


def _steps(
    options: argparse.Namespace,
    given: DispatchConfig,
    target: Composer,
    wheel: Wheel | None,
    connection: UpdatedConnection,
) -> Iterator[Step]:
    """Yield the steps. Each looks at what exists once those before it are done."""
    gcloud, environment = target.gcloud, target.environment
    config = given.for_project(environment.project)
    if wheel is None:
        check_own_index(gcloud, environment)
    yield from _other_set_ups(config, environment, options.setup)
    yield target.check_airflow()
    if not options.no_rights:
        if (google := connection.extra.get("gcp_conn_id", _GOOGLE)) != _GOOGLE:
            done = f"if the connection {google} works as another one than {environment.account}, grant it these roles"
            yield Step("account", (), done=done)
        rights = _rights(options, config, connection.extra.get("impersonation_chain"))
        yield from Access(gcloud, rights, options.setup, environment).steps()
    if wheel:
        yield from PackageIndex(gcloud, wheel, environment, dry_run=options.dry_run).steps()
    yield target.package(wheel.version if wheel else __version__)
    yield target.variables(config, connection)
    yield from target.pools(expected_pools(config, options.setup))
    yield target.dag()


def _other_set_ups(config: DispatchConfig, environment: Environment, setup: SetUp) -> Iterator[Step]:
    """Compare the set-up with those whose connections are variables of the environment.

    :yields: what is not as it should be, as steps with nothing to do.
    :raises DeployError: if two would dispatch the same events.
    """
    found: dict[str, DispatchConfig | Exception] = {}
    for name, value in sorted(environment.variables.items()):
        if not name.startswith(_CONNECTION) or name == setup.conn_variable:
            continue
        conn_id = name.removeprefix(_CONNECTION).lower()
        try:
            if (extra := stored_extra(value)) is not None:
                found[conn_id] = ConnectionExtra(conn_id, extra).config(None, lambda: None)
        except (ConfigError, ValueError) as error:
            found[conn_id] = error
    for check in check_other_set_ups(config, found):
        if check.result is CheckResult.FAILED:
            raise DeployError(f"{check.where} {check.finding}")
        if check.result is not CheckResult.OK:
            yield Step(f"{check.where}", (), done=check.finding)


def _extra(options: argparse.Namespace, config: DispatchConfig) -> dict[str, Any]:
    """Return the keys of the connection's extra that the options set."""
    url = str(config.url)
    # A document on this machine cannot be read there.
    extra: dict[str, Any] = (
        {"config_url": url} if url.startswith("gs://") else {"config": json.loads(_path(options.config).read_text())}
    )
    given = {
        "variables": dict(config.variables) or None,
        "gcp_conn_id": options.gcp_conn_id,
        "impersonation_chain": options.impersonation_chain,
    }
    return extra | {key: value for key, value in given.items() if value is not None}


def _path(given: str) -> Path:
    return Path(unquote(urlsplit(given).path)) if "://" in given else Path(given)


def _rights(options: argparse.Namespace, config: DispatchConfig, chain: Any) -> Rights:
    """Return the rights that the account needs.

    :param config: with its project filled in.
    :param chain: the connection's ``impersonation_chain``.
    """
    return required_rights(
        config,
        options.setup,
        by_prefix=options.by_prefix,
        job_projects=options.job_project,
        chain=accounts_of(chain),
    )
