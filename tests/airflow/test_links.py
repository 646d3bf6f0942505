"""The links on a task's page, as Airflow's server finds them."""

import runpy
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from serialized import serialized
from world import JOURNAL, TASKS

from bqdispatch_provider import links as made
from bqdispatch_provider.names import TraceName

NAMES = ("BigQuery job", "Task folder", "Response document")


@pytest.fixture
def links(dags_folder, monkeypatch):
    """What Airflow's server, which sees serialized DAGs alone, gives for the links of a task of a run."""
    monkeypatch.setattr(made, "emulator", lambda _: "")

    def of(done, task_id, file="variants.py"):
        from airflow.models.taskinstancekey import TaskInstanceKey
        from airflow.providers.common.compat.sdk import DAG

        known = runpy.run_path(str(dags_folder / file))
        dag = next(each for each in known.values() if isinstance(each, DAG) and each.dag_id == done.dag_id)
        task = serialized(dag).get_task(task_id)
        key = TaskInstanceKey(done.dag_id, task_id, done.run_id, 1, -1)
        found = {name: task.get_extra_links(SimpleNamespace(key=key), name) for name in task.extra_links}
        return {name: url for name, url in found.items() if url}

    return of


def job_in(url):
    asked = parse_qs(urlsplit(url).query, separator="&")
    parts = asked["ws"][0].split("!")
    return asked["project"][0], parts[-2].removeprefix("2s"), parts[-1].removeprefix("3s")


def test_a_task_links_to_its_first_job_and_to_where_its_trace_lay(world, run, links):
    name = world.trace(dest="sales.orders")
    done = run("bqdispatch", "bqdispatch.py")
    found = links(done, "dispatch_jobs", "bqdispatch.py")
    assert job_in(found["BigQuery job"]) == ("p", TraceName.parse(name).job_id, "US")
    folder = "https://console.cloud.google.com/storage/browser/ops/BqDispatch/Tasks/proj%3Ap%3AUS"
    assert found["Task folder"] == links(done, "detect", "bqdispatch.py")["Task folder"] == folder
    assert "BigQuery job" not in links(done, "dispatch_sql", "bqdispatch.py")


def test_the_report_links_to_the_response_document(world, run, links):
    world.trace()
    done = run("bqdispatch", "bqdispatch.py")
    url = links(done, "report", "bqdispatch.py")["Response document"]
    base = "https://console.cloud.google.com/storage/browser/_details/"
    assert url.startswith(base)
    bucket, _, name = unquote(url.removeprefix(base)).partition("/")
    assert bucket == JOURNAL
    assert world.blob(name, JOURNAL) is not None


def test_an_operator_on_its_own_has_all_of_them(world, run, links):
    world.trace()
    assert links(run("alone"), "dispatch").keys() == set(NAMES)


def test_where_a_stand_in_takes_the_place_of_google_cloud_there_is_no_console(world, run, links, monkeypatch):
    monkeypatch.undo()
    world.trace()
    assert links(run("alone"), "dispatch") == {}


def test_a_batch_has_a_folder_and_no_job(world, run, links):
    world.window()
    folder = f"https://console.cloud.google.com/storage/browser/{TASKS}/BqDispatch/Tasks"
    assert links(run("alone"), "dispatch").items() >= {("Task folder", folder)}
    assert "BigQuery job" not in links(run("alone"), "dispatch")


def test_what_a_name_holds_stays_in_its_part_of_a_link():
    from bqdispatch_provider.core.report import Report
    from bqdispatch_provider.links import folder_page, job_page, object_page

    job = {"Project": "p&x=1#", "ID": "a!b?&c", "Region": "", "URL": "", "Status": "DONE"}
    asked = parse_qs(urlsplit(job_page(Report(jobs={"gs://b/x": job}))).query)
    assert asked.keys() == {"project", "ws"}
    assert asked["project"] == ["p&x=1#"]
    for url in (folder_page("gs://b/t/proj:a?b#c\n:US/x"), object_page("gs://b/t/a?b#c\n%2F<script>")):
        assert url.isprintable()
        assert urlsplit(url).query == urlsplit(url).fragment == ""
        assert not {"<", ">", '"', " "} & set(url)
