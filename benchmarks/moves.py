"""How long finished traces take, beside a plain loop over the client library: ``python benchmarks/moves.py [number]``.

Both work against a stand-in of their own that answers every request 30 ms late.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from bqdispatch_provider.testing.standin import StandInControl

BIN = Path(sys.executable).parent
LATENCY_MS = 30
PEER = 100
DOCUMENT = {
    "ProjectID": "p",
    "AsyncTaskURL": "gs://ops/tasks/",
    "JournalURL": "gs://journal/journal/",
    "ErrorURL": "gs://journal/errors/",
}


@contextmanager
def seeded(number: int) -> Iterator[tuple[str, StandInControl]]:
    """A stand-in in a process of its own, with so many finished traces."""
    with subprocess.Popen([BIN / "bqdispatch-standin"], stdout=subprocess.PIPE, text=True) as standin:
        try:
            url = (standin.stdout.readline() if standin.stdout else "").strip()
            with StandInControl(url) as control:
                names = [f"ds.t--{event}_00001_load--dispatch" for event in range(number)]
                created = control.now() - 60
                control.seed_objects(
                    "ops",
                    [{"name": f"tasks/proj:p:US/{name}", "content": "{}", "timeCreated": created} for name in names],
                )
                for bucket in ("p_bqtail", "journal"):
                    control.seed_objects(bucket, [])
                control.seed_jobs(
                    {"project": "p", "jobId": name.replace(".", "_"), "creationTime": created} for name in names
                )
                control.set_latency(LATENCY_MS)
                control.reset_counters()
                yield url, control
        finally:
            standin.terminate()


def ours(url: str) -> None:
    """One cycle by the command line, from process start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(DOCUMENT))
        environment = {**os.environ, "STORAGE_EMULATOR_HOST": url, "BIGQUERY_EMULATOR_HOST": url}
        command = [BIN / "bqdispatch", "run", "--once", "--config", config]
        subprocess.run(command, env=environment, check=True, capture_output=True)


def plain_loop(url: str) -> None:
    """Copy and delete one after the other, without a look at any job."""
    client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
    source, target = client.bucket("ops"), client.bucket("p_bqtail")
    for blob in list(client.list_blobs(source, prefix="tasks/")):
        source.copy_blob(blob, target, f"_bqjob_/{blob.name}")
        blob.delete()


def measure(what: str, number: int, work: Callable[[str], None]) -> float:
    """Print what it took, and give seconds per trace."""
    with seeded(number) as (url, control):
        cpu, began = _cpu(), time.perf_counter()
        work(url)
        seconds, cpu = time.perf_counter() - began, _cpu() - cpu
        print(
            f"{what}: {number:,} traces in {seconds:.2f} s, {control.requests():,} requests, "
            f"{1000 * cpu / number:.2f} ms of CPU each"
        )
    return seconds / number


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Measure both, and print how they compare."""
    each = measure("bqdispatch", int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, ours)
    print(f"a trace takes a plain loop {measure('plain loop', PEER, plain_loop) / each:.0f} times as long")


if __name__ == "__main__":
    main()
