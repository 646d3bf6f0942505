"""Settings of a BqTail, and rules for its destinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.testing.bqtail.bodies import KINDS

OTHER_ACTIONS = frozenset({"delete", "insert", "notify", "call"})
"""Actions of a rule that start no job."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for the files of a destination.

    :param multi_path: ``True``: a window has files of many folders (``Batch.MultiPath``).
    :param transient_dataset: dataset of the table between load and copy or query (``Transient.Dataset``); ``None``: the
        load job writes the destination itself.
    :param transient_project: project of the jobs, independent of the destination (``Transient.ProjectID``).
    :param transient_location: location of the transient dataset and the load job; that of the settings by default.
    :param balancer: projects of which each event takes a random one (``Transient.Balancer``).
    :param dml: ``True``: the queries of the chain are DML statements, whose jobs have no location.
    :param chain: as in :class:`BqTailSettings`, whose value is the default.
    :param then: as in :class:`BqTailSettings`, whose value is the default.
    :param on_failure: as in :class:`BqTailSettings`, whose value is the default.
    """

    multi_path: bool = False
    transient_dataset: str | None = "temp"
    transient_project: str | None = None
    transient_location: str | None = None
    balancer: tuple[str, ...] = ()
    dml: bool = False
    chain: tuple[str, ...] | None = None
    then: tuple[str, ...] | None = None
    on_failure: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class BqTailSettings:
    """The settings of a BqTail.

    :param task_url: URL of the task folder, ``gs://bucket/folder`` (``AsyncTaskURL``).
    :param trigger_bucket: name of the trigger bucket.
    :param project: project of the jobs if neither rule nor balancer has one, independent of the destination.
    :param location: location of all jobs; empty: none, and an empty region in the names of traces.
    :param data_prefix: prefix of data files in the trigger bucket, with a folder for each destination below.
    :param window_s: length of a batch window in seconds; 0: no batching.
    :param unbatched: destinations without batching.
    :param rules: rules by destination; the defaults of :class:`Rule` apply to all other destinations.
    :param post_job_prefix: prefix of delivered traces in the trigger bucket.
    :param batch_prefix: prefix of fired windows in the trigger bucket.
    :param journal_url: URL of the journal; by default in the bucket of the task folder.
    :param chain: actions whose jobs have a trace, in order.
    :param then: actions after the chain, each at most once: jobs without a trace, ``delete`` (deletes the data files),
        ``insert`` (streams a row), ``notify`` and ``call`` (send a message).
    :param on_failure: actions after a failed copy, query or export job; none after a failed load job.
    :param pending_ms: minimum and maximum time of jobs in PENDING, in milliseconds; ``None``: BigQuery's default.
    :param running_ms: minimum and maximum time of jobs in RUNNING, in milliseconds; ``None``: BigQuery's default.
    :param failing: share of the jobs with a trace that fail, 0 to 1.
    :param failing_by: reason of their errors.
    :param seed: seed of schedules and failures; the same seed gives a job the same schedule and outcome.
    :param delay_s: delay from the arrival of an object until it is handled, in seconds.
    :param workers: number of objects that are handled concurrently.
    :raises ValueError: if an action is unknown or misplaced.
    """

    task_url: str
    trigger_bucket: str
    project: str
    location: str = "US"
    data_prefix: str = "data/"
    window_s: int = 60
    unbatched: frozenset[str] = frozenset()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    post_job_prefix: str = "/_bqjob_/"
    batch_prefix: str = "/_batch_/"
    journal_url: str = ""
    chain: tuple[str, ...] = ("load", "copy", "query")
    then: tuple[str, ...] = ("query", "delete", "insert", "notify")
    on_failure: tuple[str, ...] = ("notify",)
    pending_ms: tuple[int, int] | None = None
    running_ms: tuple[int, int] | None = None
    failing: float = 0.0
    failing_by: str = "invalid"
    seed: int = 0
    delay_s: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        for rule in (Rule(), *self.rules.values()):
            _check_steps(*self.steps(rule))

    def rule(self, dest: str) -> Rule:
        """Return the rule of a destination.

        :param dest: destination table.
        """
        return self.rules.get(dest, _RULE)

    def steps(self, rule: Rule) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return the chain of a rule, the actions after it, and the actions after a failed job.

        :param rule: the rule.
        """
        chain = self.chain if rule.chain is None else rule.chain
        then = self.then if rule.then is None else rule.then
        return chain, then, self.on_failure if rule.on_failure is None else rule.on_failure

    @classmethod
    def for_dispatcher(cls, config: DispatchConfig, **more: Any) -> BqTailSettings:
        """Return the settings of the BqTail that a dispatcher serves.

        :param config: configuration of the dispatcher.
        :param more: settings that the configuration of a dispatcher does not have.
        :raises ConfigError: if the configuration has no project.
        """
        known = config.for_project(None)
        return cls(
            task_url=known.async_task_url,
            trigger_bucket=str(known.trigger_bucket),
            project=str(known.project_id),
            post_job_prefix=known.post_job_prefix,
            batch_prefix=known.batch_prefix,
            journal_url=known.journal_url,
            **more,
        )


_RULE = Rule()


def _check_steps(chain: Sequence[str], then: Sequence[str], on_failure: Sequence[str]) -> None:
    kinds = [KINDS.get(action) for action in (*chain, *then, *on_failure)]
    if not chain or kinds[0] != "load" or kinds.count("load") > 1:
        raise ValueError(f"chain is {chain!r}: load or reload must be its first action, and no other")
    unknown = {*chain} - KINDS.keys() | {*then, *on_failure} - KINDS.keys() - OTHER_ACTIONS
    if unknown:
        raise ValueError(
            f"unknown actions {sorted(unknown)}: jobs are {sorted(KINDS)}, the rest {sorted(OTHER_ACTIONS)}"
        )
    if len({*then}) < len(then):
        raise ValueError(
            f"then is {then!r}: an action must be there once, as a second row or message looks like a fault"
        )
