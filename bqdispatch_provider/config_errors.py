"""The error of an invalid configuration, and how its messages show values: short, in one line, and without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

MAX_SHOWN_CHARS = 80
"""Characters of a value or a key that a message shows."""

MAX_NAMED = 40
"""Keys or variables that a message names."""


class ConfigError(ValueError):
    """An invalid configuration.

    :param findings: one sentence for each thing that is wrong.
    :param where: what holds the configuration, for the message; empty by default, when the message does not say.
    """

    def __init__(self, findings: list[str], where: str = "") -> None:
        self.findings = findings
        said = f"the configuration{where and f' of {where}'} is invalid:"
        self.one_line = f"{said} {'; '.join(findings)}"
        """The message where it has to be one line."""

        super().__init__("\n".join([said, *(f"  - {finding}" for finding in findings)]))


def kind_of(value: Any) -> str:
    """Return the type of a JSON value in words, without any of the value."""
    kinds = {type(None): "null", bool: "true or false", str: "a string", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, Mapping) else "a number")


def shown(value: Any) -> str:
    """Return a key's value for a message: cut short, in one line."""
    if value is None or isinstance(value, Mapping | list):
        return kind_of(value)
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a huge number"  # Python refuses to print one
    if isinstance(value, str):
        cut = value[:MAX_SHOWN_CHARS]
        return f"{repr(cut) if cut.isprintable() else ascii(cut)}{'…' if len(value) > MAX_SHOWN_CHARS else ''}"
    return repr(value)


def shown_name(name: str) -> str:
    """Return a key or a variable's name, which are untrusted text, for a message: cut short, in one line."""
    cut = name if len(name) <= MAX_SHOWN_CHARS else f"{name[:MAX_SHOWN_CHARS]}…"
    return cut if cut.isprintable() else ascii(cut)


def listed(names: Sequence[str], between: str = ", ") -> str:
    """Return names for a message; beyond :data:`MAX_NAMED`, only their number.

    :param between: separates them.
    """
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return f"{between.join(islice(names, MAX_NAMED))}{more}"
