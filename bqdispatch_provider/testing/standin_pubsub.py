"""A stand-in Pub/Sub: topics, subscriptions that are pulled from by REST, and a log sink that tells of BigQuery's jobs.

A message is kept for each subscription that its topic has when it is published, is leased to whoever pulls it, and
comes again when it is not acknowledged in time ("Pull subscriptions", "Lease management").
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bqdispatch_provider.testing.standin_api import ApiError, Clock, Json, Operation, Reply, Request, rfc3339
from bqdispatch_provider.testing.standin_bigquery import Job, Jobs

_WAIT_S: Final = 10.0
"""How long a pull waits for a message; the service says no more than that it is bounded."""
_STEP_S: Final = 0.02
_STATUS: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
_PATH: Final = re.compile(r"/v1/(projects/[^/:]+)/(topics|subscriptions)/([^/:]+)(?::([a-zA-Z]+))?")
_TYPES: Final = {"load": "IMPORT", "copy": "COPY", "extract": "EXPORT", "query": "QUERY"}


@dataclass(slots=True)
class Lease:
    """A message of one subscription, and until when somebody has it."""

    message: Json
    until: float = 0.0
    deliveries: int = 0
    ack_id: str = ""


@dataclass(slots=True)
class Subscription:
    """What a subscription has not got rid of.

    :param topic: full name of its topic.
    :param deadline: seconds for which a message is leased.
    """

    topic: str
    deadline: int
    leases: dict[str, Lease] = field(default_factory=dict)


class PubSub:
    """All topics and subscriptions of all projects.

    :param clock: the stand-in's; leases run by it too.
    :param jobs: whose ends the sink tells of.
    """

    def __init__(self, clock: Clock, jobs: Jobs) -> None:
        self.clock = clock
        self.jobs = jobs
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.topics: set[str] = set()
        self.subscriptions: dict[str, Subscription] = {}
        self.sink = ""
        self._number = 0

    def set_sink(self, topic: str) -> None:
        """Tell of jobs that end from now on, as a log sink with the filter of docs/push.md does.

        :param topic: full name; empty: no more.
        :raises ApiError: 404, when there is no such topic.
        """
        if topic:
            self._require_topic(topic)
        self.sink = topic
        for _ in self.jobs.take_ended():  # what has ended before is not told of
            continue

    def publish(self, topic: str, messages: list[Json]) -> list[str]:
        """Publish messages; gives their IDs ("projects.topics.publish")."""
        self._require_topic(topic)
        identities: list[str] = []
        for message in messages:
            if not (message.get("data") or message.get("attributes")):
                raise ApiError(400, "A message must have data or at least one attribute.")
            self._number += 1
            kept = {**message, "messageId": str(self._number), "publishTime": rfc3339(self.clock.millis())}
            identities.append(kept["messageId"])
            for subscription in self.subscriptions.values():
                if subscription.topic == topic:
                    subscription.leases[kept["messageId"]] = Lease(kept)
        return identities

    async def pull(self, name: str, most: int, at_once: bool, gone: Callable[[], bool]) -> list[Json]:
        """Lease messages to the caller, who waits for a while when there are none ("projects.subscriptions.pull")."""
        until = time.monotonic() + (0 if at_once else _WAIT_S)
        while not gone():
            taken = self._lease(name, most)
            if taken or time.monotonic() >= until:
                return taken
            await asyncio.sleep(_STEP_S)
        return []

    def _lease(self, name: str, most: int) -> list[Json]:
        if self.sink:
            self.publish(self.sink, [_log_message(job) for job in self.jobs.take_ended()])
        subscription = self.subscription(name)
        now = self.clock.now()
        taken: list[Json] = []
        for lease in subscription.leases.values():
            if lease.until <= now and len(taken) < most:
                lease.until, lease.ack_id = now + subscription.deadline, uuid.uuid4().hex
                lease.deliveries += 1
                taken.append({"ackId": lease.ack_id, "message": lease.message})
        return taken

    def acknowledge(self, name: str, ack_ids: list[str]) -> None:
        """Let messages go; an ID that is out of date does nothing ("projects.subscriptions.acknowledge")."""
        leases = self.subscription(name).leases
        for identity in [each for each, lease in leases.items() if lease.ack_id in ack_ids]:
            del leases[identity]

    def set_deadline(self, name: str, ack_ids: list[str], seconds: int) -> None:
        """Lease messages for so long from now on; 0 gives them back ("modifyAckDeadline")."""
        for lease in self.subscription(name).leases.values():
            if lease.ack_id in ack_ids:
                lease.until = self.clock.now() + seconds

    def subscription(self, name: str) -> Subscription:
        """A subscription by its full name; 404 when there is none."""
        if name not in self.subscriptions:
            raise ApiError(404, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return self.subscriptions[name]

    def _require_topic(self, name: str) -> None:
        if name not in self.topics:
            raise ApiError(404, f"Resource not found (resource={name.rpartition('/')[2]}).")


def log_entry(job: Job) -> Json:
    """What Cloud Audit Logs write when a job is done (LogEntry; AuditLog; BigQueryAuditMetadata, "JobChange")."""
    name = f"projects/{job.project}/jobs/{job.job_id}"
    failure = job.failure(job.ended)
    ended = rfc3339(job.ended)
    return {
        "protoPayload": {
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
            "status": {"code": 3, "message": failure["message"]} if failure else {},
            "authenticationInfo": {"principalEmail": job.user},
            "serviceName": "bigquery.googleapis.com",
            "methodName": "google.cloud.bigquery.v2.JobService.InsertJob",
            "resourceName": name,
            "metadata": {
                "@type": "type.googleapis.com/google.cloud.audit.BigQueryAuditMetadata",
                "jobChange": {
                    "before": "RUNNING",
                    "after": "DONE",
                    "job": {
                        "jobName": name,
                        "jobConfig": {"type": _TYPES[job.type], f"{job.type}Config": {}, "labels": job.labels},
                        "jobStatus": {"jobState": "DONE"} | ({"errorResult": failure} if failure else {}),
                        "jobStats": {
                            "createTime": rfc3339(job.created),
                            "startTime": rfc3339(job.started),
                            "endTime": ended,
                        },
                    },
                },
            },
        },
        "insertId": uuid.uuid4().hex[:12],
        "resource": {"type": "bigquery_project", "labels": {"project_id": job.project, "location": job.location}},
        "timestamp": ended,
        "severity": "ERROR" if failure else "INFO",
        "logName": f"projects/{job.project}/logs/cloudaudit.googleapis.com%2Fdata_access",
        "receiveTimestamp": ended,
    }


def _log_message(job: Job) -> Json:
    entry = log_entry(job)
    attributes = {"logging.googleapis.com/timestamp": entry["timestamp"]}
    return {"data": base64.b64encode(json.dumps(entry).encode()).decode(), "attributes": attributes}


class PubSubApi:
    """Recognises Pub/Sub's requests and answers them from :class:`PubSub`."""

    def __init__(self, pubsub: PubSub) -> None:
        self.pubsub = pubsub
        self._calls: dict[tuple[str, str, str], tuple[str, Callable[..., Any]]] = {
            ("PUT", "topics", ""): ("create", self._create_topic),
            ("GET", "topics", ""): ("get", self._get_topic),
            ("DELETE", "topics", ""): ("delete", self._delete_topic),
            ("POST", "topics", "publish"): ("publish", self._publish),
            ("PUT", "subscriptions", ""): ("create", self._create_subscription),
            ("GET", "subscriptions", ""): ("get", self._get_subscription),
            ("DELETE", "subscriptions", ""): ("delete", self._delete_subscription),
            ("POST", "subscriptions", "pull"): ("pull", self._pull),
            ("POST", "subscriptions", "acknowledge"): ("acknowledge", self._acknowledge),
            ("POST", "subscriptions", "modifyAckDeadline"): ("modifyAckDeadline", self._set_deadline),
            ("POST", "subscriptions", "testIamPermissions"): ("testIamPermissions", self._permissions),
        }

    def find(self, request: Request) -> Operation | None:
        """The operation that the request asks for, or None when its path is not one of Pub/Sub's."""
        found = _PATH.fullmatch(request.path)
        if found is None:
            return None
        project, kind, name, verb = found.groups()
        call = self._calls.get((request.method, kind, verb or ""))
        if call is None:
            return None
        run = partial(self._answer, call[1], request, f"{project}/{kind}/{name}")
        return Operation(f"pubsub.{kind}.{call[0]}", run, (("", name),), project[9:], batchable=False)

    async def _answer(self, answer: Callable[..., Any], request: Request, name: str) -> Reply:
        try:
            body = request.json()
            if answer == self._pull:
                return Reply(200, await self._pull(name, body, request.gone))
            return Reply(200, answer(name, body))
        except ApiError as error:
            said = {"code": error.status, "message": error.message, "status": _STATUS.get(error.status, "UNKNOWN")}
            return Reply(error.status, {"error": said})

    def _create_topic(self, name: str, body: Json) -> Json:
        if name in self.pubsub.topics:
            raise ApiError(409, f"Resource already exists in the project (resource={name.rpartition('/')[2]}).")
        self.pubsub.topics.add(name)
        return {"name": name}

    def _get_topic(self, name: str, body: Json) -> Json:
        self.pubsub._require_topic(name)
        return {"name": name}

    def _delete_topic(self, name: str, body: Json) -> Json:
        self.pubsub._require_topic(name)
        self.pubsub.topics.discard(name)
        return {}

    def _publish(self, name: str, body: Json) -> Json:
        return {"messageIds": self.pubsub.publish(name, body.get("messages", []))}

    def _create_subscription(self, name: str, body: Json) -> Json:
        if name in self.pubsub.subscriptions:
            raise ApiError(409, f"Resource already exists in the project (resource={name.rpartition('/')[2]}).")
        self.pubsub._require_topic(body.get("topic", ""))
        deadline = int(body.get("ackDeadlineSeconds") or 10)
        if not 10 <= deadline <= 600:
            raise ApiError(400, f"Invalid ack deadline given: {deadline}. It must be between 10 and 600 seconds.")
        self.pubsub.subscriptions[name] = Subscription(body["topic"], deadline)
        return self._get_subscription(name, body)

    def _get_subscription(self, name: str, body: Json) -> Json:
        found = self.pubsub.subscription(name)
        topic = found.topic if found.topic in self.pubsub.topics else "_deleted-topic_"
        return {"name": name, "topic": topic, "ackDeadlineSeconds": found.deadline, "pushConfig": {}}

    def _delete_subscription(self, name: str, body: Json) -> Json:
        self.pubsub.subscription(name)
        del self.pubsub.subscriptions[name]
        return {}

    async def _pull(self, name: str, body: Json, gone: Callable[[], bool]) -> Json:
        most = int(body.get("maxMessages") or 0)
        if most < 1:
            raise ApiError(400, "max_messages must be positive.")
        received = await self.pubsub.pull(name, most, bool(body.get("returnImmediately")), gone)
        return {"receivedMessages": received} if received else {}

    def _acknowledge(self, name: str, body: Json) -> Json:
        self.pubsub.acknowledge(name, body.get("ackIds", []))
        return {}

    def _set_deadline(self, name: str, body: Json) -> Json:
        seconds = int(body.get("ackDeadlineSeconds") or 0)
        if not 0 <= seconds <= 600:
            raise ApiError(400, f"Invalid ack deadline given: {seconds}. It must be between 0 and 600 seconds.")
        self.pubsub.set_deadline(name, body.get("ackIds", []), seconds)
        return {}

    def _permissions(self, name: str, body: Json) -> Json:
        self.pubsub.subscription(name)
        return {"permissions": body.get("permissions", [])}
