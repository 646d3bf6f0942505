"""A PostgreSQL on 127.0.0.1, of Debian's package, for an Airflow as teams have it."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from waiting import wait_until

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
"""Folder of the newest one's programs; ``None`` where there is none."""


@contextmanager
def postgres():
    """Start one; gives its URL. It forgets everything when the context ends."""
    import psycopg2

    folder = Path(tempfile.mkdtemp(prefix="bqdispatch-postgres-"))
    as_user = {}
    if os.getuid() == 0:  # as whom it does not run
        shutil.chown(folder, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = folder / "data"
    make = [BINARIES / "initdb", "--auth=trust", "--username=postgres", "--no-sync", "--pgdata", data]
    subprocess.run(make, cwd=folder, check=True, stdout=subprocess.DEVNULL, **as_user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        server.terminate()  # it waits for its clients, which are gone
        server.wait()
        shutil.rmtree(folder)
