"""The example DAGs do what their docstrings say."""

import ast
import json
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from world import JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.core.targets import INTENTS, LEDGER, LedgerName
from bqdispatch_provider.names import TraceName

EXAMPLES = sorted((Path(__file__).parents[2] / "dags" / "examples").glob("*.py"))


@pytest.fixture
def bqtail_takes_everything(world):
    """Consumes what is delivered, beside what the test does."""
    over = threading.Event()

    def consume():
        while not over.wait(0.05):
            for name in world.names(TRIGGER):
                world.delete(name, TRIGGER)

    with ThreadPoolExecutor(1) as aside:
        consumed = aside.submit(consume)
        yield
        over.set()
        consumed.result()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_says_when_to_use_it_and_starts_nothing_by_itself(database, file):
    from airflow.providers.common.compat.sdk import DAG

    assert "Use it " in ast.get_docstring(ast.parse(file.read_text()))
    dags = [each for each in runpy.run_path(str(file)).values() if isinstance(each, DAG)]
    assert dags
    assert all(dag.is_paused_upon_creation for dag in dags)


def test_a_dag_goes_on_once_nothing_of_its_table_is_left(world, run):
    others = world.trace(dest="sales.returns", state="RUNNING")
    done = run("wait_for_table", "wait_for_table.py")
    assert (done.state, done.states["use"]) == ("success", "success")
    assert world.names() == [others]


def test_one_project_is_dispatched_and_the_others_wait(world, run):
    mine, others = world.traces(2, project="acme-shop"), world.traces(2)
    done = run("one_project", "one_project.py")
    assert (done.state, done.returned("dispatch")["Dispatched"]) == ("success", {"LoadJobs": 2})
    assert world.names() == sorted(others)
    assert len(world.names(TRIGGER)) == len(mine)


def test_a_bigger_dag_dispatches_its_own_table_and_goes_on(world, run, bqtail_takes_everything):
    world.traces(2, dest="sales.orders")
    others = world.trace(dest="sales.returns")
    done = run("within_a_bigger_dag", "within_a_bigger_dag.py")
    assert set(done.states.values()) == {"success"}
    assert world.names() == [others]


def test_a_dry_run_shows_what_would_be_done_and_does_nothing(world, run, capfd):
    names, window = world.traces(2), world.window()
    query = world.trace("query", state="RUNNING")
    world.control.reset_counters()
    done = run("dry_run", "dry_run.py")
    printed = capfd.readouterr().out
    assert all(repr(name) in printed for name in (*names, window))
    returned = done.returned("look")
    assert returned["would dispatch"] == {"sql": 0, "jobs": 2, "windows": 1}
    assert returned["Running"] == {"QueryJobs": 1}
    assert world.names() == sorted([*names, query, window])
    assert world.control.calls().keys() == {"storage.objects.list", "bigquery.jobs.get"}
    assert world.names(TRIGGER) == world.names(JOURNAL) == []


class SetUpOfATest:
    """A task folder, a trigger bucket and a journal of their own, with the same names in them as any other's."""

    def __init__(self, world, name, monkeypatch):
        self.world, self.name = world, name
        extra = world.document(
            AsyncTaskURL=f"gs://{TASKS}/{name}/Tasks/",
            TriggerBucket=f"{name}_bqtail",
            JournalURL=f"gs://{JOURNAL}/{name}/journal",
            ErrorURL=f"gs://{JOURNAL}/{name}/errors",
        )
        connection = json.dumps({"conn_type": "bqdispatch", "extra": extra})
        monkeypatch.setenv(f"AIRFLOW_CONN_BQDISPATCH_{name.upper()}", connection)
        world.control.seed_objects(f"{name}_bqtail", [])

    def put(self, names):
        created = self.world.control.now() - 60
        prefix = f"{self.name}/Tasks/"
        self.world.control.seed_objects(
            TASKS, [{"name": prefix + each, "content": "{}", "timeCreated": created} for each in names]
        )

    def waiting(self):
        """Events in the task folder, windows that were fired not among them."""
        folder = f"{self.name}/Tasks/"
        names = {name.removeprefix(folder) for name in self.world.names(TASKS, folder)}
        entries = [LedgerName.parse(name) for name in names if name.startswith(LEDGER)]
        fired = {entry.window for entry in entries if entry.what == "fired"}
        return {name for name in names if not name.startswith((LEDGER, INTENTS))} - fired

    def delivered(self):
        return self.world.names(f"{self.name}_bqtail")

    def documents(self):
        blobs = self.world.client.list_blobs(JOURNAL, prefix=f"{self.name}/journal/runs/")
        return [json.loads(blob.download_as_bytes()) for blob in blobs]

    def performance(self):
        return json.loads(self.world.blob(f"{self.name}/journal/performance.json", JOURNAL).download_as_bytes())


def test_two_set_ups_side_by_side_dispatch_only_their_own(world, run, monkeypatch):
    acme, globex = (SetUpOfATest(world, name, monkeypatch) for name in ("acme", "globex"))
    names = [TraceName("p", "US", "ds.t", str(event), 1, "load").name for event in range(3)]
    more = TraceName("p", "US", "ds.t", "9", 1, "query").name
    world.jobs([TraceName.parse(name).job_id for name in (*names, more)])
    window = "ds.t_77_1600000000.win"
    acme.put([*names, window])
    globex.put([*names, more, window])

    done = run("bqdispatch_acme", "two_setups.py")
    assert (done.state, acme.waiting(), len(acme.delivered())) == ("success", set(), 4)
    assert (globex.waiting(), globex.delivered()) == ({*names, more, window}, [])
    (document,) = acme.documents()
    assert document["Dispatched"] == {"LoadJobs": 3, "BatchJobs": 1}
    assert {url.partition("/Tasks/")[0] for url in (*document["Jobs"], *document["Batched"])} == {f"gs://{TASKS}/acme"}
    written = acme.performance()
    assert globex.documents() == []

    done = run("bqdispatch_globex", "two_setups.py")
    assert (done.state, globex.waiting(), len(globex.delivered())) == ("success", set(), 5)
    (document,) = globex.documents()
    assert document["Dispatched"] == {"LoadJobs": 3, "QueryJobs": 1, "BatchJobs": 1}
    assert globex.performance() == document["Performance"] != written
    assert (acme.performance(), len(acme.delivered()), len(acme.documents())) == (written, 4, 1)
