"""The command line: a module for each command of ``bqdispatch``, and the commands that are added to ``airflow``.

Here belongs what reads options and prints. What a task does too belongs in another room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand


def get_commands() -> list[CLICommand]:
    """Return the commands that ``airflow`` adds to its own. The provider's metadata names this function (``cli``)."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand  # noqa: PLC0415  (it asks for this)

    from bqdispatch_provider.commands import cli  # noqa: PLC0415  (importing a room imports none of its modules)

    pools = ActionCommand(
        name="pools",
        help=cli.summary("pools"),
        description=cli.DESCRIPTIONS["pools"],
        func=cli.airflow_pools,
        args=tuple(
            Arg((flag,), **more)  # type: ignore[no-untyped-call]
            for flag, more in cli.POOLS_OPTIONS.items()
        ),
    )
    return [GroupCommand(name="bqdispatch", help="BqTail's dispatcher", subcommands=(pools,))]
