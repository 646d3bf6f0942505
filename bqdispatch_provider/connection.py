"""The extra of a connection of type ``bqdispatch``: its keys, and how a deployment adds to one that is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONN_TYPE = "bqdispatch"
FORMS = ("config", "config_url")
"""The configuration: the document itself, or where it lies. Without either, the extra is the document."""

OTHERS = ("variables", "gcp_conn_id", "impersonation_chain", "quota_project_id", "subscription")
"""Keys that may stand beside the configuration."""

_OLDER = "extra__bqdispatch__"
"""With this, forms of Airflow began the name of each field once, and connections may have it still."""

_SHOWN = ("config_url", "gcp_conn_id", "impersonation_chain", "quota_project_id", "subscription")
"""Keys whose values a message may show. Documents and variables are long, and may hold anything."""

_DOTS = "…"


def filled(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return an extra without its empty fields; the older form of a field's name means the same.

    :param extra: as it is stored.
    """
    known = {key: value for key, value in extra.items() if value not in (None, "")}
    return {key.removeprefix(_OLDER): known[key] for key in sorted(known, key=lambda key: not key.startswith(_OLDER))}


@dataclass(frozen=True)
class Renewed:
    """A connection as it is to be.

    :param value: the environment variable's value.
    :param shown: the same for people: what a deployment does not know is left out.
    :param hidden: what was left out.
    :param changes: what is different from the connection that is there, a line each.
    """

    value: str
    shown: str
    hidden: tuple[str, ...]
    changes: tuple[str, ...]


def renewed(there: str | None, wanted: Mapping[str, Any]) -> Renewed:
    """Return the connection with a configuration, and with all else that it holds.

    :param there: the environment variable's value; ``None``: there is none.
    :param wanted: keys of the extra. The configuration replaces what is there; of the others, those that are given
        do, and an empty value takes one out.
    :raises ValueError: if it cannot be told what is to be kept. The message shows no value.
    """
    connection = {"conn_type": CONN_TYPE} if there is None else _read(there)
    before = _extra(connection.get("extra") or {})
    kept = {key: before[key] for key in OTHERS if key in before and key != "variables"}
    unknown = sorted(before.keys() - {*FORMS, *OTHERS})
    if unknown and not before.keys().isdisjoint(FORMS):
        raise ValueError(f"has {', '.join(map(ascii, unknown))} beside the configuration, which no dispatcher accepts")
    after = filled({**wanted, **kept, **wanted})
    made = {**connection, "extra": after}
    hidden = {key: value for key, value in made.items() if key not in ("conn_type", "extra") and value}
    # A connection that is the same in another spelling is left as it is.
    value = there if there is not None and before == after else json.dumps(made)
    return Renewed(
        value,
        json.dumps({**made, **dict.fromkeys(hidden, _DOTS)}, ensure_ascii=False) if hidden else value,
        # As it is, and as it stands in the JSON.
        tuple(form for each in hidden.values() for form in (str(each), json.dumps(each).strip('"'))),
        tuple(_changes(before, after)) if there is not None else (),
    )


def _read(there: str) -> dict[str, Any]:
    if not there.lstrip().startswith("{"):
        raise ValueError("is no JSON object")
    try:
        connection = json.loads(there)
    except (ValueError, RecursionError) as error:
        raise ValueError("is broken JSON") from error
    if connection.get("conn_type") != CONN_TYPE:
        raise ValueError(f"is a connection of another type than {CONN_TYPE}")
    return dict(connection)


def _extra(given: Any) -> dict[str, Any]:
    try:
        extra = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise ValueError("has an extra that is broken JSON") from error
    if not isinstance(extra, Mapping):
        raise ValueError("has an extra that is no JSON object")
    return filled(extra)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    changes = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            changes += [f"{key} stays"] if key in OTHERS else []
        elif key in _SHOWN:
            shown = [json.dumps(each) if each is not None else "nothing" for each in (old, new)]
            changes.append(f"{key}: {shown[0]} becomes {shown[1]}")
        else:
            what = "goes" if new is None else "comes in" if old is None else "changes"
            changes.append(f"{key if key.isprintable() else ascii(key)} {what} (not shown)")
    return changes
