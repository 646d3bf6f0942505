"""Move finished traces without this provider: ``python benchmarks/peers.py loop|operators URL``.

Prints as JSON how many traces were moved, and the seconds from the first list on, without imports.
"""

import json
import os
import sys
import time
from collections.abc import Iterator

FOLDER, TRIGGER = "tasks/", "p_bqtail"


def job_of(name: str) -> tuple[str, str, str]:
    """Return project, location and ID of a trace's job."""
    _, project, rest = name.removeprefix(FOLDER).split(":", 2)
    location, _, trace = rest.partition("/")
    return project, location, trace.replace(".", "_")


def loop(url: str) -> Iterator[str]:
    """Call the client libraries, one call after the other."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery, storage

    client = storage.Client(project="p", credentials=AnonymousCredentials())
    jobs = bigquery.Client(project="p", credentials=AnonymousCredentials())
    source, target = client.bucket("ops"), client.bucket(TRIGGER)
    yield "ready"
    for blob in client.list_blobs(source, prefix=FOLDER):
        project, location, job = job_of(blob.name)
        if jobs.get_job(job, project=project, location=location).state == "DONE":
            source.copy_blob(blob, target, f"_bqjob_/{blob.name}")
            blob.delete()
            yield blob.name


def operators(url: str) -> Iterator[str]:
    """Use Airflow's hook and operator, an operator for each trace."""
    connection = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
    os.environ["AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"] = json.dumps(connection)
    from airflow.providers.google.cloud.hooks.bigquery import BigQueryHook
    from airflow.providers.google.cloud.hooks.gcs import GCSHook
    from airflow.providers.google.cloud.transfers.gcs_to_gcs import GCSToGCSOperator

    hook = BigQueryHook(location=None)
    yield "ready"
    for name in GCSHook().list("ops", prefix=FOLDER):
        project, location, job = job_of(name)
        if hook.get_job(job_id=job, project_id=project, location=location).state == "DONE":
            GCSToGCSOperator(
                task_id="move",
                source_bucket="ops",
                source_object=name,
                destination_bucket=TRIGGER,
                destination_object=f"_bqjob_/{name}",
                move_object=True,
                exact_match=True,
            ).execute({})
            yield name


def main() -> None:
    """Run one peer."""
    which, url = sys.argv[1:]
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["BIGQUERY_EMULATOR_HOST"] = url
    work = {"loop": loop, "operators": operators}[which](url)
    next(work)
    began = time.perf_counter()
    moved = sum(1 for _ in work)
    print(json.dumps({"moved": moved, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
