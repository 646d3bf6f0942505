"""Faults and rate limits that a test imposes on the calls of its clients."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from bqdispatch_provider.testing.standin.api import ApiError, Json, Operation
from bqdispatch_provider.testing.standin.clock import Clock

_KINDS = ("status", "reset", "cut", "slow", "text")


@dataclass(slots=True)
class Fault:
    """A rule that breaks calls.

    A copy matches by its source or by its destination.

    :param call: name of an API method, such as ``storage.objects.copy``, or a glob like ``storage.*``.
    :param kind: ``status`` (answer with an error), ``reset`` (close the connection), ``cut`` (close it in the middle of
        the answer), ``slow`` (answer late), or ``text`` (answer with a text).
    :param project: glob of the project that the call names; any by default.
    :param bucket: glob of the bucket's name; any by default.
    :param name: glob of the object's name or the job's ID; any by default.
    :param status: HTTP status for ``status`` (400 to 599) and ``text`` (200 to 599).
    :param reason: reason of the error for ``status``; the usual one of the status by default.
    :param text: answer for ``text``: HTML, as proxies send it, or JSON of any shape.
    :param ms: delay for ``slow`` in milliseconds; it ends early when the faults are cleared.
    :param probability: probability that the rule applies to a call, 0 to 1.
    :param times: number of calls that the rule still applies to; ``None``: no limit.
    :param after: ``True``: execute the call, then lose or replace its answer.
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
        """Read a rule from JSON.

        :param document: the parameters of the rule by name.
        :raises ApiError: 400 if the rule is invalid.
        """
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
        """Return ``True`` if the rule matches a call.

        :param operation: the call.
        """
        if not fnmatchcase(operation.call, self.call):
            return False
        if self.project is not None and not fnmatchcase(operation.project, self.project):
            return False
        return any(
            (self.bucket is None or fnmatchcase(bucket, self.bucket))
            and (self.name is None or fnmatchcase(name, self.name))
            for bucket, name in operation.targets
        )


class Faults:
    """All rules that break calls."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []
        self.random = random.Random(0)
        self._cleared = asyncio.Event()

    async def delay(self, fault: Fault) -> None:
        """Wait for the delay of a ``slow`` fault, or until the faults are cleared.

        :param fault: the fault.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cleared.wait(), fault.ms / 1000)

    def clear(self) -> None:
        """Remove all rules, and answer delayed calls at once."""
        self.rules.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()

    def apply(self, operation: Operation) -> list[Fault]:
        """Apply the rules to a call, and count down their ``times``.

        :param operation: the call.
        :returns: all ``slow`` rules that apply, then the first other one.
        """
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
        # Two rules make an error that comes late.
        return sorted(hits, key=lambda rule: rule.kind != "slow")


_WRITES = {
    f"storage.objects.{name}"
    for name in ["insert", "patch", "update", "delete", "restore", "compose", "copy", "rewrite"]
}
_JOB_READS = {"bigquery.jobs.get", "bigquery.jobs.list"}


class Limits:
    """Rate limits of the services; no limit by default.

    A burst of one second's calls is allowed. Sources: Cloud Storage, "Request rate and access distribution guidelines";
    BigQuery, "Quotas", API requests.

    :param clock: clock of the stand-in.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Remove all limits."""
        self.writes = self.jobs = 0.0
        self._taken: dict[str, tuple[float, float]] = {}

    def check(self, operation: Operation) -> None:
        """Refuse a call that exceeds a limit: a write in a bucket, or a read of jobs.

        :param operation: the call.
        :raises ApiError: 429 for a write, 403 for a read of jobs.
        """
        if self.writes and operation.call in _WRITES and not self._acquire(operation.targets[-1][0], self.writes):
            raise ApiError(429, "The bucket exceeded the rate limit for object writes.", "rateLimitExceeded")
        if self.jobs and operation.call in _JOB_READS and not self._acquire(operation.call, self.jobs):
            raise ApiError(403, "Exceeded rate limits: too many API requests per user.", "rateLimitExceeded")

    def _acquire(self, key: str, per_second: float) -> bool:
        now = self._clock.now()
        at, taken = self._taken.get(key, (now, 0.0))
        taken = max(0.0, taken - (now - at) * per_second)
        fits = taken + 1 <= per_second
        self._taken[key] = now, taken + fits
        return fits
