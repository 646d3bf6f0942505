"""What the OpenLineage provider makes of a dispatch."""

import json

import pytest
from world import JOURNAL


@pytest.fixture
def told(tmp_path, monkeypatch, database, airflow_prints, connect):
    """Runs a DAG beside a real OpenLineage, and gives the events that tell of a task's end."""
    log = tmp_path / "lineage.json"
    transport = {"type": "file", "log_file_path": str(log), "append": True}
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__NAMESPACE", "tests")

    def run(dag_id, task_id):
        airflow_prints("dags", "test", dag_id)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        return [
            event
            for event in events
            if event["eventType"] == "COMPLETE" and event["job"]["name"] == f"{dag_id}.{task_id}"
        ]

    return run


def test_tables_are_outputs_and_jobs_are_facets_of_the_run(world, told):
    names = world.traces(2, dest="acme-shop:sales.orders$20240305", region="EU")
    bad = world.trace("query", state=None, dest="ds.bad")
    world.jobs([bad.rpartition("/")[2].replace(".", "_")], action="query", error="invalid", writes=lambda _: "ds.bad")
    world.window("ds.w")
    (event,) = told("alone", "dispatch")
    assert [(each["namespace"], each["name"]) for each in event["outputs"]] == [("bigquery", "acme-shop.sales.orders")]
    facet = event["run"]["facets"]["bqdispatch"]
    assert facet["number"] == 3
    assert set(world.document_at(facet["document"])["Jobs"]) == {world.url_of(name) for name in (*names, bad)}
    jobs = {job["event_id"]: job for job in facet["jobs"]}
    assert set(jobs) == {"1001", "1002", "1003"}
    assert jobs["1001"] == {
        "project": "p",
        "location": "EU",
        "job_id": names[0].rpartition("/")[2].translate(str.maketrans(":.$", "___")),
        "table": "acme-shop.sales.orders",
        "action": "load",
        "step": 1,
        "event_id": "1001",
        "end_time": jobs["1001"]["end_time"],
    }
    assert (jobs["1003"]["table"], jobs["1003"]["error"]) == ("p.ds.bad", "invalid")
    assert "externalQuery" not in event["run"]["facets"]


def test_the_facet_names_the_runs_document_where_a_task_reports(world, told):
    name = world.trace()
    (event,) = told("strict", "dispatch")
    (document,) = world.names(JOURNAL, "journal/runs/")
    url = event["run"]["facets"]["bqdispatch"]["document"]
    assert url == f"gs://{JOURNAL}/{document}"
    assert set(world.document_at(url)["Jobs"]) == {world.url_of(name)}


def test_one_job_alone_is_the_external_query(world, told):
    job_id = world.trace().rpartition("/")[2].replace(".", "_")
    (event,) = told("alone", "dispatch")
    query = event["run"]["facets"]["externalQuery"]
    assert (query["externalQueryId"], query["source"]) == (job_id, "bigquery")


def test_a_dispatch_of_nothing_has_no_outputs(world, told):
    (event,) = told("alone", "dispatch")
    assert event["outputs"] == []
    assert "bqdispatch" not in event["run"]["facets"]
