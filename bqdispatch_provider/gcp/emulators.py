"""The addresses of stand-ins for Google's services, from environment variables. No stand-in is given credentials."""

from __future__ import annotations

import os

STORAGE, BIGQUERY, PUBSUB = "STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST"


def emulator(variable: str) -> str | None:
    """Return the URL of a stand-in; ``None`` if the service itself is used.

    :param variable: such as ``STORAGE_EMULATOR_HOST``, whose value may lack ``http://`` and may end with slashes.
    """
    host = os.environ.get(variable, "").strip().rstrip("/")
    if not host:
        return None
    return host if "://" in host else f"http://{host}"


def is_emulated(url: str) -> bool:
    """Return whether a URL is a stand-in's.

    :param url: begins with what :func:`emulator` returns, if it is.
    """
    hosts = (emulator(variable) for variable in (STORAGE, BIGQUERY, PUBSUB))
    return any(url.startswith((f"{host}/", f"{host}?")) for host in hosts if host)
