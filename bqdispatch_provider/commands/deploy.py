"""``bqdispatch deploy``: set everything up in Cloud Composer, or print for Terraform what the account needs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bqdispatch_provider import __version__
from bqdispatch_provider.commands.access import UNKNOWN_ACCOUNT, Access
from bqdispatch_provider.commands.agreement import check_other_set_ups
from bqdispatch_provider.commands.checks import CheckResult
from bqdispatch_provider.commands.composer import Composer, Environment, OtherSetUp
from bqdispatch_provider.commands.gcloud import DeployError, Gcloud, Step
from bqdispatch_provider.commands.options import read_config
from bqdispatch_provider.commands.output import CANNOT_START, FAILED, OK, print_error
from bqdispatch_provider.commands.package_index import PackageIndex, check_own_index, find_wheel
from bqdispatch_provider.commands.packages import Wheel
from bqdispatch_provider.commands.pools import expected_pools
from bqdispatch_provider.commands.rights import Rights, required_rights
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_source import fetch, read_json
from bqdispatch_provider.connection_extra import ConnectionExtra
from bqdispatch_provider.core.connection import UpdatedConnection, accounts_of
from bqdispatch_provider.names import in_one_line, shell_joined


def composer(options: argparse.Namespace) -> int:
    """Set everything up in an environment of Cloud Composer, or print the commands.

    :param options: of the command line.
    :returns: the exit code: 1 when a step failed, 2 when options contradict each other.
    """
    if options.no_rights and (options.by_prefix or options.job_project):
        print_error(
            "--no-rights leaves all roles to Terraform, so --by-prefix and --job-project would do nothing: give "
            "Terraform by_prefix and job_projects instead, or leave --no-rights out"
        )
        return CANNOT_START
    config = read_config(options)
    try:
        wheel = None if options.published else find_wheel(options.wheel)
        gcloud = Gcloud(wheel.programs if wheel else ())
        environment = Environment.find(gcloud, options.environment, options.location, options.project)
        target = Composer(gcloud, environment, options.setup)
        connection = target.connection(_extra(options, config))
        extra = ConnectionExtra(options.setup.conn_id, connection.extra)
        account = environment.account_of(extra)
        for step in _steps(options, config, target, wheel, connection, extra=extra):
            if options.dry_run:
                print(step.as_comment() if step.done else f"{step.as_comment()}\n{step.as_typed()}")
                continue
            said = map(in_one_line, (f"{step.title} … {step.done}", *step.notes))
            print(*said, sep="\n  ", file=sys.stderr, flush=True)
            if not step.done:
                gcloud.run(step)
    except DeployError as error:
        print(in_one_line(str(error)), file=sys.stderr)  # its commands are pasted
        return FAILED
    if not options.dry_run:
        account = account or UNKNOWN_ACCOUNT  # that of another connection, which nobody can see from here
        print(
            f"Done. Now check it as the account {account}: `gcloud auth application-default login "
            f"--impersonate-service-account={account}`, then `{_smoke(options)}`. Then switch the DAG "
            f"{options.setup.dag_id} on. If the cloud function has run before, read docs/migration.md first",
            file=sys.stderr,
        )
    return OK


def _smoke(options: argparse.Namespace) -> str:
    """Return the command that checks what was deployed."""
    more = [f"--var={each}" for each in options.var]
    more += [f"--setup={options.setup.name}"] if options.setup.name else []
    return shell_joined(["bqdispatch", "smoke", "--config", options.config, *more])


def rights(options: argparse.Namespace) -> int:
    """Print the rights that the account needs, for Terraform's data source.

    :param options: of the command line.
    :returns: the exit code.
    """
    config = read_config(options).for_project(options.project)
    chain = accounts_of(options.impersonation_chain)
    print(json.dumps(_rights(options, config, chain).for_terraform(), indent=1))
    return OK


def _steps(
    options: argparse.Namespace,
    given: DispatchConfig,
    target: Composer,
    wheel: Wheel | None,
    connection: UpdatedConnection,
    *,
    extra: ConnectionExtra,
) -> Iterator[Step]:
    """Yield the steps. Each looks at what exists once those before it are done."""
    gcloud, environment = target.gcloud, target.environment
    config = given.for_project(environment.project)
    if wheel is None:
        check_own_index(gcloud, environment)
    others = environment.other_set_ups(options.setup)
    yield from _agreement(config, others)
    yield target.check_airflow()
    access = Access(
        gcloud,
        _rights(options, config, extra.impersonation_chain or []),
        options.setup,
        environment,
        others=others,
        former=connection.former,
        gcp_conn_id=extra.gcp_conn_id,
    )
    if not options.no_rights:
        yield from access.steps()
    if wheel:
        yield from PackageIndex(gcloud, wheel, environment, dry_run=options.dry_run).steps()
    yield target.package(wheel.version if wheel else __version__)
    before, after = target.pools(expected_pools(config, options.setup))
    yield from before
    yield target.variables(config, connection)
    if not options.no_rights:
        yield from access.left_behind(environment.former_config(options.setup))
    yield from after
    yield target.dag()


def _agreement(config: DispatchConfig, others: Sequence[OtherSetUp]) -> Iterator[Step]:
    """Compare the set-up with the others of the environment.

    :yields: what is not as it should be, as steps with nothing to do.
    :raises DeployError: if two of them would dispatch the same events.
    """
    for check in check_other_set_ups(config, {each.conn_id: each.config for each in others}):
        if check.result is CheckResult.FAILED:
            raise DeployError(f"{check.where} {check.finding}")
        if check.result is not CheckResult.OK:
            yield Step(check.where, (), done=check.finding)


def _extra(options: argparse.Namespace, config: DispatchConfig) -> dict[str, Any]:
    """Return the keys of the connection's extra that the options set."""
    url = str(config.url)
    # A document on this machine cannot be read there.
    extra: dict[str, Any] = (
        {"config_url": url} if url.startswith("gs://") else {"config": read_json(fetch(url, None, None), url)}
    )
    given = {
        "variables": dict(config.variables) or None,
        "gcp_conn_id": options.gcp_conn_id,
        "impersonation_chain": options.impersonation_chain,
    }
    return extra | {key: value for key, value in given.items() if value is not None}


def _rights(options: argparse.Namespace, config: DispatchConfig, chain: Sequence[str]) -> Rights:
    """Return the rights that the account needs.

    :param config: with its project filled in.
    :param chain: accounts that are impersonated.
    """
    return required_rights(
        config,
        options.setup,
        by_prefix=options.by_prefix,
        job_projects=options.job_project,
        chain=chain,
    )
