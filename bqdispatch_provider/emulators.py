"""Read from environment variables where stand-ins for Google's services are."""

from __future__ import annotations

import os


def emulator(variable: str) -> str | None:
    """Return the URL of a stand-in; ``None`` where the service itself is meant.

    :param variable: such as ``STORAGE_EMULATOR_HOST``, whose value may lack ``http://`` and may end with slashes.
    """
    host = os.environ.get(variable, "").strip().rstrip("/")
    if not host:
        return None
    return host if "://" in host else f"http://{host}"
