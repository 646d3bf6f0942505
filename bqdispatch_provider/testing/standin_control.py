"""What a test may do to a stand-in from outside: seed it, move its clock, break its calls, and ask what happened."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from bqdispatch_provider.testing.standin_api import ApiError, Clock, Json, Operation, Reply, Request
from bqdispatch_provider.testing.standin_bigquery import Jobs, JobsApi
from bqdispatch_provider.testing.standin_buckets import Buckets
from bqdispatch_provider.testing.standin_permissions import Permissions, Refusal
from bqdispatch_provider.testing.standin_pubsub import PubSub, PubSubApi
from bqdispatch_provider.testing.standin_storage import StorageApi

PREFIX: Final = "/_control/"

_WRITES = {
    f"storage.objects.{name}"
    for name in ["insert", "patch", "update", "delete", "restore", "compose", "copy", "rewrite"]
}
_LOOKS = {"bigquery.jobs.get", "bigquery.jobs.list"}


@dataclass(slots=True)
class Fault:
    """A rule that breaks the calls that it matches; a copy matches by its source and by its destination.

    :param call: the method's name, such as ``storage.objects.copy``, or a glob like ``storage.*``.
    :param kind: answer with an error status, close the connection without an answer or in the midst of it, answer late,
        or with some text.
    :param project: glob on the project that the call names.
    :param bucket: glob on the bucket's name.
    :param name: glob on the object's name, or on the job's ID.
    :param status: for ``status``: the HTTP status, 400 to 599; for ``text`` also one of success.
    :param text: for ``text``: what to answer with: HTML, as proxies do, or JSON of a shape of its own.
    :param reason: for ``status``: the reason that goes with it; the usual word for the status when left out.
    :param ms: for ``slow``: how much later, in milliseconds; or once the faults are cleared, if that is sooner.
    :param probability: chance that it strikes, 0 to 1.
    :param times: how often it still strikes; ``None``: always.
    :param after: do the call first, and then lose or replace its answer.
    """

    call: str
    kind: Literal["status", "reset", "cut", "slow", "text"]
    project: str | None = None
    bucket: str | None = None
    name: str | None = None
    status: int = 503
    reason: str | None = None
    text: str = ""
    ms: int = 0
    probability: float = 1.0
    times: int | None = None
    after: bool = False

    @classmethod
    def of(cls, document: Json) -> Fault:
        """A rule from its JSON form; 400 with the reason when it is not one."""
        unknown = set(document) - set(cls.__dataclass_fields__)
        if unknown:
            raise ApiError(400, f"A fault has no {', '.join(sorted(unknown))}.")
        if not isinstance(document.get("call"), str) or document.get("kind") not in _KINDS:
            raise ApiError(400, f"A fault needs a call and a kind, which is one of {', '.join(_KINDS)}.")
        try:
            fault = cls(**document)
            fault.status, fault.ms = int(fault.status), int(fault.ms)
            fault.probability = float(fault.probability)
            fault.times = None if fault.times is None else int(fault.times)
        except (TypeError, ValueError) as error:
            raise ApiError(400, f"Bad fault: {error}") from None
        least = 200 if fault.kind == "text" else 400
        if not least <= fault.status <= 599 or not 0 <= fault.probability <= 1:
            raise ApiError(400, "A fault's status is 400 to 599 and its probability 0 to 1.")
        for name in ("project", "bucket", "name", "reason", "text"):
            if not isinstance(getattr(fault, name), str | None):
                raise ApiError(400, f"A fault's {name} is a string.")
        return fault

    def matches(self, operation: Operation) -> bool:
        """Whether the rule is about this call."""
        if not fnmatchcase(operation.call, self.call):
            return False
        if self.project is not None and not fnmatchcase(operation.project, self.project):
            return False
        return any(
            (self.bucket is None or fnmatchcase(bucket, self.bucket))
            and (self.name is None or fnmatchcase(name, self.name))
            for bucket, name in operation.targets
        )


_KINDS = ("status", "reset", "cut", "slow", "text")


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []
        self.random = random.Random(0)
        self._cleared = asyncio.Event()

    async def delay(self, fault: Fault) -> None:
        """Wait as long as a slow fault says, or until it is cleared."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cleared.wait(), fault.ms / 1000)

    def clear(self) -> None:
        """Break nothing any more, and answer the calls that wait."""
        self.rules.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()

    def strike(self, operation: Operation) -> list[Fault]:
        """The rules that hit this call: every slow one, and the first other one. Their ``times`` are used up."""
        hits: list[Fault] = []
        final = False
        for rule in self.rules:
            if rule.times == 0 or (final and rule.kind != "slow") or not rule.matches(operation):
                continue
            if rule.probability < 1 and self.random.random() >= rule.probability:
                continue
            if rule.times is not None:
                rule.times -= 1
            final = final or rule.kind != "slow"
            hits.append(rule)
        # Late first: an error that is to come late is told by two rules.
        return sorted(hits, key=lambda rule: rule.kind != "slow")


class Limits:
    """How many calls a second the services take: whoever comes faster is refused what is too much. None at first.

    A second's worth may come at once (the rates: Cloud Storage, "Request rate and access distribution guidelines";
    BigQuery, "Quotas", API requests).

    :param clock: the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Limit nothing."""
        self.writes = self.jobs = 0.0
        self._taken: dict[str, tuple[float, float]] = {}

    def check(self, operation: Operation) -> None:
        """Refuse a call if it is one too many: a write in its bucket, or a look at jobs."""
        if self.writes and operation.call in _WRITES and not self._take(operation.targets[-1][0], self.writes):
            raise ApiError(429, "The bucket exceeded the rate limit for object writes.", "rateLimitExceeded")
        if self.jobs and operation.call in _LOOKS and not self._take(operation.call, self.jobs):
            raise ApiError(403, "Exceeded rate limits: too many API requests per user.", "rateLimitExceeded")

    def _take(self, what: str, per_second: float) -> bool:
        now = self._clock.now()
        at, taken = self._taken.get(what, (now, 0.0))
        taken = max(0.0, taken - (now - at) * per_second)
        fits = taken + 1 <= per_second
        self._taken[what] = now, taken + fits
        return fits


class State:
    """Everything that one stand-in keeps.

    :param latency_ms: how much later every HTTP request is answered, in milliseconds.
    :param name_limit: whether an object's name can be changed only once a second.
    """

    def __init__(self, latency_ms: float = 0, *, name_limit: bool = True) -> None:
        self.clock = Clock()
        self.permissions = Permissions()
        self.buckets = Buckets(self.clock, self.permissions, name_limit=name_limit)
        self.jobs = Jobs(self.clock)
        self.pubsub = PubSub(self.clock, self.jobs)
        self.faults = Faults()
        self.limits = Limits(self.clock)
        self.requests: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.latency_ms = self._first_latency_ms = latency_ms
        self._first_name_limit = name_limit
        # In the order in which they are asked for an operation: paths of buckets come last.
        self.services = JobsApi(self.jobs, self.permissions), PubSubApi(self.pubsub), StorageApi(self.buckets)

    def reset(self) -> None:
        """Empty everything, stop faults and refusals; clock, latency and name limit are as at the start."""
        self.latency_ms = self._first_latency_ms
        self.buckets.name_limit = self._first_name_limit
        self.buckets.clear()
        self.jobs.clear()
        self.pubsub.clear()
        self.permissions.refusals.clear()
        self.faults.clear()
        self.faults.random.seed(0)
        self.limits.clear()
        self.reset_counters()
        self.clock.set_real()

    def reset_counters(self) -> None:
        """Count from zero."""
        self.requests.clear()
        self.refused.clear()
        self.calls.clear()


class Control:
    """The control API over a :class:`State`."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._routes: dict[tuple[str, str], Callable[[Request], Json]] = {
            ("POST", "objects"): self._objects,
            ("POST", "jobs"): self._jobs,
            ("GET", "job-defaults"): self._job_defaults,
            ("POST", "job-defaults"): self._job_defaults,
            ("GET", "clock"): self._clock,
            ("POST", "clock"): self._clock,
            ("GET", "counters"): self._counters,
            ("POST", "counters/reset"): self._reset_counters,
            ("POST", "latency"): self._latency,
            ("POST", "limits"): self._limits,
            ("POST", "name-limit"): self._name_limit,
            ("GET", "faults"): self._list_faults,
            ("POST", "faults"): self._add_faults,
            ("DELETE", "faults"): self._clear_faults,
            ("POST", "faults/seed"): self._seed_faults,
            ("GET", "refusals"): self._list_refusals,
            ("POST", "refusals"): self._add_refusal,
            ("DELETE", "refusals"): self._clear_refusals,
            ("POST", "rewrite-calls"): self._rewrite_calls,
            ("GET", "peaks"): self._peaks,
            ("POST", "log-sink"): self._log_sink,
            ("POST", "reset"): self._reset,
        }

    def answer(self, request: Request) -> Reply:
        """Do what a request below the prefix asks for."""
        path = request.path.removeprefix(PREFIX)
        route = self._routes.get((request.method, path))
        if route is None:
            known = path in {name for _, name in self._routes}
            raise ApiError(405 if known else 404, f"The control API has no {request.method} {path}.")
        return Reply(200, route(request))

    def _objects(self, request: Request) -> Json:
        body = _body(request, "bucket", "objects")
        objects = body.get("objects", [])
        if not isinstance(body.get("bucket"), str) or not _is_list_of_objects(objects):
            raise ApiError(400, 'Give {"bucket": name, "objects": [{"name": …}, …]}.')
        return {"generations": [str(number) for number in self.state.buckets.seed(body["bucket"], objects)]}

    def _jobs(self, request: Request) -> Json:
        body = _body(request, "jobs")
        if not _is_list_of_objects(body.get("jobs")):
            raise ApiError(400, 'Give {"jobs": [{"project": …, "jobId": …}, …]}.')
        return {"added": len(self.state.jobs.add(body["jobs"]))}

    def _job_defaults(self, request: Request) -> Json:
        body, jobs = _body(request, "pendingMs", "runningMs"), self.state.jobs
        pending = int(_number(body, "pendingMs", jobs.default_pending))
        running = int(_number(body, "runningMs", jobs.default_running))
        jobs.default_pending, jobs.default_running = pending, running
        return {"pendingMs": pending, "runningMs": running}

    def _clock(self, request: Request) -> Json:
        body, clock = _body(request, "now", "advance"), self.state.clock
        if "now" in body and "advance" in body:
            raise ApiError(400, "Give either now or advance.")
        if "now" in body:
            clock.set(_number(body, "now", 0))
        elif "advance" in body:
            clock.advance(_number(body, "advance", 0, least=None))
        return {"now": clock.now()}

    def _counters(self, request: Request) -> Json:
        counters = {"requests": self.state.requests, "calls": self.state.calls, "refused": self.state.refused}
        return {name: dict(counter) for name, counter in counters.items()}

    def _reset_counters(self, request: Request) -> Json:
        self.state.reset_counters()
        return {}

    def _latency(self, request: Request) -> Json:
        self.state.latency_ms = _number(_body(request, "ms"), "ms")
        return {"ms": self.state.latency_ms}

    def _limits(self, request: Request) -> Json:
        body, limits = _body(request, "writes", "jobs"), self.state.limits
        limits.clear()
        limits.writes, limits.jobs = _number(body, "writes", 0), _number(body, "jobs", 0)
        return {"writes": limits.writes, "jobs": limits.jobs}

    def _name_limit(self, request: Request) -> Json:
        on = _body(request, "on").get("on")
        if not isinstance(on, bool):
            raise ApiError(400, "on must be true or false.")
        self.state.buckets.name_limit = on
        return {"on": on}

    def _list_faults(self, request: Request) -> Json:
        return {"faults": [asdict(rule) for rule in self.state.faults.rules]}

    def _add_faults(self, request: Request) -> Json:
        body = _body(request, "faults")
        if not _is_list_of_objects(body.get("faults")):
            raise ApiError(400, 'Give {"faults": [{"call": …, "kind": …}, …]}.')
        self.state.faults.rules += [Fault.of(rule) for rule in body["faults"]]
        return self._list_faults(request)

    def _clear_faults(self, request: Request) -> Json:
        self.state.faults.clear()
        return {}

    def _seed_faults(self, request: Request) -> Json:
        seed = int(_number(_body(request, "seed"), "seed", least=None))
        self.state.faults.random.seed(seed)
        return {"seed": seed}

    def _list_refusals(self, request: Request) -> Json:
        return {"refusals": self.state.permissions.shown()}

    def _add_refusal(self, request: Request) -> Json:
        refusal = Refusal.of(_body(request, "permission", "bucket", "prefix", "project"))
        self.state.permissions.refusals.append(refusal)
        return self._list_refusals(request)

    def _clear_refusals(self, request: Request) -> Json:
        self.state.permissions.refusals.clear()
        return {}

    def _rewrite_calls(self, request: Request) -> Json:
        calls = int(_number(_body(request, "n"), "n", least=1))
        self.state.buckets.rewrite_calls = calls
        return {"n": calls}

    def _peaks(self, request: Request) -> Json:
        return {"peaks": self.state.jobs.peaks(request.one("label"))}

    def _log_sink(self, request: Request) -> Json:
        topic = str(_body(request, "topic").get("topic") or "")
        self.state.pubsub.set_sink(topic)
        return {"topic": topic}

    def _reset(self, request: Request) -> Json:
        self.state.reset()
        return {}


def _body(request: Request, *names: str) -> Json:
    body = request.json()
    unknown = set(body) - set(names)
    if unknown:
        raise ApiError(400, f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(names)}.")
    return body


def _number(body: Json, name: str, default: float | None = None, least: float | None = 0) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(400, f"{name} must be a number.")
    if least is not None and value < least:
        raise ApiError(400, f"{name} must be at least {least}.")
    return value


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
