"""DAG runs of a real Airflow and the processes behind them, and what is on its way between it and BqTail."""

import json
import re
import signal
from contextlib import contextmanager, suppress

import psutil

from bqdispatch_provider.commands.pools import expected_pools
from bqdispatch_provider.config import DispatchConfig
from demo.live import LiveAirflow


@contextmanager
def airflow_with(document, url, home, dags, kind=LiveAirflow, **environment):
    """Run an Airflow whose connection has a configuration, against a stand-in; nothing of it is left.

    :param document: the configuration.
    :param url: of the stand-in.
    :param kind: class of the Airflow.
    """
    settings = {
        "STORAGE_EMULATOR_HOST": url,
        "BIGQUERY_EMULATOR_HOST": url,
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps({"conn_type": "bqdispatch", "extra": {"config": document}}),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
            {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
        ),
        **environment,
    }
    with kind(home, dags, expected_pools(DispatchConfig.from_dict(document)), settings) as airflow:
        yield airflow
        started = set(airflow.processes())
    assert started
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


UNBATCHED = ("ds.f", "ds.g")
"""Tables whose files BqTail loads one by one."""


def states(live, dag_id, **query):
    """The states of tasks in all of the DAG's runs."""
    found = live.get(f"dags/{dag_id}/dagRuns/~/taskInstances", limit=100, **query)
    return [each["state"] for each in found["task_instances"]]


def trigger(live, dag_id, run_id):
    """Start a run by hand; gives its path."""
    live.post(f"dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None})
    return f"dags/{dag_id}/dagRuns/{run_id}"


def has_ended(live, run):
    return live.get(run)["state"] in ("success", "failed")


def clear(live, run, *task_ids):
    """Clear tasks of a run with what follows them, or all of it."""
    dag, _, run_id = run.removeprefix("dags/").partition("/dagRuns/")
    if not task_ids:
        live.post(f"{run}/clear", {"dry_run": False, "only_failed": False})
        return
    which = {"task_ids": task_ids, "dag_run_id": run_id, "include_downstream": True}
    live.post(f"dags/{dag}/clearTaskInstances", {**which, "dry_run": False, "only_failed": False})


def mark(live, run, task_id, state):
    """Mark a task of a run, as users do on Airflow's page."""
    live.patch(f"{run}/taskInstances/{task_id}", {"new_state": state})


def logged(live, run, task_id, attempt=1):
    """The lines of a try's log, each with its logger."""
    found = live.get(f"{run}/taskInstances/{task_id}/logs/{attempt}", full_content=True)
    return [(line.get("logger"), line["event"]) for line in found["content"]]


def asset_events(live, run):
    """The tables of the asset events that a run has emitted, each as often as it was."""
    dag, _, run_id = run.removeprefix("dags/").partition("/dagRuns/")
    found = live.get("assets/events", source_dag_id=dag, source_run_id=run_id, limit=100)
    return sorted(event["uri"].rpartition("/")[2] for event in found["asset_events"])


def returned(live, run, task_id):
    """What a task of a run returned; what a trigger returns in its place, Airflow stores as JSON text."""
    value = live.get(f"{run}/taskInstances/{task_id}/xcomEntries/return_value")["value"]
    return json.loads(value) if isinstance(value, str) else value


def kill(live, kind, by=signal.SIGKILL):
    """Kill each ``task``, each ``worker`` of the executor, or the ``triggerer``, or ask it to end; gives how many."""
    killed = 0
    for process in live.processes():
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and kind_of(process) == kind:
                process.send_signal(by)
                killed += 1
    return killed


def kind_of(process):
    title = " ".join(process.cmdline()).strip()
    if found := re.fullmatch(r"airflow worker -- (LocalExecutor: )?[0-9a-f-]{36}", title):
        return "worker" if found[1] else "task"
    return "triggerer" if re.search(r"airflow triggerer( --skip-serve-logs)?$", title) else None


def listening(live):
    """The addresses on which processes of Airflow wait for connections."""
    found = set()
    for process in live.processes():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            sockets = process.net_connections(kind="inet")
            found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    return found


def put_files(bqtail, *dests):
    for dest in dests:
        bqtail.put_file(dest)


def is_all_finished(bqtail):
    counters = bqtail.counters()
    return counters.finished == counters.events
