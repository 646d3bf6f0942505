"""What a set-up's connection, pools, DAG and variables are called."""

import ast
import re
from pathlib import Path

import pytest

from bqdispatch_provider.core.setups import SetUp


def names(setup):
    return [setup.dag_id, setup.conn_id, setup.sql_pool, setup.jobs_pool, setup.conn_variable, *setup.slot_variables]


def test_the_command_that_makes_the_pools_names_the_set_up():
    assert SetUp().pools_command == "bqdispatch pools --import"
    assert SetUp("acme").pools_command == "bqdispatch pools --setup acme --import"


def test_without_a_name_everything_is_called_as_where_there_is_but_one():
    assert names(SetUp()) == [
        "bqdispatch",
        "bqdispatch_default",
        "bqdispatch_sql",
        "bqdispatch_jobs",
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT",
        "BQDISPATCH_SQL_SLOTS",
        "BQDISPATCH_JOBS_SLOTS",
    ]


def test_a_name_is_in_everything():
    assert names(SetUp("acme")) == [
        "bqdispatch_acme",
        "bqdispatch_acme",
        "bqdispatch_acme_sql",
        "bqdispatch_acme_jobs",
        "AIRFLOW_CONN_BQDISPATCH_ACME",
        "BQDISPATCH_ACME_SQL_SLOTS",
        "BQDISPATCH_ACME_JOBS_SLOTS",
    ]


@pytest.mark.parametrize("one", [None, "acme", "sql", "jobs", "acme_sql"])
@pytest.mark.parametrize("other", [None, "acme", "sql", "jobs", "acme_sql"])
def test_no_two_set_ups_share_a_pool_a_connection_or_a_variable(one, other):
    if one != other:
        mine, others = SetUp(one), SetUp(other)
        assert not {mine.sql_pool, mine.jobs_pool} & {others.sql_pool, others.jobs_pool}
        assert not {mine.conn_id, mine.dag_id} & {others.conn_id, others.dag_id}
        assert not {mine.conn_variable, *mine.slot_variables} & {others.conn_variable, *others.slot_variables}


@pytest.mark.parametrize("name", ["", "default", "Acme", "acme-eu", "a.b", "a" * 51, "acme\n"])
def test_what_is_no_name_of_a_variable_too_is_refused(name):
    with pytest.raises(ValueError, match="the set-up is"):
        SetUp(name)


def test_no_set_up_takes_the_id_of_another_dag_of_the_repository():
    files = (Path(__file__).parents[2] / "dags").rglob("*.py")
    constants = [
        each for file in files for each in ast.walk(ast.parse(file.read_text())) if isinstance(each, ast.Constant)
    ]
    ids = {each.value for each in constants if re.fullmatch(r"bqdispatch_\w+", str(each.value))}
    assert ids >= {"bqdispatch_deferred", "bqdispatch_on_events"}
    for dag_id in ids:
        with pytest.raises(ValueError, match="the set-up is"):
            SetUp(dag_id.removeprefix("bqdispatch_"))
