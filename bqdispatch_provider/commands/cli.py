"""The command line ``bqdispatch``: its parser, and the exit codes of commands that fail.

A command's module is imported only when that command is asked for. So ``--help`` and ``pools`` load no Google client.
"""

from __future__ import annotations

import argparse
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from bqdispatch_provider import __version__
from bqdispatch_provider.commands.options import CONFIG_VARIABLE, project_id
from bqdispatch_provider.commands.output import BROKEN_PIPE, CANNOT_START, INTERRUPTED, log_to_stderr
from bqdispatch_provider.commands.pools import TOKEN_VARIABLE, AirflowError
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core.setups import SetUp


def _setup(name: str) -> SetUp:
    try:
        return SetUp(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_CONFIG_HELP = "the configuration document: a gs:// or file:// URL, or a path"
_SETUP: dict[str, Any] = {
    "type": _setup,
    "default": SetUp(),
    "metavar": "NAME",
    "help": "one of several set-ups in an Airflow: its connection, pools and DAG are called bqdispatch_NAME…",
}
_VAR: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "NAME=VALUE",
    "help": "a value for ${NAME} in the configuration; may be repeated",
}
DESCRIPTIONS = {
    "run": "Dispatch until the time to live is over, and print the response document. Exits with 1 when its status is "
    "error, with 2 when the configuration is invalid.",
    "smoke": "Check a set-up: permissions, settings, jobs, pools, and two events of its own. These are a trace and a "
    "window in a folder inside the task folder, where BqTail does not see them. Prints a table of the checks. Exits "
    "with 1 when something is wrong.",
    "check-idle": "Check that no dispatcher is at work, before you start another kind of it. No dispatcher, of "
    "whatever kind, may have written anything for ten minutes, or for as long as a run lasts. Exits with 1 when one "
    "has.",
    "replay": "List what is in quarantine or waits for a decision, or put it back. Without URLs, prints the URL, since "
    "when it waits, and why. With URLs, puts these back into the task folder, where they are dispatched like any "
    "other. A window is then fired even if its name was fired before. Folders of it that were loaded are left out. "
    "But if the file that made it was not loaded, whatever still lies in that file's folder may be loaded again. The "
    "URL of a location object (.loc) that an error names fires its folder. Exits with 1 when something was not put "
    "back.",
    "status": "Print how dispatching goes. Looks once, and prints health, lanes, limits, the events that have waited "
    "longest with their reasons, and what is in quarantine. Exits with 1 when it does not go well.",
    "top": "Show how dispatching goes, live. The same as status, every ten seconds, until Ctrl-C.",
    "explain": "Explain why an event waits. Prints where it stands, since when, why, and what happens next. Exits with "
    "1 when no such event is found.",
    "pools": "Print Airflow's pools for the limits, set them, or compare them. They are printed as `airflow pools "
    "import` reads them. Exits with 1 when those of an Airflow differ, with 2 when they cannot be read or set.",
    "composer": "Set everything up in an environment of Cloud Composer 3. Grants roles to the service account, "
    "uploads the wheel and has the environment install it, sets the connection, the pools and the slots, and "
    "copies the DAG there. Log in with gcloud first. Run it as often as you like: it changes only what differs.",
    "rights": "Print what the service account needs, for Terraform. Checks the configuration, and prints roles and "
    "where to bind them in the form that Terraform's data source `external` reads.",
}
"""Help of each command. The first sentence stands in the list of commands."""

POOLS_OPTIONS: dict[str, dict[str, Any]] = {
    "--import": {"action": "store_true", "dest": "set", "help": "make the pools, or change them"},
    "--check": {
        "action": "store_true",
        "help": "compare the pools with the configuration, after an --import",
    },
    "--url": {
        "metavar": "URL",
        "help": f"address of Airflow's page, to use its REST API with the token in {TOKEN_VARIABLE}; by default the "
        "`airflow` command of this environment is used",
    },
    "--config": {"metavar": "URL", "help": f"{_CONFIG_HELP}; by default that of the set-up's connection"},
    "--setup": _SETUP,
    "--var": _VAR,
}
"""Options of ``bqdispatch pools``, and of ``airflow bqdispatch pools``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: by default those of the process.
    :returns: the exit code: 0; 1 when something is wrong or failed; 2 when the options or the configuration are
        invalid, or Airflow cannot be reached; 130 when interrupted; 141 when nobody reads the output.
    """
    try:
        try:
            options = _parser().parse_args(arguments)
            log_to_stderr(options.verbose)
            return _execute(options.command, options)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would write what is left in the buffer once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED


def airflow_pools(options: argparse.Namespace) -> None:
    """Run ``airflow bqdispatch pools``, which does the same as ``bqdispatch pools``.

    :raises SystemExit: with the exit code.
    """
    logging.getLogger().handlers.clear()  # Airflow's write to standard output
    log_to_stderr(verbose=False)
    sys.exit(_execute("pools:execute", options))


def _execute(command: str, options: argparse.Namespace) -> int:
    """Import a command's module, and execute the command.

    :param command: module in this room and function, such as ``run:execute``.
    :returns: the exit code.
    """
    try:
        return int(pkgutil.resolve_name(f"bqdispatch_provider.commands.{command}")(options))
    except (ConfigError, AirflowError) as error:
        print(error, file=sys.stderr)
        return CANNOT_START


# The parser


def summary(command: str) -> str:
    """Return the first sentence of a command's description, as the list of commands has it."""
    sentence = DESCRIPTIONS[command].partition(". ")[0]
    return sentence[0].lower() + sentence[1:]


def _add_command(commands: Any, name: str, execute: str) -> argparse.ArgumentParser:
    """Add a command.

    :param commands: to add it to.
    :param name: its name.
    :param execute: its module and function, for :func:`_execute`.
    :returns: the parser of its options.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary(name), description=DESCRIPTIONS[name])
    parser.set_defaults(command=execute)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bqdispatch", description="BqTail's dispatcher.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(required=True)
    run = _add_command(commands, "run", "run:execute")
    run.add_argument("--once", action="store_true", help="run one cycle only")
    run.add_argument("-v", "--verbose", action="store_true", help="log every dispatched event")
    by_default = f"by default the environment variable {CONFIG_VARIABLE}, as in the Go service: the document or its URL"
    run.add_argument("--config", metavar="URL", help=f"{_CONFIG_HELP}; {by_default}")
    run.add_argument("--var", **_VAR)
    smoke = _add_command(commands, "smoke", "smoke:execute")
    smoke.add_argument("--bqtail-config", metavar="URL", help="BqTail's configuration, to see that both agree")
    _add_config(smoke)
    smoke.add_argument("--setup", **_SETUP)
    _add_config(_add_command(commands, "check-idle", "check_idle:execute"))
    replay = _add_command(commands, "replay", "replay_command:execute")
    replay.add_argument("urls", nargs="*", metavar="URL", help="as listed, or the object's URL in the task folder")
    replay.add_argument("--all", action="store_true", help="put everything back")
    _add_config(replay)
    status = _add_command(commands, "status", "status:execute")
    status.add_argument("--json", action="store_true", help="print JSON")
    _add_config(status)
    _add_config(_add_command(commands, "top", "status:top"))
    explain = _add_command(commands, "explain", "explain:execute")
    explain.add_argument(
        "event", metavar="EVENT", help="a trace, a window, the ID of a job or a storage event, a table, or a URL"
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    _add_config(explain)
    pools = _add_command(commands, "pools", "pools:execute")
    for flag, more in POOLS_OPTIONS.items():
        pools.add_argument(flag, **more)
    targets = commands.add_parser("deploy", help="set everything up in Cloud Composer").add_subparsers(required=True)
    _add_composer_options(_add_command(targets, "composer", "deploy:composer"))
    rights = _add_command(targets, "rights", "deploy:rights")
    rights.add_argument("--project", metavar="ID", help="the project, for a configuration that names none")
    _add_account(rights, "; by default the environment's account does")
    return parser


def _add_composer_options(composer: argparse.ArgumentParser) -> None:
    composer.add_argument("--environment", required=True, metavar="NAME")
    composer.add_argument("--location", required=True, metavar="REGION", help="region of the environment")
    composer.add_argument("--project", metavar="ID", help="project of the environment; by default gcloud's")
    composer.add_argument("--dry-run", action="store_true", help="print the commands, and change nothing")
    package = composer.add_mutually_exclusive_group()
    package.add_argument(
        "--wheel",
        metavar="WHEEL",
        help="the wheel to upload: a path, or a URL with #sha256=…; by default it is built, in a checkout",
    )
    package.add_argument(
        "--published",
        action="store_true",
        help="upload nothing: the environment's own index has this version, and nobody else may publish it there",
    )
    composer.add_argument(
        "--gcp-conn-id",
        metavar="ID",
        help="Google Cloud connection whose credentials are used; '' removes it; by default it stays as it is",
    )
    composer.add_argument(
        "--no-rights",
        action="store_true",
        help="leave roles and their bindings to Terraform, which then takes by_prefix and job_projects",
    )
    _add_account(composer, "; '' removes them; by default they stay as they are")


def _add_account(parser: argparse.ArgumentParser, without: str) -> None:
    """Add the options that say which service account may do what, and for which set-up.

    :param without: what happens without accounts to impersonate.
    """
    parser.add_argument(
        "--by-prefix", action="store_true", help="limit the account to the folders that the configuration names"
    )
    parser.add_argument(
        "--job-project",
        action="append",
        type=project_id,
        default=[],
        metavar="ID",
        help="another project with traces, beside ProjectID; may be repeated",
    )
    parser.add_argument(
        "--impersonation-chain",
        metavar="ACCOUNTS",
        help=f"service accounts to impersonate, comma-separated; the last one gets the roles{without}",
    )
    _add_config(parser)
    parser.add_argument("--setup", **_SETUP)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="URL", help=_CONFIG_HELP)
    parser.add_argument("--var", **_VAR)


if __name__ == "__main__":
    sys.exit(main())
