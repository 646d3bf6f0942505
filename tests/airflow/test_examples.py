"""The example DAGs do what their docstrings say."""

import ast
import json
import runpy
from pathlib import Path

import pytest
from world import JOURNAL, TASKS

from bqdispatch_provider.names import TraceName

EXAMPLES = sorted((Path(__file__).parents[2] / "dags" / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_says_when_to_use_it_and_starts_nothing_by_itself(database, file):
    from airflow.providers.common.compat.sdk import DAG

    assert "Use it " in ast.get_docstring(ast.parse(file.read_text()))
    dags = [each for each in runpy.run_path(str(file)).values() if isinstance(each, DAG)]
    assert dags
    assert all(dag.is_paused_upon_creation for dag in dags)


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
        """Events in the task folder, sentinels beside their windows not among them."""
        names = self.world.names(TASKS, f"{self.name}/Tasks/")
        fired = {name.replace(".wis", ".win") for name in names if name.endswith(".wis")}
        return {name.rpartition("/Tasks/")[2] for name in names if not name.endswith(".wis")} - {
            name.rpartition("/Tasks/")[2] for name in fired
        }

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
