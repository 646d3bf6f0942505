"""The notifier in a real Airflow, where callbacks run in the task's own process."""

from runs import has_ended, trigger


def test_a_task_that_fails_tells_slack_why(live, slack, world, bqtail, unpaused, wait_until):
    name = world.trace()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{name}")
    with unpaused("tells"):
        run = trigger(live, "tells", "fails")
        wait_until(lambda: has_ended(live, run), "it has failed")
        wait_until(lambda: slack.messages, "Slack is told")
    (message,) = slack.messages
    assert name in message["text"]
    assert slack.tokens == ["xoxb-live"]
