"""The state of a stand-in: clock, buckets, jobs, topics, faults, and counters."""

from __future__ import annotations

from collections import Counter

from bqdispatch_provider.testing.standin.bigquery_api import JobsApi
from bqdispatch_provider.testing.standin.bigquery_jobs import Jobs
from bqdispatch_provider.testing.standin.clock import Clock
from bqdispatch_provider.testing.standin.faults import Faults, Limits
from bqdispatch_provider.testing.standin.permissions import Permissions
from bqdispatch_provider.testing.standin.pubsub import PubSub
from bqdispatch_provider.testing.standin.storage_api import StorageApi
from bqdispatch_provider.testing.standin.storage_buckets import Buckets
from bqdispatch_provider.testing.standin.storage_objects import Objects


class State:
    """The state of a stand-in.

    :param latency_ms: delay of the answer to every HTTP request, in milliseconds.
    :param name_limit: ``True``: refuse a second change of an object name within a second.
    """

    def __init__(self, latency_ms: float = 0, *, name_limit: bool = True) -> None:
        self.clock = Clock()
        self.permissions = Permissions()
        self.buckets = Buckets(self.clock)
        self.objects = Objects(self.buckets, self.clock, self.permissions, name_limit=name_limit)
        self.storage = StorageApi(self.buckets, self.objects, self.permissions)
        self.jobs = Jobs(self.clock)
        self.pubsub = PubSub(self.clock, self.jobs)
        self.faults = Faults()
        self.limits = Limits(self.clock)
        self.requests: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.latency_ms = self._first_latency_ms = latency_ms
        self._first_name_limit = name_limit
        # Ask Cloud Storage last: any path may be the public path of an object.
        self.services = JobsApi(self.jobs, self.permissions), self.pubsub, self.storage

    def reset(self) -> None:
        """Return to the state at the start, except that generations keep growing."""
        self.latency_ms = self._first_latency_ms
        self.objects.name_limit = self._first_name_limit
        self.storage.clear()
        self.jobs.clear()
        self.pubsub.clear()
        self.permissions.refusals.clear()
        self.faults.clear()
        self.faults.random.seed(0)
        self.limits.clear()
        self.reset_counters()
        self.clock.set_real()

    def reset_counters(self) -> None:
        """Set all counters to zero."""
        for counter in (self.requests, self.calls, self.refused):
            counter.clear()
