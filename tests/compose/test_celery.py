"""`docker compose --profile celery up`: the same with workers."""

import pytest
from stack import Stack

DISPATCHING = ("dispatch_sql", "dispatch_jobs")


@pytest.fixture(scope="module")
def stack():
    with Stack("celery") as stack:
        stack.up()
        yield stack


def test_two_workers_are_healthy(stack):
    assert [each["Health"] for each in stack.services() if each["Service"] == "worker"] == ["healthy"] * 2


def test_the_shares_of_one_run_go_to_both_workers_and_every_event_through_once(stack):
    workers = {each["ID"] for each in stack.services() if each["Service"] == "worker"}

    def shared_out():
        for run in stack.runs("success"):
            tasks = stack.tasks(run)
            if {tasks[name]["hostname"] for name in DISPATCHING if tasks[name]["state"] == "success"} == workers:
                return run
        return None

    assert stack.wait_for("a run whose shares went to both workers", shared_out)
    account = stack.end_the_feed()
    assert account["ok"], account["problems"]
    assert account["events"] == account["finished"] > 0


def test_down_leaves_nothing(stack):
    stack.compose("down", "--volumes")
    assert stack.left() == []


def test_the_readme_has_the_command_that_was_run_here(stack):
    """The command of docs/compose.md."""
    assert stack.commands_of_the_readme()
    assert [command for command in stack.commands_of_the_readme() if command not in stack.commands] == []
