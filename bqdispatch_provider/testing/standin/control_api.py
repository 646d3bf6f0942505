"""The control API, by which a test seeds a stand-in, moves its clock, breaks calls, and counts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from bqdispatch_provider.testing.standin.api import ApiError, Json, Reply, Request
from bqdispatch_provider.testing.standin.faults import Fault
from bqdispatch_provider.testing.standin.permissions import Refusal
from bqdispatch_provider.testing.standin.state import State

PREFIX: Final = "/_control/"
_INDEX: Final = """\
Stand-in Google Cloud: the parts of Cloud Storage, BigQuery and Pub/Sub that a dispatcher uses, in memory.

Point clients here, with anonymous credentials:

  export STORAGE_EMULATOR_HOST={url} BIGQUERY_EMULATOR_HOST={url}

Seed it in Python:

  from bqdispatch_provider.testing.standin import StandInControl

  with StandInControl("{url}") as control:
      control.seed_objects("my-bucket", ["empty", {{"name": "full", "content": "text"}}])
      control.seed_jobs([{{"project": "my-project", "jobId": "my-job", "runningMs": 60000}}])
      control.advance(60)

or by HTTP:

  curl {url}/_control/objects --json '{{"bucket": "my-bucket", "objects": [{{"name": "empty"}}]}}'

The control API, with the keys of the JSON bodies (StandInControl describes them all):

{methods}
"""


class Control:
    """The methods of the control API.

    :param state: state of the stand-in.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._methods: dict[tuple[str, str], tuple[Callable[[Request], Json | None], str]] = {
            ("POST", "objects"): (self._seed_objects, 'create objects: {"bucket", "objects": [{"name", "content"}]}'),
            ("POST", "jobs"): (self._seed_jobs, 'create jobs: {"jobs": [{"project", "jobId", "runningMs"}]}'),
            ("GET", "job-defaults"): (self._job_defaults, "show the default schedule of jobs"),
            ("POST", "job-defaults"): (self._job_defaults, 'set the default schedule: {"pendingMs", "runningMs"}'),
            ("GET", "clock"): (self._clock, "show the time in seconds since the epoch"),
            ("POST", "clock"): (self._clock, 'set or move the clock: {"now"} or {"advance"}, in seconds'),
            ("GET", "counters"): (self._counters, "show the numbers of requests, calls and refused calls"),
            ("POST", "counters/reset"): (lambda _: state.reset_counters(), "set all counters to zero"),
            ("POST", "latency"): (self._set_latency, 'delay every answer: {"ms"}'),
            ("POST", "limits"): (self._set_limits, 'set rate limits: {"writes", "jobs"}, calls per second'),
            ("POST", "name-limit"): (self._set_name_limit, 'one change per second and object name: {"on"}'),
            ("GET", "faults"): (self._list_faults, "show the faults"),
            ("POST", "faults"): (self._add_faults, 'break calls: {"faults": [{"call", "kind", "status"}]}'),
            ("DELETE", "faults"): (lambda _: state.faults.clear(), "remove all faults"),
            ("POST", "faults/seed"): (self._seed_faults, 'restart the random numbers of faults: {"seed"}'),
            ("GET", "refusals"): (self._list_refusals, "show the refused permissions"),
            ("POST", "refusals"): (self._add_refusal, 'refuse a permission: {"permission", "bucket"}'),
            ("DELETE", "refusals"): (lambda _: state.permissions.refusals.clear(), "grant all permissions"),
            ("POST", "rewrite-calls"): (self._set_rewrite_calls, 'calls for each rewrite of an object: {"n"}'),
            ("GET", "peaks"): (self._peaks, "show the maximum numbers of concurrent jobs, of a ?label"),
            ("POST", "log-sink"): (self._set_log_sink, 'publish the ends of jobs: {"topic"}'),
            ("POST", "reset"): (lambda _: state.reset(), "remove everything"),
        }

    def answer(self, request: Request) -> Reply:
        """Answer a request.

        :param request: request with a path below ``PREFIX``.
        :raises ApiError: 404 or 405 if there is no such method, 400 if its parameters are invalid.
        """
        path = request.path.removeprefix(PREFIX)
        method, _ = self._methods.get((request.method, path), (None, ""))
        if method is None:
            known = path in {name for _, name in self._methods}
            raise ApiError(405 if known else 404, f"The control API has no {request.method} {path}.")
        return Reply(200, method(request) or {})

    def index(self, url: str) -> Reply:
        """Return the page at the stand-in's address, which describes the stand-in and its control API.

        :param url: address of the stand-in.
        """
        lines = [f"  {verb:6} {PREFIX}{path:15} {text}" for (verb, path), (_, text) in self._methods.items()]
        text = _INDEX.format(url=url, methods="\n".join(lines))
        return Reply(200, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _seed_objects(self, request: Request) -> Json:
        body = _body(request, "bucket", "objects")
        objects = _objects({"objects": [], **body}, "objects", '{"bucket": name, "objects": [{"name": …}, …]}')
        if not isinstance(body.get("bucket"), str):
            raise ApiError(400, "bucket must be a string.")
        return {"generations": [str(number) for number in self._state.objects.seed(body["bucket"], objects)]}

    def _seed_jobs(self, request: Request) -> Json:
        jobs = _objects(_body(request, "jobs"), "jobs", '{"jobs": [{"project": …, "jobId": …}, …]}')
        self._state.jobs.seed(jobs)
        return {"added": len(jobs)}

    def _job_defaults(self, request: Request) -> Json:
        body, jobs = _body(request, "pendingMs", "runningMs"), self._state.jobs
        pending = int(_number(body, "pendingMs", jobs.default_pending_ms))
        running = int(_number(body, "runningMs", jobs.default_running_ms))
        jobs.default_pending_ms, jobs.default_running_ms = pending, running
        return {"pendingMs": pending, "runningMs": running}

    def _clock(self, request: Request) -> Json:
        body, clock = _body(request, "now", "advance"), self._state.clock
        if "now" in body and "advance" in body:
            raise ApiError(400, "Give either now or advance.")
        if "now" in body:
            clock.set(_number(body, "now", 0))
        elif "advance" in body:
            clock.advance(_number(body, "advance", 0, minimum=None))
        return {"now": clock.now()}

    def _counters(self, request: Request) -> Json:
        return {"requests": self._state.requests, "calls": self._state.calls, "refused": self._state.refused}

    def _set_latency(self, request: Request) -> Json:
        self._state.latency_ms = _number(_body(request, "ms"), "ms")
        return {"ms": self._state.latency_ms}

    def _set_limits(self, request: Request) -> Json:
        body, limits = _body(request, "writes", "jobs"), self._state.limits
        limits.clear()
        limits.writes, limits.jobs = _number(body, "writes", 0), _number(body, "jobs", 0)
        return {"writes": limits.writes, "jobs": limits.jobs}

    def _set_name_limit(self, request: Request) -> Json:
        on = _body(request, "on").get("on")
        if not isinstance(on, bool):
            raise ApiError(400, "on must be true or false.")
        self._state.objects.name_limit = on
        return {"on": on}

    def _list_faults(self, request: Request) -> Json:
        return {"faults": [asdict(rule) for rule in self._state.faults.rules]}

    def _add_faults(self, request: Request) -> Json:
        faults = _objects(_body(request, "faults"), "faults", '{"faults": [{"call": …, "kind": …}, …]}')
        self._state.faults.rules += [Fault.of(rule) for rule in faults]
        return self._list_faults(request)

    def _seed_faults(self, request: Request) -> Json:
        seed = int(_number(_body(request, "seed"), "seed", minimum=None))
        self._state.faults.random.seed(seed)
        return {"seed": seed}

    def _list_refusals(self, request: Request) -> Json:
        return {"refusals": [asdict(refusal) for refusal in self._state.permissions.refusals]}

    def _add_refusal(self, request: Request) -> Json:
        refusal = Refusal.of(_body(request, "permission", "bucket", "prefix", "project"))
        self._state.permissions.refusals.append(refusal)
        return self._list_refusals(request)

    def _set_rewrite_calls(self, request: Request) -> Json:
        calls = int(_number(_body(request, "n"), "n", minimum=1))
        self._state.storage.rewrite_calls = calls
        return {"n": calls}

    def _peaks(self, request: Request) -> Json:
        return {"peaks": self._state.jobs.peaks(request.one("label"))}

    def _set_log_sink(self, request: Request) -> Json:
        topic = str(_body(request, "topic").get("topic") or "")
        self._state.pubsub.set_sink(topic)
        return {"topic": topic}


def _body(request: Request, *names: str) -> Json:
    body = request.json()
    unknown = set(body) - set(names)
    if unknown:
        raise ApiError(400, f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(names)}.")
    return body


def _number(body: Json, name: str, default: float | None = None, minimum: float | None = 0) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(400, f"{name} must be a number.")
    if minimum is not None and value < minimum:
        raise ApiError(400, f"{name} must be at least {minimum}.")
    return value


def _objects(body: Json, name: str, usage: str) -> list[Json]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ApiError(400, f"Give {usage}.")
    return value
