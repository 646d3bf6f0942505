"""Tell whether a part of this Airflow is well, without importing Airflow: for the health checks of docker-compose.yaml.

``health.py COMPONENT`` asks the API server's health route, ``health.py worker`` pings the worker of this container, and
``health.py bucket NAME`` looks whether Cloud Storage has the bucket.
"""

import json
import os
import socket
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener


def answer(url: str) -> bytes:
    """Return what lies at a URL of this network."""
    with build_opener(ProxyHandler({})).open(url, timeout=5) as response:
        return bytes(response.read())


def worker_answers() -> bool:
    """Tell whether this container's worker answers a ping."""
    from celery import Celery  # noqa: PLC0415  (the others do without)

    broker = Path("/opt/bqdispatch/setup/broker_url").read_text()
    return bool(Celery(broker=broker).control.ping([f"celery@{socket.gethostname()}"], timeout=5))


def main(what: str, name: str = "") -> bool:
    """Tell whether it is well."""
    if what == "worker":
        return worker_answers()
    if what == "bucket":
        return bool(answer(f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{name}"))
    return bool(json.loads(answer("http://api-server:8080/api/v2/monitor/health"))[what]["status"] == "healthy")


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
