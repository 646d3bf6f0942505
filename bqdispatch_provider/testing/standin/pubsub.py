"""Pub/Sub: topics, pull subscriptions, and a log sink that publishes the ends of BigQuery jobs.

Every subscription of a topic gets a copy of each message. A pull leases messages; a message that is not acknowledged
before its lease ends is delivered again ("Pull subscriptions", "Lease management").
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bqdispatch_provider.testing.standin.api import ApiError, Json, Operation, Reply, Request
from bqdispatch_provider.testing.standin.bigquery_jobs import Job, Jobs
from bqdispatch_provider.testing.standin.clock import Clock, rfc3339

_MAX_PULL_WAIT_S: Final = 10.0
"""Maximum time that a pull waits for a message; the service documents only that there is one."""
_POLL_INTERVAL_S: Final = 0.02
_STATUS: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
_PATH: Final = re.compile(r"/v1/(projects/[^/:]+)/(topics|subscriptions)/([^/:]+)(?::([a-zA-Z]+))?")
_TYPES: Final = {"load": "IMPORT", "copy": "COPY", "extract": "EXPORT", "query": "QUERY"}


@dataclass(slots=True)
class Lease:
    """A message of a subscription.

    :param message: resource of the message.
    :param until: end of its lease in seconds since the epoch; 0: never leased.
    :param ack_id: ID that acknowledges the lease.
    """

    message: Json
    until: float = 0.0
    ack_id: str = ""


@dataclass(slots=True)
class Subscription:
    """A subscription and its messages that are not acknowledged.

    :param topic: full name of its topic.
    :param ack_deadline_s: duration of a lease in seconds.
    :param leases: messages by ID.
    """

    topic: str
    ack_deadline_s: int
    leases: dict[str, Lease] = field(default_factory=dict)


class PubSub:
    """The topics and subscriptions of all projects, and the methods of the REST API.

    :param clock: clock of the stand-in, which also ends leases.
    :param jobs: jobs whose ends are published to the log sink.
    """

    def __init__(self, clock: Clock, jobs: Jobs) -> None:
        self._clock = clock
        self._jobs = jobs
        self._methods: dict[tuple[str, str, str], tuple[str, Callable[..., Any]]] = {
            ("PUT", "topics", ""): ("create", self._create_topic),
            ("GET", "topics", ""): ("get", self._get_topic),
            ("DELETE", "topics", ""): ("delete", self._delete_topic),
            ("POST", "topics", "publish"): ("publish", self._publish),
            ("PUT", "subscriptions", ""): ("create", self._create_subscription),
            ("GET", "subscriptions", ""): ("get", self._get_subscription),
            ("DELETE", "subscriptions", ""): ("delete", self._delete_subscription),
            ("POST", "subscriptions", "pull"): ("pull", self._pull),
            ("POST", "subscriptions", "acknowledge"): ("acknowledge", self._acknowledge),
            ("POST", "subscriptions", "modifyAckDeadline"): ("modifyAckDeadline", self._modify_ack_deadline),
            ("POST", "subscriptions", "testIamPermissions"): ("testIamPermissions", self._test_permissions),
        }
        self.clear()

    def clear(self) -> None:
        """Remove all topics, subscriptions and messages."""
        self._topics: set[str] = set()
        self._subscriptions: dict[str, Subscription] = {}
        self._sink = ""
        self._last_message_id = 0

    def set_sink(self, topic: str) -> None:
        """Publish a message for each job that ends from now on, like a log sink with the filter in docs/push.md.

        :param topic: full name of the topic; empty: stop.
        :raises ApiError: 404 if there is no such topic.
        """
        if topic:
            _check_exists(topic, self._topics)
        self._sink = topic
        deque(self._jobs.take_ended(), maxlen=0)  # Jobs that have ended before are not published.

    def find(self, request: Request) -> Operation | None:
        """Return the call that a request asks for.

        :param request: the request.
        :returns: the call; ``None`` if the path is not one of this API.
        """
        found = _PATH.fullmatch(request.path)
        if found is None:
            return None
        project, kind, name, verb = found.groups()
        method = self._methods.get((request.method, kind, verb or ""))
        if method is None:
            return None
        run = partial(self._answer, method[1], request, f"{project}/{kind}/{name}")
        return Operation(f"pubsub.{kind}.{method[0]}", run, (("", name),), project[9:], batchable=False)

    async def _answer(self, method: Callable[..., Any], request: Request, name: str) -> Reply:
        try:
            if method == self._pull:
                return Reply(200, await self._pull(name, request.json(), request.gone))
            return Reply(200, method(name, request.json()))
        except ApiError as error:
            said = {"code": error.status, "message": error.message, "status": _STATUS.get(error.status, "UNKNOWN")}
            return Reply(error.status, {"error": said})

    def _create_topic(self, name: str, body: Json) -> Json:
        _check_new(name, self._topics)
        self._topics.add(name)
        return {"name": name}

    def _get_topic(self, name: str, body: Json) -> Json:
        _check_exists(name, self._topics)
        return {"name": name}

    def _delete_topic(self, name: str, body: Json) -> Json:
        _check_exists(name, self._topics)
        self._topics.discard(name)
        return {}

    def _publish(self, name: str, body: Json) -> Json:
        """Publish messages ("projects.topics.publish")."""
        _check_exists(name, self._topics)
        message_ids: list[str] = []
        for message in body.get("messages", ()):
            if not (message.get("data") or message.get("attributes")):
                raise ApiError(400, "A message must have data or at least one attribute.")
            self._last_message_id += 1
            message_ids.append(str(self._last_message_id))
            kept = {**message, "messageId": message_ids[-1], "publishTime": rfc3339(self._clock.millis())}
            for subscription in self._subscriptions.values():
                if subscription.topic == name:
                    subscription.leases[message_ids[-1]] = Lease(kept)
        return {"messageIds": message_ids}

    def _create_subscription(self, name: str, body: Json) -> Json:
        _check_new(name, self._subscriptions)
        topic = body.get("topic", "")
        _check_exists(topic, self._topics)
        deadline = int(body.get("ackDeadlineSeconds") or 10)
        if not 10 <= deadline <= 600:
            raise ApiError(400, f"Invalid ack deadline given: {deadline}. It must be between 10 and 600 seconds.")
        self._subscriptions[name] = Subscription(topic, deadline)
        return self._get_subscription(name, body)

    def _get_subscription(self, name: str, body: Json) -> Json:
        found = self._subscription(name)
        topic = found.topic if found.topic in self._topics else "_deleted-topic_"
        return {"name": name, "topic": topic, "ackDeadlineSeconds": found.ack_deadline_s, "pushConfig": {}}

    def _delete_subscription(self, name: str, body: Json) -> Json:
        _check_exists(name, self._subscriptions)
        del self._subscriptions[name]
        return {}

    async def _pull(self, name: str, body: Json, gone: Callable[[], bool]) -> Json:
        """Lease messages, or wait a while for the first one ("projects.subscriptions.pull")."""
        limit = int(body.get("maxMessages") or 0)
        if limit < 1:
            raise ApiError(400, "max_messages must be positive.")
        until = time.monotonic() + (0 if body.get("returnImmediately") else _MAX_PULL_WAIT_S)
        while not gone():
            taken = self._lease(name, limit)
            if taken:
                return {"receivedMessages": taken}
            if time.monotonic() >= until:
                break
            await asyncio.sleep(_POLL_INTERVAL_S)
        return {}

    def _lease(self, name: str, limit: int) -> list[Json]:
        if self._sink:
            self._publish(self._sink, {"messages": [_log_message(job) for job in self._jobs.take_ended()]})
        subscription = self._subscription(name)
        now = self._clock.now()
        taken: list[Json] = []
        for lease in subscription.leases.values():
            if lease.until <= now and len(taken) < limit:
                lease.until, lease.ack_id = now + subscription.ack_deadline_s, uuid.uuid4().hex
                taken.append({"ackId": lease.ack_id, "message": lease.message})
        return taken

    def _acknowledge(self, name: str, body: Json) -> Json:
        """Remove messages, and ignore outdated IDs ("projects.subscriptions.acknowledge")."""
        subscription, ack_ids = self._subscription(name), body.get("ackIds", ())
        subscription.leases = {key: lease for key, lease in subscription.leases.items() if lease.ack_id not in ack_ids}
        return {}

    def _modify_ack_deadline(self, name: str, body: Json) -> Json:
        """Change the end of leases; 0 ends them at once ("projects.subscriptions.modifyAckDeadline")."""
        seconds = int(body.get("ackDeadlineSeconds") or 0)
        if not 0 <= seconds <= 600:
            raise ApiError(400, f"Invalid ack deadline given: {seconds}. It must be between 0 and 600 seconds.")
        for lease in self._subscription(name).leases.values():
            if lease.ack_id in body.get("ackIds", ()):
                lease.until = self._clock.now() + seconds
        return {}

    def _test_permissions(self, name: str, body: Json) -> Json:
        _check_exists(name, self._subscriptions)
        return {"permissions": body.get("permissions", [])}

    def _subscription(self, name: str) -> Subscription:
        _check_exists(name, self._subscriptions)
        return self._subscriptions[name]


def _check_exists(name: str, known: Container[str]) -> None:
    if name not in known:
        raise ApiError(404, f"Resource not found (resource={name.rpartition('/')[2]}).")


def _check_new(name: str, known: Container[str]) -> None:
    if name in known:
        raise ApiError(409, f"Resource already exists in the project (resource={name.rpartition('/')[2]}).")


def _log_message(job: Job) -> Json:
    """Return the message of the Cloud Audit Logs entry for the end of a job.

    Sources: LogEntry, AuditLog, BigQueryAuditMetadata ("JobChange").
    """
    name = f"projects/{job.project}/jobs/{job.job_id}"
    failure = job.failure(job.ended_ms)
    ended = rfc3339(job.ended_ms)
    entry = {
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
                            "createTime": rfc3339(job.created_ms),
                            "startTime": rfc3339(job.started_ms),
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
    data = base64.b64encode(json.dumps(entry).encode()).decode()
    return {"data": data, "attributes": {"logging.googleapis.com/timestamp": ended}}
