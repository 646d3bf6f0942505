"""The command line: ``bqdispatch run``, ``smoke``, ``quiet``, ``replay``, ``pools`` and ``deploy``.

Standard output carries documents, and tables of what was found, alone; logs and progress go to standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from bqdispatch_provider.config import ConfigError, DispatchConfig
from bqdispatch_provider.names import in_one_line
from bqdispatch_provider.pools import TOKEN, AirflowError, PoolsElsewhere, PoolsHere, compared, has_airflow, pools_of
from bqdispatch_provider.setups import SetUp

if TYPE_CHECKING:
    from bqdispatch_provider.rights import Rights
    from bqdispatch_provider.smoke import Check

OK, FAILED, UNUSABLE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


def _setup(name: str) -> SetUp:
    try:
        return SetUp(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_CONFIG = "gs:// or file:// URL, or a path"
_GO_CONFIG = "the environment variable CONFIG, a JSON document or its URL"
_GO_PROJECTS = ("GCLOUD_PROJECT", "GOOGLE_CLOUD_PROJECT", "GCP_PROJECT")
_SETUP: dict[str, Any] = {
    "type": _setup,
    "default": SetUp(),
    "metavar": "NAME",
    "help": "of several set-ups in one Airflow; its connection, pools and DAG are called bqdispatch_NAME…",
}
_VAR: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "NAME=VALUE",
    "help": "value for ${NAME} in the configuration",
}
POOLS_HELP = "print Airflow's pools for the limits, set them, or compare them"
POOLS_DESCRIPTION = (
    "Print Airflow's pools for the limits of the configuration, as `airflow pools import` reads them; or set or "
    "compare those of an Airflow. Exits with 1 when they differ, with 2 when they cannot be looked at."
)
POOLS_OPTIONS: dict[str, dict[str, Any]] = {
    "--import": {"action": "store_true", "dest": "set", "help": "make the pools, or change them"},
    "--check": {"action": "store_true", "help": "compare the pools with the configuration"},
    "--url": {
        "metavar": "URL",
        "help": f"of Airflow's page: by its REST API, with the token in {TOKEN}; by default the `airflow` command of "
        "this environment is used",
    },
    "--config": {"metavar": "URL", "help": f"{_CONFIG}; by default that of the set-up's connection"},
    "--setup": _SETUP,
    "--var": _VAR,
}
"""What may be said of pools, to this command line and to Airflow's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: by default those of the process.
    :returns: 0, 1 when something went wrong, 2 when the configuration, or Airflow, cannot be used; 130 when it was
        interrupted, 141 when nobody reads what it prints, as the shell has it for the signals.
    """
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be written once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except KeyboardInterrupt:
        return INTERRUPTED


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="bqdispatch", description="BqTail's dispatcher.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="dispatch, and print the response document",
        description="Dispatch until the time to live is over, and print the response document. "
        "Exits with 0, with 1 when its status is error, with 2 when the configuration cannot be used.",
    )
    run.add_argument("--once", action="store_true", help="one cycle only")
    run.add_argument("-v", "--verbose", action="store_true", help="log every dispatched event")
    run.set_defaults(act=_run)
    pools = commands.add_parser("pools", help=POOLS_HELP, description=POOLS_DESCRIPTION)
    for flag, more in POOLS_OPTIONS.items():
        pools.add_argument(flag, **more)
    pools.set_defaults(act=_pools, verbose=False)
    replay = commands.add_parser(
        "replay",
        help="list what is in quarantine or undecided, or put it back",
        description="List what was set aside under ErrorURL: URL, since when it waits, and why. With URLs, put these "
        "back into the task folder, where they are dispatched as any other: a window is fired although one of its name "
        "was fired before, for those of its folders that were not loaded. Windows that wait for a decision are listed "
        "and put back too, and a location object (.loc) that an error names. Exits with 1 when something could not be "
        "put back.",
    )
    replay.add_argument("urls", nargs="*", metavar="URL", help="as it is listed, or the object's in the task folder")
    replay.add_argument("--all", action="store_true", help="put everything back")
    replay.set_defaults(act=_replay, verbose=False)
    smoke = commands.add_parser(
        "smoke",
        help="check a set-up: permissions, jobs, pools, and a trace and a window of its own",
        description="Check a set-up, and dispatch a trace and a window in a folder of their own inside the task "
        "folder, where BqTail sees nothing of them. Prints a table of what was checked; exits with 1 when something is "
        "wrong.",
    )
    smoke.add_argument("--bqtail-config", metavar="URL", help="BqTail's configuration: see that both agree")
    smoke.set_defaults(act=_smoke, verbose=False)
    quiet = commands.add_parser(
        "quiet",
        help="see that no dispatcher is at work, before another kind of it is started",
        description="See that no dispatcher, of whatever kind, has written anything for ten minutes, or for as long as "
        "a run lasts. Exits with 1 when one has.",
    )
    quiet.set_defaults(act=_quiet, verbose=False)
    targets = commands.add_parser("deploy", help="set everything up in Cloud Composer").add_subparsers(required=True)
    composer = targets.add_parser(
        "composer",
        help="set everything up in an environment of Cloud Composer 3",
        description="Grant the environment's service account its roles, upload the wheel and have the environment "
        "install it, set the connection, the pools and the slots, and put the DAG there. Run it with gcloud logged in, "
        "as often as wanted: what is done already is left.",
    )
    composer.add_argument("--environment", required=True, metavar="NAME")
    composer.add_argument("--location", required=True, metavar="REGION", help="of the environment")
    composer.add_argument("--project", metavar="ID", help="of the environment; by default gcloud's")
    composer.add_argument("--dry-run", action="store_true", help="print the commands, and change nothing")
    package = composer.add_mutually_exclusive_group()
    package.add_argument(
        "--wheel",
        metavar="WHEEL",
        help="path, or URL with #sha256=…; by default it is built, in a checkout of the project",
    )
    package.add_argument(
        "--published",
        action="store_true",
        help="upload nothing: the environment's own index has this version, and nobody else may publish it there",
    )
    composer.add_argument(
        "--gcp-conn-id",
        metavar="ID",
        help="the connection whose credentials are used; '' takes it out. By default, what is there stays",
    )
    composer.add_argument(
        "--impersonation-chain",
        metavar="ACCOUNTS",
        help="service accounts, comma-separated; '' takes them out. By default, what is there stays",
    )
    composer.add_argument("--no-rights", action="store_true", help="leave roles and their bindings to Terraform")
    composer.set_defaults(act=_deploy, verbose=False)
    rights = targets.add_parser(
        "rights",
        help="print what the service account needs, for Terraform",
        description="Check the configuration, and print the roles that it takes and where they are bound, as the data "
        "source `external` of Terraform reads them.",
    )
    rights.set_defaults(act=_rights, verbose=False)
    rights.add_argument("--project", metavar="ID", help="for a configuration that names none")
    for command in (composer, rights):
        command.add_argument(
            "--by-prefix", action="store_true", help="limit the account to the folders that the configuration names"
        )
        command.add_argument(
            "--job-project",
            action="append",
            default=[],
            metavar="ID",
            help="another project with traces, beside ProjectID; may be repeated",
        )
    for command in (smoke, composer, rights):
        command.add_argument("--setup", **_SETUP)
    run.add_argument("--config", metavar="URL", help=f"{_CONFIG}; by default what the Go service takes: {_GO_CONFIG}")
    for command in (smoke, quiet, replay, composer, rights):
        command.add_argument("--config", required=True, metavar="URL", help=_CONFIG)
    for command in (run, smoke, quiet, replay, composer, rights):
        command.add_argument("--var", **_VAR)
    options = parser.parse_args(arguments)
    _log_to_stderr(options.verbose)
    return _act(options.act, options)


def _act(act: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return act(options)
    except (ConfigError, AirflowError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE


def _run(options: argparse.Namespace) -> int:
    # A hundred thousand objects are kept until the end of a cycle: looking for garbage among them again and again takes
    # a fifth of its CPU.
    gc.set_threshold(100_000, 50, 1000)
    config = _config(options) if options.config else _config_of_go(options)
    from bqdispatch_provider.dispatcher import Dispatcher  # noqa: PLC0415  (pools needs no client)

    stopped = Event()
    with _credentials():
        dispatcher = Dispatcher(config, go_on=lambda: not stopped.is_set())
    with dispatcher, _Progress() as progress, _drained(stopped):
        report = dispatcher.run(time_to_live=0 if options.once else None, progress=progress.show)
    print(json.dumps(report.to_dict(), indent=1))
    return OK if report.ok else FAILED


def _smoke(options: argparse.Namespace) -> int:
    config = _config(options)
    bqtail = _config(options, options.bqtail_config) if options.bqtail_config else None
    from bqdispatch_provider.dispatcher import default_session, default_storage_client  # noqa: PLC0415
    from bqdispatch_provider.smoke import Smoke  # noqa: PLC0415

    with _credentials():
        client, session = default_storage_client(config), default_session()
    try:
        pools: Any = "no Airflow is set up in this environment"
        if has_airflow():
            pools = compared(PoolsHere().read(), pools_of(config, options.setup), options.setup.task_slots())
    except AirflowError as error:
        pools = str(error)
    stopped = Event()
    smoke = Smoke(
        config.for_project(client.project),
        client,
        session,
        pools,
        bqtail=bqtail,
        others=_other_folders(options.setup),
        go_on=lambda: not stopped.is_set(),
    )
    found = []
    with _Progress("Looking at the set-up …") as progress, _drained(stopped):
        for check in smoke.checks():
            found.append(check)
            progress.say(f"{check.what}: {check.verdict}")
    code = _table_of(found)
    return INTERRUPTED if stopped.is_set() else code


def _other_folders(setup: SetUp) -> Mapping[str, str | Exception] | str:
    """The task folders of the other connections in the Airflow of this environment, or why they cannot be told."""
    if not has_airflow():
        return "no Airflow is set up in this environment"
    with _stdout_on_stderr():
        from bqdispatch_provider.hooks import BqDispatchHook  # noqa: PLC0415  (Airflow takes seconds)

        try:
            return BqDispatchHook.task_folders(but=setup.conn_id)
        except Exception as error:
            return f"the connections cannot be listed: {type(error).__name__}; has `airflow db migrate` been run?"


def _quiet(options: argparse.Namespace) -> int:
    config = _config(options)
    from bqdispatch_provider.dispatcher import default_storage_client  # noqa: PLC0415
    from bqdispatch_provider.quiet import Quiet  # noqa: PLC0415

    with _credentials():
        client = default_storage_client(config)
    return _table_of(list(Quiet(config.for_project(client.project), client).checks()))


@contextmanager
def _credentials() -> Iterator[None]:
    """Tell of missing credentials as of a configuration that cannot be used."""
    from google.auth.exceptions import DefaultCredentialsError  # noqa: PLC0415  (pools needs no client)

    try:
        yield
    except DefaultCredentialsError as error:
        raise ConfigError([f"there are no credentials for Google Cloud: {error}"]) from error


def _table_of(checks: Sequence[Check]) -> int:
    rows = [(each.verdict, each.what, each.where, each.said) for each in checks]
    _show(("", "checked", "where", "found"), rows)
    return FAILED if any(each.verdict == "failed" for each in checks) else OK


def _deploy(options: argparse.Namespace) -> int:
    from bqdispatch_provider.deploy import DeployError, Deployment  # noqa: PLC0415  (the others need none of it)

    config = _config(options)
    url = str(config.url)
    # What lies on this machine cannot be read there.
    connection: dict[str, Any] = (
        {"config_url": url} if url.startswith("gs://") else {"config": json.loads(_local(options.config).read_text())}
    )
    given = {
        "variables": dict(config.variables) or None,
        "gcp_conn_id": options.gcp_conn_id,
        "impersonation_chain": options.impersonation_chain,
    }
    connection |= {key: value for key, value in given.items() if value is not None}
    try:
        there = Deployment(
            config,
            connection,
            pools_of(config, options.setup),
            setup=options.setup,
            project=options.project,
            wheel=options.wheel,
            published=options.published,
            rights=None if options.no_rights else partial(_rights_of, options),
            dry=options.dry_run,
        )
        environment = there.look(options.environment, options.location)
        for step in there.steps(environment):
            if options.dry_run:
                print(step.as_comment() if step.done else f"{step.as_comment()}\n{step.as_typed()}")
                continue
            print(f"{step.what} … {step.done}", *map(in_one_line, step.notes), sep="\n  ", file=sys.stderr, flush=True)
            if not step.done:
                there.run(step)
    except DeployError as error:
        print(_printable(str(error)), file=sys.stderr)
        return FAILED
    if not options.dry_run:
        print(f"Done. {_next(options, environment.account)}", file=sys.stderr)
    return OK


def _rights(options: argparse.Namespace) -> int:
    config = _config(options).for_project(options.project)
    print(json.dumps(_rights_of(options, config).for_terraform(), indent=1))
    return OK


def _rights_of(options: argparse.Namespace, config: DispatchConfig) -> Rights:
    from bqdispatch_provider.rights import rights_of  # noqa: PLC0415  (the others need none of it)

    return rights_of(config, options.setup, by_prefix=options.by_prefix, job_projects=options.job_project)


def _next(options: argparse.Namespace, account: str) -> str:
    return (
        f"Now see that it works as the account {account} (`gcloud auth application-default login "
        f"--impersonate-service-account={account}`, then `bqdispatch smoke --config {options.config}`), and switch the "
        f"DAG {options.setup.dag_id} on; where the cloud function has run, docs/migration.md first"
    )


def _local(given: str) -> Path:
    return Path(unquote(urlsplit(given).path)) if "://" in given else Path(given)


def _replay(options: argparse.Namespace) -> int:
    config = _config(options)
    import requests  # noqa: PLC0415  (pools needs no client)
    from google.api_core.exceptions import GoogleAPIError  # noqa: PLC0415
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

    from bqdispatch_provider.dispatcher import Dispatcher, default_storage_client  # noqa: PLC0415
    from bqdispatch_provider.quarantine import QuarantineStore, ReplayError  # noqa: PLC0415
    from bqdispatch_provider.replay import Decisions  # noqa: PLC0415

    with _credentials():
        client = default_storage_client(config)
    refused = (GoogleAPIError, GoogleAuthError, requests.RequestException)
    with (
        QuarantineStore(client, config.for_project(client.project)) as store,
        Dispatcher(config, client) as dispatcher,
    ):
        decisions = Decisions(dispatcher)
        put_back = partial(decisions.put_back, store)
        try:
            found = store.listing()
            undecided = decisions.listing()
        except refused as error:
            said = (
                f"{config.error_url!r} or {config.async_task_url!r} cannot be listed: {type(error).__name__}: {error}"
            )
            print(_printable(said), file=sys.stderr)
            return FAILED
        if not options.urls and not options.all:
            rows = [(each.url, f"{each.since:%Y-%m-%d %H:%M:%S}", each.reason) for each in found]
            rows += [(each.url, f"{each.there.created:%Y-%m-%d %H:%M:%S}", each.reason) for each in undecided]
            _show(("in quarantine", "since (UTC)", "why"), rows)
            if not rows:
                print("Nothing is in quarantine.", file=sys.stderr)
            return OK
        acts: dict[str, Callable[[], str]] = {}
        if options.all:
            acts = {each.url: partial(put_back, each) for each in found}
            acts |= {each.url: partial(decisions.fire, each) for each in undecided}
        code = OK
        for url in dict.fromkeys(options.urls):
            asked = [each for each in found if url in (each.url, _printable(each.url), store.task_url(each))]
            waiting = [each for each in undecided if url in (each.url, _printable(each.url))]
            if not asked and not waiting and (missed := decisions.missed(url)) is not None:
                waiting = [missed]
            acts |= {each.url: partial(put_back, each) for each in asked}
            acts |= {each.url: partial(decisions.fire, each) for each in waiting}
            if not asked and not waiting:
                print(f"{_printable(url)}: nothing of that URL is in quarantine; list what is there", file=sys.stderr)
                code = FAILED
        for url, act in acts.items():
            try:
                print(_printable(act()))
            except ReplayError as error:
                print(_printable(str(error)), file=sys.stderr)
                code = FAILED
            except refused as error:
                said = f"{url!r} was not put back, try again: {type(error).__name__}: {error}"
                print(_printable(said), file=sys.stderr)
                code = FAILED
    return code


def _printable(text: str) -> str:
    """Text of untrusted names without what a terminal obeys; two different texts stay different."""
    return "".join(
        each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in text
    )


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, lines with tabs elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print(*map(_printable, row), sep="\t")
    elif rows:
        from rich.console import Console  # noqa: PLC0415  (only a terminal needs it)
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        styles = {"ok": "green", "warning": "yellow", "failed": "bold red"}
        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(_printable(each), styles.get(each, ""), overflow="fold") for each in row))
        Console().print(table)


def _pools(options: argparse.Namespace) -> int:
    wanted = pools_of(_config(options) if options.config else _connected(options), options.setup)
    if not options.set and not options.check:
        print(json.dumps(wanted, indent=1))
        return OK
    airflow = _elsewhere(options.url) if options.url else PoolsHere()
    if options.set:
        airflow.set(wanted)
        for name, pool in wanted.items():
            print(f"pool {name!r} has {pool['slots']} slots")
        return OK
    compared_pools = compared(airflow.read(wanted), wanted, options.setup.task_slots())
    found = [f"pool {name!r} {said}" for name, said in compared_pools.items() if said]
    for difference in found or ["the pools agree with the configuration"]:
        print(difference)
    if found:
        print("`bqdispatch pools --import`, with the same options, sets them", file=sys.stderr)
    return FAILED if found else OK


def _elsewhere(url: str) -> PoolsElsewhere:
    token = os.environ.get(TOKEN)
    if not token:
        raise AirflowError(f"{TOKEN} is not in the environment: it has to hold the token for Airflow's REST API")
    return PoolsElsewhere(url, token)


def _connected(options: argparse.Namespace) -> DispatchConfig:
    """The configuration to which the set-up's connection leads in the Airflow of this environment."""
    if not has_airflow():
        raise AirflowError(
            f"--config is missing, and no Airflow is set up in this environment whose connection "
            f"{options.setup.conn_id!r} could tell where the configuration is"
        )
    with _stdout_on_stderr():
        from bqdispatch_provider.compat import AirflowException  # noqa: PLC0415  (Airflow takes seconds)
        from bqdispatch_provider.hooks import BqDispatchHook  # noqa: PLC0415

        try:
            return BqDispatchHook.from_database(options.setup.conn_id).get_config(_variables(options))
        except AirflowException as error:
            raise AirflowError(f"the connection {options.setup.conn_id!r} cannot be read: {error}") from error


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Standard output carries documents alone, and some of Airflow's loggers have kept a hold of it."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def airflow_pools(options: argparse.Namespace) -> None:
    """``airflow bqdispatch pools``: the same, as one of Airflow's commands."""
    sys.exit(_act(_pools, options))


def _config(options: argparse.Namespace, given: str | None = None) -> DispatchConfig:
    given = given or str(options.config)
    url = given if "://" in given else Path(given).resolve().as_uri()
    return DispatchConfig.from_url(url, _variables(options))


def _config_of_go(options: argparse.Namespace) -> DispatchConfig:
    """The configuration as the Go service takes it from its environment (docs/migration.md)."""
    given = os.environ.get("CONFIG", "").strip()
    if not given:
        raise ConfigError([f"there is neither --config nor {_GO_CONFIG}"])
    in_place = given.startswith("{")
    config = DispatchConfig.from_json(given, _variables(options)) if in_place else _config(options, given)
    project = next((name for variable in _GO_PROJECTS if (name := os.environ.get(variable))), None)
    region = os.environ.get("FUNCTION_REGION")
    longest = float(os.environ.get("FUNCTION_TIMEOUT_SEC") or "inf") / 60
    return replace(
        config,
        project_id=config.project_id or project,
        region=region if region and config.region == DispatchConfig.region else config.region,
        time_to_live_in_min=min(config.time_to_live_in_min, longest),
    )


def _variables(options: argparse.Namespace) -> dict[str, str]:
    malformed = [each for each in options.var if "=" not in each]
    if malformed:
        raise ConfigError([f"--var {each!r}; expected NAME=VALUE" for each in malformed])
    return dict(each.split("=", 1) for each in options.var)


class _OneLine(logging.Formatter):
    """One line for each message, whatever names, and services that quote them, have put into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = in_one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(in_one_line, super().formatException(ei).split("\n")))


def _log_to_stderr(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    quiet = sys.stderr.isatty() and not verbose
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("bqdispatch_provider").setLevel(level)


@contextmanager
def _drained(stopped: Event) -> Iterator[None]:
    """Let SIGTERM, and Ctrl-C once, finish what was begun: killed between copy and delete, an event goes out twice."""

    def stop(number: int, _: object) -> None:
        stopped.set()
        signal.signal(number, before[number])
        print("Stopping: what was begun is finished …", file=sys.stderr)

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """A line on a terminal that says how far a run is; nothing where there is no terminal.

    :param first: what it says at first.
    """

    def __init__(self, first: str = "Looking at the task folder …") -> None:
        self._first = first
        self._shown = sys.stderr.isatty()
        self._status: Any = None

    def __enter__(self) -> _Progress:
        if self._shown:
            from rich.console import Console  # noqa: PLC0415  (only a terminal needs it)

            self._status = Console(stderr=True).status(self._first)
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, report: Any) -> None:
        self.say(f"Cycle {report.cycles}: {report.in_words()}")

    def say(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)


if __name__ == "__main__":
    sys.exit(main())
