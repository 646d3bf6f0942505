"""The client of the control API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import requests

from bqdispatch_provider.testing.standin.api import Json
from bqdispatch_provider.testing.standin.control_api import PREFIX


class StandInControl:
    """A client of a stand-in's control API.

    Every method raises :class:`ValueError` with the stand-in's message if the stand-in refuses the call.

    :param url: address of the stand-in, such as ``http://127.0.0.1:8080``.
    """

    def __init__(self, url: str) -> None:
        self._root = url.rstrip("/") + PREFIX
        self._session = requests.Session()
        # Use no proxy and no netrc file of the environment.
        self._session.trust_env = False

    def close(self) -> None:
        """Close the connections to the stand-in."""
        self._session.close()

    def __enter__(self) -> StandInControl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seed_objects(self, bucket: str, objects: Iterable[str | Mapping[str, Any]]) -> list[int]:
        """Create objects, and their bucket if it is missing.

        They replace objects with the same names; a bucket with versioning or soft delete keeps these.

        :param bucket: name of the bucket.
        :param objects: names, or ``{"name", "content"?, "contentType"?, "metadata"?, "timeCreated"?, "temporaryHold"?,
            "eventBasedHold"?}``, with the time in seconds since the epoch.
        :returns: their generations, in the same order.
        """
        entries = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in objects]
        answer = self._call("POST", "objects", {"bucket": bucket, "objects": entries})
        return [int(generation) for generation in answer["generations"]]

    def seed_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Create jobs.

        :param jobs: ``{"project", "jobId", "location"?, "type"?, "pendingMs"?, "runningMs"?, "error"?, "creationTime"?,
            "userEmail"?, "labels"?, "sourceUris"?, "destinationTable"?}``, with the time in seconds since the epoch. By
            default location is ``US`` and type is ``load``.
        """
        self._call("POST", "jobs", {"jobs": [dict(job) for job in jobs]})

    def set_job_defaults(self, pending_ms: int = 0, running_ms: int = 0) -> None:
        """Set the schedule of jobs that do not have one of their own.

        :param pending_ms: time in PENDING, in milliseconds.
        :param running_ms: time in RUNNING, in milliseconds.
        """
        self._call("POST", "job-defaults", {"pendingMs": pending_ms, "runningMs": running_ms})

    def now(self) -> float:
        """Return the stand-in's time in seconds since the epoch."""
        return float(self._call("GET", "clock")["now"])

    def set_clock(self, now: float) -> float:
        """Set the clock, which goes on from there.

        :param now: time in seconds since the epoch.
        :returns: the new time in seconds since the epoch.
        """
        return float(self._call("POST", "clock", {"now": now})["now"])

    def advance(self, seconds: float) -> float:
        """Move the clock.

        :param seconds: seconds to move forward; back if negative.
        :returns: the new time in seconds since the epoch.
        """
        return float(self._call("POST", "clock", {"advance": seconds})["now"])

    def requests(self) -> int:
        """Return the number of HTTP requests since the last reset. A batch is one request."""
        return sum(self.requests_by_method().values())

    def requests_by_method(self) -> dict[str, int]:
        """Return the number of HTTP requests since the last reset, by method. A batch counts as ``storage.batch``."""
        return dict(self._call("GET", "counters")["requests"])

    def calls(self) -> dict[str, int]:
        """Return the number of calls since the last reset, by method. Each part of a batch is a call."""
        return dict(self._call("GET", "counters")["calls"])

    def refused(self) -> dict[str, int]:
        """Return the number of calls refused for a rate limit since the last reset, by method."""
        return dict(self._call("GET", "counters")["refused"])

    def reset_counters(self) -> None:
        """Set all counters to zero."""
        self._call("POST", "counters/reset")

    def set_latency(self, ms: float) -> None:
        """Delay the answer to every HTTP request.

        :param ms: delay in milliseconds.
        """
        self._call("POST", "latency", {"ms": ms})

    def set_limits(self, writes: float = 0, jobs: float = 0) -> None:
        """Set rate limits, as the services have them.

        :param writes: writes and deletions per second in each bucket (429 ``rateLimitExceeded``); 0: no limit.
        :param jobs: calls per second of ``jobs.get``, and of ``jobs.list`` (403 ``rateLimitExceeded``); 0: no limit.
        """
        self._call("POST", "limits", {"writes": writes, "jobs": jobs})

    def set_name_limit(self, on: bool) -> None:
        """Switch the service's limit of one change per second and object name on or off.

        :param on: ``True``: refuse a change of a name less than a second after the last one, by the stand-in's clock
            (429 ``rateLimitExceeded``).
        """
        self._call("POST", "name-limit", {"on": on})

    def add_fault(self, call: str, kind: str, **more: Any) -> None:
        """Break calls.

        :param call: name of an API method, or a glob such as ``storage.objects.*``; ``storage.batch`` for batches.
        :param kind: ``status`` (answer with an error), ``reset`` (close the connection), ``cut`` (close it in the
            middle of the answer), ``slow`` (answer late), or ``text`` (answer with a text).
        :param more: ``project``, ``bucket``, ``name`` (globs), ``status``, ``reason``, ``text``, ``ms``,
            ``probability``, ``times``, ``after``: see :class:`~bqdispatch_provider.testing.standin.faults.Fault`.
        """
        self._call("POST", "faults", {"faults": [{"call": call, "kind": kind, **more}]})

    def faults(self) -> list[Json]:
        """Return the rules that break calls, each with its remaining ``times``."""
        return list(self._call("GET", "faults")["faults"])

    def clear_faults(self) -> None:
        """Remove all rules that break calls, and answer delayed calls at once."""
        self._call("DELETE", "faults")

    def seed_faults(self, seed: int) -> None:
        """Restart the random numbers behind ``probability``.

        :param seed: seed of the random numbers; 0 at the start and after a reset.
        """
        self._call("POST", "faults/seed", {"seed": seed})

    def refuse(
        self, permission: str, *, bucket: str | None = None, prefix: str | None = None, project: str | None = None
    ) -> None:
        """Refuse calls that need a permission (403).

        :param permission: name of a permission of Cloud Storage, or ``bigquery.jobs.get``, ``bigquery.jobs.list`` or
            ``bigquery.jobs.listAll`` (lists with ``allUsers``).
        :param bucket: bucket on which the permission is refused; all by default.
        :param prefix: prefix of the objects on which it is refused; all by default. ``testIamPermissions`` of the
            bucket still shows it as granted.
        :param project: project in which a permission of BigQuery is refused; all by default.
        """
        where = {"bucket": bucket, "prefix": prefix, "project": project}
        given = {name: value for name, value in where.items() if value is not None}
        self._call("POST", "refusals", {"permission": permission, **given})

    def refusals(self) -> list[Json]:
        """Return the refused permissions."""
        return list(self._call("GET", "refusals")["refusals"])

    def allow_all(self) -> None:
        """Grant all permissions again."""
        self._call("DELETE", "refusals")

    def set_rewrite_calls(self, n: int) -> None:
        """Let rewrites take several calls, as for large objects.

        :param n: number of calls for each rewrite; 1 at the start and after a reset.
        """
        self._call("POST", "rewrite-calls", {"n": n})

    def peaks(self, label: str | None = None) -> dict[str, dict[str, int]]:
        """Return the maximum numbers of jobs that were PENDING or RUNNING at the same time, up to now.

        :param label: count only jobs with a label of this name; all by default.
        :returns: by project, the maximum by type (``load``, ``copy``, ``query``, ``extract``) and by group (``sql``,
            ``jobs``).
        """
        query = f"?{urlencode({'label': label})}" if label is not None else ""
        return dict(self._call("GET", f"peaks{query}")["peaks"])

    def set_log_sink(self, topic: str) -> None:
        """Publish a message for each job that ends from now on, like a log sink (docs/push.md).

        :param topic: ``projects/<project>/topics/<topic>`` of an existing topic; empty: stop.
        """
        self._call("POST", "log-sink", {"topic": topic})

    def reset(self) -> None:
        """Return to the state at the start: no buckets, jobs, topics, faults, refusals; counters at zero; real time."""
        self._call("POST", "reset")

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        response = self._session.request(method, self._root + path, json=body)
        answer: Json = response.json()
        if response.status_code != 200:
            raise ValueError(f"{method} {path}: {answer['error']['message']}")
        return answer
