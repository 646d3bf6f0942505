"""Settings of a bucket that get in a dispatcher's way: retention policy, default hold and lifecycle rules.

Each finding is one sentence: what is set, what it does to the dispatcher, and what to do about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.core.windows import ENTRY_RETENTION
from bqdispatch_provider.gcp.storage_calls import split_folder_url

if TYPE_CHECKING:
    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.gcp.storage_answers import Result

FIELDS = "retentionPolicy,defaultEventBasedHold,lifecycle,versioning,softDeletePolicy,storageClass"
"""Fields of a bucket's resource that :class:`BucketSettings` needs (Cloud Storage, "Buckets")."""

LEDGER_DAYS = ENTRY_RETENTION.days
"""Days that an entry of the ledger of fired windows must stay in the task folder."""

DELIVERY_DAYS = 1
"""Days that a delivered object must stay in the trigger bucket: BqTail consumes it within minutes."""

_FOLDER_ENDINGS = (
    *(".win", ".wis", ".loc", "--dispatch"),  # BqTail's and the Go dispatcher's
    *(".json", ".done", ".claim", ".fired", ".aside", ".gone-0", ".0"),  # ours, a number at the end as 0
)
_DELIVERED_ENDINGS = (".win", ".json")
_NONCURRENT_CONDITIONS = ("daysSinceNoncurrentTime", "noncurrentTimeBefore", "numNewerVersions")
_CUSTOM_TIME_CONDITIONS = ("daysSinceCustomTime", "customTimeBefore")
_DATES = ("createdBefore", "noncurrentTimeBefore")


@dataclass(frozen=True)
class BucketSettings:
    """Settings by which a bucket keeps or deletes objects on its own.

    :param bucket: name of the bucket.
    :param resource: its resource, with :data:`FIELDS` (Cloud Storage, "Buckets: get").
    """

    bucket: str
    resource: Mapping[str, Any]

    def problems(self, config: DispatchConfig, now: datetime) -> list[str]:
        """Return what gets in the way of a dispatcher that uses this bucket.

        :param config: of the dispatcher, with its project filled in.
        :param now: the time.
        """
        findings: list[str] = []
        tasks, folder = split_folder_url(config.async_task_url)
        if self.bucket == tasks:
            findings += self._task_problems(folder, now)
        if self.bucket == config.trigger_bucket:
            prefixes = [config.post_job_prefix.lstrip("/"), config.batch_prefix.lstrip("/")]
            findings += self._delivery_problems(prefixes, now)
        return findings

    @property
    def blocks_deletes(self) -> bool:
        """True if objects that are written now cannot be deleted for a while."""
        return any(self._protections())

    def _task_problems(self, folder: str, now: datetime) -> list[str]:
        """Return what prevents objects of the task folder from being deleted, or deletes them too early.

        :param folder: path of the task folder in the bucket; ends with a slash, or is empty.
        """
        elsewhere = "or move AsyncTaskURL to another bucket"
        return [
            f"bucket {self.bucket!r} has {what}: dispatched events cannot be deleted; {how}, {elsewhere}"
            for what, how in self._protections()
        ] + [
            f"{rule}: events would be lost, and the ledger of fired windows must be kept for {LEDGER_DAYS} days; "
            f"raise its age, exclude the folder by matchesPrefix, {elsewhere}"
            for rule in self._early_deletes(folder, _FOLDER_ENDINGS, now, LEDGER_DAYS)
        ]

    def _delivery_problems(self, prefixes: Iterable[str], now: datetime) -> list[str]:
        """Return what prevents BqTail from consuming deliveries in the trigger bucket, or deletes them first.

        :param prefixes: folders that events are delivered to, without a leading slash.
        """
        findings = [
            f"bucket {self.bucket!r} has {what}: BqTail cannot delete what it has consumed; {how}"
            for what, how in self._protections()
        ]
        for prefix in prefixes:
            findings += [
                f"{rule}: events may be deleted before BqTail consumes them; "
                f"raise its age to {DELIVERY_DAYS} day, or exclude the folder by matchesPrefix"
                for rule in self._early_deletes(prefix, _DELIVERED_ENDINGS, now, DELIVERY_DAYS)
            ]
            if self._versioned and not self._soft_deletes:
                findings += [
                    f"{rule}: they prove what was delivered; "
                    f"raise its daysSinceNoncurrentTime to {DELIVERY_DAYS}, or give the bucket soft delete"
                    for rule in self._early_deletes(prefix, _DELIVERED_ENDINGS, now, DELIVERY_DAYS, live=False)
                ]
        return findings

    @property
    def _versioned(self) -> bool:
        return bool((self.resource.get("versioning") or {}).get("enabled"))

    @property
    def _soft_deletes(self) -> bool:
        return int((self.resource.get("softDeletePolicy") or {}).get("retentionDurationSeconds") or 0) > 0

    def _protections(self) -> Iterator[tuple[str, str]]:
        """Yield what prevents objects from being deleted, and the command that ends it."""
        update = f"gcloud storage buckets update gs://{self.bucket}"
        policy = self.resource.get("retentionPolicy") or {}
        seconds = int(policy.get("retentionPeriod") or 0)
        # With versioning a retained object can still become noncurrent, and a delete has to do no more.
        if seconds and not self._versioned:
            locked = bool(policy.get("isLocked"))
            how = "the policy is locked" if locked else f"remove it (`{update} --clear-retention-period`)"
            yield f"a retention policy of {timedelta(seconds=seconds)}", how
        if self.resource.get("defaultEventBasedHold"):
            yield "a default event-based hold", f"disable it (`{update} --no-default-event-based-hold`)"

    def _early_deletes(
        self, prefix: str, endings: Sequence[str], now: datetime, needed: int, *, live: bool = True
    ) -> Iterator[str]:
        """Describe each lifecycle rule that deletes objects of a folder too early.

        :param endings: of the objects' names.
        :param needed: days that the objects must stay.
        :param live: False: rules that delete noncurrent versions.
        """
        for rule in (self.resource.get("lifecycle") or {}).get("rule") or ():
            condition: Mapping[str, Any] = rule.get("condition") or {}
            # All conditions must be met, so the longest counts.
            days = max(int(condition.get("age") or 0), int(condition.get("daysSinceNoncurrentTime") or 0))
            if (
                (rule.get("action") or {}).get("type") == "Delete"
                and days < needed
                and (_is_about_live(condition) if live else condition.get("isLive") is not True)
                and self._may_match(condition, prefix, endings, now)
            ):
                what = "objects" if live else "noncurrent versions"
                when = f"after {days} day{'s' if days > 1 else ''}" if days else "at once"
                place = f"gs://{self.bucket}/{prefix}"
                yield (
                    f"bucket {self.bucket!r} has a lifecycle rule that deletes {what} below {place} {when} "
                    f"({json.dumps(condition)})"
                )

    def _may_match(self, condition: Mapping[str, Any], prefix: str, endings: Sequence[str], now: datetime) -> bool:
        """Return whether a rule applies to objects that are written now ("Object Lifecycle Management", conditions)."""
        # Objects that are written here have no custom time.
        if any(condition.get(each) is not None for each in _CUSTOM_TIME_CONDITIONS):
            return False
        today = now.astimezone(UTC).date()
        if any(condition.get(each) and date.fromisoformat(str(condition[each])[:10]) <= today for each in _DATES):
            return False
        classes = condition.get("matchesStorageClass")
        if classes and self.resource.get("storageClass", "STANDARD") not in classes:
            return False
        prefixes, suffixes = condition.get("matchesPrefix"), condition.get("matchesSuffix")
        if prefixes and not any(each.startswith(prefix) or prefix.startswith(each) for each in prefixes):
            return False
        return not suffixes or any(
            ending.endswith(each) or each.endswith(ending)
            for each in (re.sub(r"[0-9]+\Z", "0", suffix) for suffix in suffixes)
            for ending in endings
        )


def cannot_be_checked(
    bucket: str, refusal: Result, settings: str = "retention policy, default hold and lifecycle rules"
) -> str:
    """Say that a bucket's settings cannot be read.

    :param bucket: name of the bucket.
    :param refusal: the answer.
    :param settings: which ones.
    """
    why = f"needs storage.buckets.get on bucket {bucket!r}" if refusal.status in (401, 403) else str(refusal)
    return f"{settings} of bucket {bucket!r} cannot be checked: {why}"


def _is_about_live(condition: Mapping[str, Any]) -> bool:
    if condition.get("isLive") is False:
        return False
    return all(condition.get(each) is None for each in _NONCURRENT_CONDITIONS)
