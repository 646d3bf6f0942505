"""The extra of a connection of type ``bqdispatch``: its keys, and how a deployment updates an existing one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bqdispatch_provider.config_errors import MAX_NAMED, ConfigError, listed, shown, shown_name

CONN_TYPE = "bqdispatch"
"""The type of the connection."""

CONFIG_KEYS = ("config", "config_url")
"""The configuration: the document itself, or its URL. Without either, the extra is the document."""

OTHER_KEYS = ("variables", "gcp_conn_id", "impersonation_chain", "quota_project_id", "subscription")
"""Keys that may stand beside the configuration."""

_OLD_PREFIX = "extra__bqdispatch__"
"""Forms of older versions of Airflow began the name of each field with this, and connections may have it still."""

_ACCOUNT = re.compile(r"\w[\w.-]*@[\w.-]+")
"""Of a service account. One that begins with a dash would be an option of gcloud."""

_SHOWN_KEYS = ("config_url", "gcp_conn_id", "impersonation_chain", "quota_project_id", "subscription")
"""Keys whose values a message may show. Documents and variables are long, and may hold anything."""


def non_empty(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return an extra without its empty fields; the old form of a field's name means the same.

    :param extra: as it is stored.
    """
    known = {key: value for key, value in extra.items() if value not in (None, "")}
    names = sorted(known, key=lambda key: not key.startswith(_OLD_PREFIX))
    return {name.removeprefix(_OLD_PREFIX): known[name] for name in names}


def accounts_of(chain: Any) -> list[str]:
    """Return the service accounts of an ``impersonation_chain``: each acts as the next one, and the last one works.

    :param chain: as an extra holds it: comma-separated, a list, or nothing.
    :raises ConfigError: if it holds something else.
    """
    given = chain.split(",") if isinstance(chain, str) else [] if chain is None else chain
    stripped = [each.strip() if isinstance(each, str) else "" for each in given] if isinstance(given, list) else [""]
    accounts = [] if stripped == [""] and chain == "" else stripped
    if not all(map(_ACCOUNT.fullmatch, accounts)):
        raise ConfigError(
            [
                f"impersonation_chain is {shown(chain)}; expected addresses of service accounts, comma-separated or as "
                "a list"
            ]
        )
    return accounts


@dataclass(frozen=True)
class UpdatedConnection:
    """A connection after its update.

    :param extra: its keys.
    :param former: accounts that it impersonated before; empty if it did not, or what it held was no chain.
    :param value: value of the environment variable.
    :param shown: the same for people, without what the deployment does not know.
    :param hidden: what was left out.
    :param changes: differences from the existing connection, a line each.
    """

    extra: Mapping[str, Any]
    former: tuple[str, ...]
    value: str
    shown: str
    hidden: tuple[str, ...]
    changes: tuple[str, ...]


def updated_connection(existing: str | None, wanted: Mapping[str, Any]) -> UpdatedConnection:
    """Return a connection with a new configuration; all else that it holds stays.

    :param existing: value of the environment variable; ``None`` without one.
    :param wanted: keys of the extra. The configuration replaces the existing one. Of the other keys, those that are
        given replace the existing ones; an empty value removes one.
    :raises ValueError: if the existing connection cannot be read. The message shows no value.
    """
    connection = {"conn_type": CONN_TYPE} if existing is None else _read(existing)
    before = _read_extra(connection.get("extra") or {})
    unknown = sorted(before.keys() - {*CONFIG_KEYS, *OTHER_KEYS})
    if unknown and not before.keys().isdisjoint(CONFIG_KEYS):
        named = listed([ascii(shown_name(each)) for each in unknown])
        raise ValueError(f"has {named} beside the configuration, which no dispatcher accepts")
    kept = {key: before[key] for key in OTHER_KEYS if key in before and key != "variables"}
    after = non_empty({**wanted, **kept, **wanted})
    made = {**connection, "extra": after}
    hidden = {key: value for key, value in made.items() if key not in ("conn_type", "extra") and value}
    # A connection that is the same in another spelling is left as it is.
    value = existing if existing is not None and before == after else json.dumps(made)
    former: tuple[str, ...] = ()
    with suppress(ConfigError):
        former = tuple(accounts_of(before.get("impersonation_chain")))
    return UpdatedConnection(
        after,
        former,
        value,
        json.dumps({**made, **dict.fromkeys(hidden, "…")}, ensure_ascii=False) if hidden else value,
        # As it is, and as it stands in the JSON.
        tuple(form for each in hidden.values() for form in (str(each), json.dumps(each).strip('"'))),
        tuple(_changes(before, after)) if existing is not None else (),
    )


def stored_extra(value: str) -> dict[str, Any] | None:
    """Return the extra of a connection that an environment variable holds; ``None`` for one of another type.

    :param value: of the variable: JSON, or a URI, which is not read.
    :raises ValueError: if it cannot be read. The message shows no value.
    """
    if not value.lstrip().startswith("{") and not value.startswith(f"{CONN_TYPE}:"):
        return None
    with suppress(ValueError, RecursionError):
        if json.loads(value).get("conn_type") != CONN_TYPE:
            return None
    return _read_extra(_read(value).get("extra") or {})


def _read(existing: str) -> dict[str, Any]:
    if not existing.lstrip().startswith("{"):
        raise ValueError("is no JSON object")
    try:
        connection = json.loads(existing)
    except (ValueError, RecursionError) as error:
        raise ValueError("is broken JSON") from error
    if connection.get("conn_type") != CONN_TYPE:
        raise ValueError(f"is a connection of another type than {CONN_TYPE}")
    return dict(connection)


def _read_extra(extra: Any) -> dict[str, Any]:
    try:
        read = json.loads(extra) if isinstance(extra, str) else extra
    except (ValueError, RecursionError) as error:
        raise ValueError("has an extra that is broken JSON") from error
    if not isinstance(read, Mapping):
        raise ValueError("has an extra that is no JSON object")
    return non_empty(read)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    changes = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            changes += [f"{key} stays"] if key in OTHER_KEYS else []
        elif key in _SHOWN_KEYS:
            shown = [json.dumps(each) if each is not None else "nothing" for each in (old, new)]
            changes.append(f"{key}: {shown[0]} becomes {shown[1]}")
        else:
            change = "is removed" if new is None else "is added" if old is None else "changes"
            changes.append(f"{shown_name(key)} {change} (not shown)")
    more = len(changes) - MAX_NAMED
    return changes if more <= 0 else [*changes[:MAX_NAMED], f"{more:,} more keys change, or stay (not shown)"]
