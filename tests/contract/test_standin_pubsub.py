"""The stand-in Pub/Sub behaves towards the real client as the service does, over REST."""

import json

import pytest
from google.api_core.exceptions import BadRequest, Conflict, NotFound
from google.auth.credentials import AnonymousCredentials
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherRestTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberRestTransport

TOPIC, NAME = "projects/p/topics/jobs", "projects/p/subscriptions/jobs"


@pytest.fixture
def to(standin):
    return {
        "host": standin.url.removeprefix("http://"),
        "url_scheme": "http",
        "credentials": AnonymousCredentials(),
    }


@pytest.fixture
def publisher(to):
    client = PublisherClient(transport=PublisherRestTransport(**to))
    client.create_topic(name=TOPIC)
    return client


@pytest.fixture
def subscriber(publisher, to):
    client = SubscriberClient(transport=SubscriberRestTransport(**to))
    client.create_subscription(name=NAME, topic=TOPIC)
    return client


def pull(subscriber, most=10, **more):
    return subscriber.pull(subscription=NAME, max_messages=most, **more).received_messages


def publish(publisher, *bodies):
    return list(publisher.publish(topic=TOPIC, messages=[{"data": each} for each in bodies]).message_ids)


def at_once(subscriber, most=10):
    request = {"subscription": NAME, "max_messages": most, "return_immediately": True}
    return subscriber.pull(request=request).received_messages


def test_what_is_published_is_pulled_once_while_it_is_leased(publisher, subscriber):
    identities = publish(publisher, b"a", b"b")
    received = pull(subscriber)
    assert [(each.message.data, each.message.message_id) for each in received] == [
        (b"a", identities[0]),
        (b"b", identities[1]),
    ]
    assert at_once(subscriber) == []


def test_no_more_is_pulled_than_was_asked_for(publisher, subscriber):
    publish(publisher, b"a", b"b")
    assert len(pull(subscriber, 1)) == 1
    assert len(pull(subscriber, 1)) == 1


def test_what_is_not_acknowledged_comes_again_after_the_deadline(publisher, subscriber, control):
    publish(publisher, b"a")
    first = pull(subscriber)
    control.advance(11)
    again = pull(subscriber)
    assert [each.message.data for each in again] == [b"a"]
    assert again[0].ack_id != first[0].ack_id
    subscriber.acknowledge(subscription=NAME, ack_ids=[first[0].ack_id])  # out of date: does nothing
    control.advance(11)
    last = pull(subscriber)
    subscriber.acknowledge(subscription=NAME, ack_ids=[last[0].ack_id])
    control.advance(601)
    assert at_once(subscriber) == []


def test_a_lease_is_made_longer_and_given_back(publisher, subscriber, control):
    publish(publisher, b"a")
    (one,) = pull(subscriber)
    subscriber.modify_ack_deadline(subscription=NAME, ack_ids=[one.ack_id], ack_deadline_seconds=60)
    control.advance(30)
    assert at_once(subscriber) == []
    subscriber.modify_ack_deadline(subscription=NAME, ack_ids=[one.ack_id], ack_deadline_seconds=0)
    assert len(at_once(subscriber)) == 1


def test_a_subscription_has_what_was_published_after_it_was_made(publisher, to):
    publish(publisher, b"before")
    client = SubscriberClient(transport=SubscriberRestTransport(**to))
    client.create_subscription(name=NAME, topic=TOPIC)
    publish(publisher, b"after")
    assert [each.message.data for each in pull(client)] == [b"after"]


def test_names_that_are_not_there_or_there_already_are_refused(publisher, subscriber):
    with pytest.raises(NotFound):
        subscriber.pull(subscription="projects/p/subscriptions/none", max_messages=1)
    with pytest.raises(NotFound):
        publisher.publish(topic="projects/p/topics/none", messages=[{"data": b"a"}])
    with pytest.raises(NotFound):
        subscriber.create_subscription(name="projects/p/subscriptions/other", topic="projects/p/topics/none")
    with pytest.raises(Conflict):
        subscriber.create_subscription(name=NAME, topic=TOPIC)
    with pytest.raises(Conflict):
        publisher.create_topic(name=TOPIC)


def test_an_empty_message_and_odd_numbers_are_refused(publisher, subscriber):
    with pytest.raises(BadRequest):
        publisher.publish(topic=TOPIC, messages=[{}])
    with pytest.raises(BadRequest):
        pull(subscriber, -1)
    with pytest.raises(BadRequest):
        subscriber.modify_ack_deadline(subscription=NAME, ack_ids=["x"], ack_deadline_seconds=601)


def test_the_sink_tells_of_each_job_that_ends_from_then_on_as_the_audit_log_does(subscriber, control):
    control.seed_jobs([{"project": "p", "jobId": "before"}])
    control.set_log_sink(TOPIC)
    now = control.now()
    control.seed_jobs(
        [
            {"project": "p", "jobId": "good", "creationTime": now, "runningMs": 1000, "location": "EU"},
            {"project": "q", "jobId": "bad", "creationTime": now, "runningMs": 2000, "error": "invalid"},
        ]
    )
    assert at_once(subscriber) == []
    control.advance(3)
    good, bad = (json.loads(each.message.data) for each in pull(subscriber))
    assert good["logName"] == "projects/p/logs/cloudaudit.googleapis.com%2Fdata_access"
    assert good["resource"] == {"type": "bigquery_project", "labels": {"project_id": "p", "location": "EU"}}
    change = good["protoPayload"]["metadata"]["jobChange"]
    assert (change["after"], change["job"]["jobName"]) == ("DONE", "projects/p/jobs/good")
    assert change["job"]["jobStatus"] == {"jobState": "DONE"}
    failed = bad["protoPayload"]["metadata"]["jobChange"]["job"]
    assert (failed["jobName"], failed["jobStatus"]["errorResult"]["reason"]) == ("projects/q/jobs/bad", "invalid")
    assert at_once(subscriber) == []


def test_a_pull_waits_for_a_message_that_comes_while_it_waits(publisher, subscriber, control):
    control.set_log_sink(TOPIC)
    control.seed_jobs([{"project": "p", "jobId": "a", "creationTime": control.now(), "runningMs": 300}])
    (one,) = pull(subscriber)
    assert json.loads(one.message.data)["protoPayload"]["resourceName"] == "projects/p/jobs/a"
    assert control.calls()["pubsub.subscriptions.pull"] == 1
