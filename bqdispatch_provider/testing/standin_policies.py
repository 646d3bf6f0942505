"""What a bucket's policies mean for its objects: soft delete, retention, and holds; knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bqdispatch_provider.testing.standin_api import ApiError, Json, rfc3339
from bqdispatch_provider.testing.standin_objects import Bucket, StoredObject

DAY: Final = 86_400
SOFT_DELETE_SECONDS: Final = (7 * DAY, 90 * DAY)
"""Least and most of a soft delete policy that is not switched off by 0 ("Soft delete")."""
RETENTION_SECONDS: Final = (1, 3_155_760_000)
"""Least and most of a retention policy ("Bucket Lock")."""
PROTECTION: Final = frozenset(("eventBasedHold", "retention", "temporaryHold"))
"""What keeps an object from being deleted, and is never carried over to a copy of it."""
_HOLDS: Final = {"temporaryHold": "Temporary", "eventBasedHold": "Event-Based"}


def settings(body: Json, now: int) -> Json:
    """What a caller sets of a bucket, with policies as the service completes them.

    :param body: the caller's resource, or a part of it; null removes.
    :param now: the time, in milliseconds since the epoch.
    :raises ApiError: 400, when a policy is none.
    """
    done = dict(body)
    versioning = body.get("versioning")
    if versioning is not None and not isinstance(_member(versioning, "versioning", "enabled"), bool | None):
        raise ApiError(400, "versioning.enabled is true or false.", "invalid")
    for name, key, (least, most), off in (
        ("softDeletePolicy", "retentionDurationSeconds", SOFT_DELETE_SECONDS, True),
        ("retentionPolicy", "retentionPeriod", RETENTION_SECONDS, False),
    ):
        if body.get(name) is None:
            continue
        try:
            seconds = int(_member(body[name], name, key))
        except (TypeError, ValueError):
            raise ApiError(400, f"{name}.{key} is a number of seconds.", "invalid") from None
        if not least <= seconds <= most and not (off and seconds == 0):
            raise ApiError(400, f"{name}.{key} is {least} to {most} seconds{', or 0' if off else ''}.", "invalid")
        done[name] = {key: str(seconds), "effectiveTime": rfc3339(now)}
    return done


def _member(policy: Any, name: str, key: str) -> Any:
    if not isinstance(policy, dict):
        raise ApiError(400, f"{name} must be an object.", "invalid")
    return policy.get(key)


def check_protection(bucket: Bucket, properties: Mapping[str, Any]) -> None:
    """Refuse holds and a retention that an object in this bucket cannot have."""
    for name in _HOLDS:
        if not isinstance(properties.get(name, False), bool):
            raise ApiError(400, f"{name} is true or false.", "invalid")
    retention = properties.get("retention")
    if retention is None:
        return
    if not bucket.properties.get("objectRetention"):
        raise ApiError(400, "Object retention is not enabled on the bucket.", "invalid")
    if _member(retention, "retention", "mode") not in ("Locked", "Unlocked"):
        raise ApiError(400, "retention.mode is Locked or Unlocked.", "invalid")
    _until(retention)
    if properties.get("eventBasedHold"):
        raise ApiError(400, "An object cannot have both an event-based hold and a retention configuration.", "invalid")


def check_retention_change(before: Mapping[str, Any], after: Mapping[str, Any], *, override: bool) -> None:
    """Refuse to take an object's retention back.

    :param before: the object's properties.
    :param after: what they are to become.
    :param override: whether the caller says that an unlocked one may be shortened, removed or locked.
    """
    old, new = before.get("retention"), after.get("retention")
    if old is None or old == new:
        return
    extended = new is not None and _until(new) >= _until(old) and old["mode"] == new["mode"]
    if not extended and (old["mode"] == "Locked" or not override):
        raise ApiError(403, "The retention configuration of the object can only be extended.")


def retained_until(stored: StoredObject) -> int | None:
    """When the object may go, as far as retention is concerned, in milliseconds since the epoch.

    :returns: ``None`` when there is no such time: no retention, or one that starts when a hold is released.
    """
    times = []
    if stored.home.retention_ms:
        if stored.properties.get("eventBasedHold"):
            return None
        times.append((stored.released or stored.created) + stored.home.retention_ms)
    if stored.properties.get("retention"):
        times.append(_until(stored.properties["retention"]))
    return max(times, default=None)


def check_may_go(stored: StoredObject, now: int, *, for_good: bool) -> None:
    """Refuse to delete or overwrite what is held or retained.

    :param stored: the object.
    :param now: the time, in milliseconds since the epoch.
    :param for_good: whether versioning would not keep it.
    :raises ApiError: 403, with a reason for retention and another for holds.
    """
    becomes_noncurrent = stored.noncurrent is None and stored.home.versioned and not for_good
    for name, words in _HOLDS.items():
        if not stored.properties.get(name):
            continue
        if becomes_noncurrent:
            raise ApiError(501, "The stand-in does not know what a hold means to a live object in a versioned bucket.")
        message = f"is under active {words} hold and cannot be deleted, overwritten or archived until hold is removed."
        raise ApiError(403, f"Object '{stored.bucket}/{stored.name}' {message}", "objectUnderActiveHold")
    until = retained_until(stored)
    # A retained object may stop being live: it is still there.
    if until is None or until <= now or becomes_noncurrent:
        return
    policy = "its own retention" if stored.properties.get("retention") else "bucket's retention policy"
    message = f"is subject to {policy} and cannot be deleted, overwritten or archived until {rfc3339(until)}"
    raise ApiError(403, f"Object '{stored.bucket}/{stored.name}' {message}", "retentionPolicyNotMet")


def unprotected(properties: Json) -> Json:
    """An object's properties without what protects it; the same dictionary when nothing does."""
    if PROTECTION.isdisjoint(properties):
        return properties
    return {key: value for key, value in properties.items() if key not in PROTECTION}


def _until(retention: Any) -> int:
    try:
        moment = datetime.fromisoformat(str(retention["retainUntilTime"]))
        if moment.tzinfo is None:
            raise ValueError("no zone")
    except (KeyError, ValueError):
        raise ApiError(400, "retention.retainUntilTime is a time in RFC 3339.", "invalid") from None
    return int(moment.timestamp() * 1000)
