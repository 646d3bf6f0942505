"""Checks, as ``smoke`` and ``check-idle`` print them: one row of a table each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bqdispatch_provider.commands.output import FAILED, OK, print_commands, print_table


class CheckResult(StrEnum):
    """The result of a check. A set-up that has only warnings works."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    :param what: what was checked, in a few words.
    :param where: the URL, bucket, project, pool or connection that was checked.
    :param result: whether what was checked works.
    :param finding: what was found; when something is wrong, what to do as well.
    :param command: the command that does it, if there is one to paste.
    """

    what: str
    where: str
    result: CheckResult
    finding: str
    command: str = ""


def print_checks(checks: Sequence[Check]) -> int:
    """Print a table of checks, with the commands to paste: below it on a terminal, elsewhere in their rows.

    :param checks: its rows.
    :returns: the exit code: 1 when one has failed.
    """
    folds = sys.stdout.isatty()  # a cell of a terminal's table breaks what is long
    rows = [(each.result, each.what, each.where, _finding(each, folds)) for each in checks]
    print_table(("", "checked", "where", "found"), rows)
    if folds:
        print_commands(each.command for each in checks)
    return FAILED if any(each.result is CheckResult.FAILED for each in checks) else OK


def _finding(check: Check, is_below: bool) -> str:
    """Return what was found, with the command, or saying that it stands below."""
    if not check.command:
        return check.finding
    return f"{check.finding} {'with the command below' if is_below else f'with `{check.command}`'}"
