"""Airflow's own commands: ``airflow bqdispatch pools``, where Airflow takes commands from providers (3.2 and later)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bqdispatch_provider.cli import POOLS_DESCRIPTION, POOLS_HELP, POOLS_OPTIONS, airflow_pools

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand


def get_commands() -> list[CLICommand]:
    """What ``airflow`` adds to its commands, as the provider's metadata says (``cli``)."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand  # noqa: PLC0415  (it asks for this)

    pools = ActionCommand(
        name="pools",
        help=POOLS_HELP,
        description=POOLS_DESCRIPTION,
        func=airflow_pools,
        args=tuple(
            Arg((flag,), **more)  # type: ignore[no-untyped-call]
            for flag, more in POOLS_OPTIONS.items()
        ),
    )
    return [GroupCommand(name="bqdispatch", help="BqTail's dispatcher", subcommands=(pools,))]
