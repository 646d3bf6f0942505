"""A PostgreSQL server on 127.0.0.1, from Debian's package, for an Airflow as teams run it."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from waiting import wait_until

from demo.ports import free_port

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
"""Folder with the programs of the newest version; ``None`` if none is installed."""


@contextmanager
def postgres():
    """Run a server with an empty database. The context is its URL."""
    import psycopg2

    folder = Path(tempfile.mkdtemp(prefix="bqdispatch-postgres-"))
    as_user = {}
    if os.getuid() == 0:  # PostgreSQL does not run as root.
        shutil.chown(folder, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = folder / "data"
    make = [BINARIES / "initdb", "--auth=trust", "--username=postgres", "--no-sync", "--pgdata", data]
    subprocess.run(make, cwd=folder, check=True, stdout=subprocess.DEVNULL, **as_user)
    port = free_port()
    serve = [BINARIES / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=subprocess.STDOUT, **as_user)

    def answers():
        assert server.poll() is None, (folder / "log").read_text()
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(host="127.0.0.1", port=port, user="postgres").close()
            return True

    try:
        wait_until(answers, "PostgreSQL answers")
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()  # It waits for its clients, which have ended.
        server.wait()
        shutil.rmtree(folder)
