"""Run uv with pip's settings for indexes, certificates and proxies, from pip.conf or the environment.

Behind a company's mirror there is no other index, and the company's certificate is one of the system's. Settings for uv
itself (``UV_…``) override them.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}


def environment(listed: str) -> dict[str, str]:
    """Translate pip's settings into uv's environment.

    :param listed: output of ``pip config list``.
    """
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the last one counts
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            where, _, key = name.rpartition(".")
            if where == section and key in NAMES:
                settings[NAMES[key]] = " ".join(str(ast.literal_eval(value)).split())
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = settings["UV_FIND_LINKS"].replace(" ", ",")
    if "UV_INDEX" in settings:  # of several indexes pip takes the newest
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {"UV_SYSTEM_CERTS": "true", **settings}


def main(arguments: list[str], known: Mapping[str, str]) -> None:
    """Replace this process by uv.

    :param arguments: of uv.
    :param known: the environment, whose ``UV_…`` override pip's settings.
    """
    config = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(config, capture_output=True, text=True, check=True).stdout
    uv = str(Path(sys.executable).with_name("uv"))
    os.execve(uv, [uv, *arguments], {**environment(listed), **known})


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
