"""The policies of a bucket and its objects: soft delete, retention and holds, independent of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bqdispatch_provider.testing.standin.api import ApiError, Json
from bqdispatch_provider.testing.standin.clock import rfc3339
from bqdispatch_provider.testing.standin.storage_model import Bucket, StoredObject

_DAY_S: Final = 86_400
SOFT_DELETE_RANGE_S: Final = (7 * _DAY_S, 90 * _DAY_S)
"""Minimum and maximum of a soft delete policy; 0 switches it off ("Soft delete")."""
RETENTION_RANGE_S: Final = (1, 3_155_760_000)
"""Minimum and maximum of a retention policy ("Bucket Lock")."""
PROTECTION: Final = frozenset(("eventBasedHold", "retention", "temporaryHold"))
"""Fields that protect an object from deletion; a copy does not get them."""
_HOLDS: Final = {"temporaryHold": "Temporary", "eventBasedHold": "Event-Based"}


def complete_settings(body: Json, now: int) -> Json:
    """Check the fields that a caller sets of a bucket, and complete its policies.

    :param body: new values by field; ``None`` removes a field.
    :param now: time in milliseconds since the epoch.
    :returns: the fields, with the effective times of the policies.
    :raises ApiError: 400 if a policy is invalid.
    """
    done = dict(body)
    versioning = body.get("versioning")
    if versioning is not None and not isinstance(_member(versioning, "versioning", "enabled"), bool | None):
        raise ApiError(400, "versioning.enabled is true or false.", "invalid")
    for name, key, (minimum, maximum), off in (
        ("softDeletePolicy", "retentionDurationSeconds", SOFT_DELETE_RANGE_S, True),
        ("retentionPolicy", "retentionPeriod", RETENTION_RANGE_S, False),
    ):
        if body.get(name) is None:
            continue
        try:
            seconds = int(_member(body[name], name, key))
        except (TypeError, ValueError):
            raise ApiError(400, f"{name}.{key} is a number of seconds.", "invalid") from None
        if not minimum <= seconds <= maximum and not (off and seconds == 0):
            raise ApiError(400, f"{name}.{key} is {minimum} to {maximum} seconds{', or 0' if off else ''}.", "invalid")
        done[name] = {key: str(seconds), "effectiveTime": rfc3339(now)}
    return done


def _member(policy: Any, name: str, key: str) -> Any:
    if not isinstance(policy, dict):
        raise ApiError(400, f"{name} must be an object.", "invalid")
    return policy.get(key)


def check_protection(bucket: Bucket, properties: Mapping[str, Any]) -> None:
    """Refuse holds and a retention that an object in a bucket cannot have.

    :param bucket: the bucket.
    :param properties: fields of the object.
    :raises ApiError: 400 if one is invalid.
    """
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
    """Refuse a change of an object's retention that is not an extension.

    :param before: fields of the object before.
    :param after: fields of the object after.
    :param override: ``True``: allow to shorten, remove or lock an unlocked retention.
    :raises ApiError: 403 if the change is refused.
    """
    old, new = before.get("retention"), after.get("retention")
    if old is None or old == new:
        return
    extended = new is not None and _until(new) >= _until(old) and old["mode"] == new["mode"]
    if not extended and (old["mode"] == "Locked" or not override):
        raise ApiError(403, "The retention configuration of the object can only be extended.")


def retained_until(stored: StoredObject) -> int | None:
    """Return the end of an object's retention.

    :param stored: the object.
    :returns: time in milliseconds since the epoch; ``None``: no retention, or one that starts when a hold is released.
    """
    times = []
    if stored.home.retention_ms:
        if stored.properties.get("eventBasedHold"):
            return None
        times.append((stored.released_ms or stored.created_ms) + stored.home.retention_ms)
    if stored.properties.get("retention"):
        times.append(_until(stored.properties["retention"]))
    return max(times, default=None)


def check_deletable(stored: StoredObject, now: int, *, permanently: bool) -> None:
    """Refuse to delete or overwrite an object that is held or retained.

    :param stored: the object.
    :param now: time in milliseconds since the epoch.
    :param permanently: ``True`` if versioning does not keep it.
    :raises ApiError: 403 with one reason for retention and another for holds.
    """
    becomes_noncurrent = stored.noncurrent_ms is None and stored.home.versioned and not permanently
    for name, words in _HOLDS.items():
        if not stored.properties.get(name):
            continue
        if becomes_noncurrent:
            raise ApiError(501, "The stand-in does not support holds on live objects in a bucket with versioning.")
        message = f"is under active {words} hold and cannot be deleted, overwritten or archived until hold is removed."
        raise ApiError(403, f"Object '{stored.bucket}/{stored.name}' {message}", "objectUnderActiveHold")
    until = retained_until(stored)
    # Versioning keeps a retained object, so it may become noncurrent.
    if until is None or until <= now or becomes_noncurrent:
        return
    policy = "its own retention" if stored.properties.get("retention") else "bucket's retention policy"
    message = f"is subject to {policy} and cannot be deleted, overwritten or archived until {rfc3339(until)}"
    raise ApiError(403, f"Object '{stored.bucket}/{stored.name}' {message}", "retentionPolicyNotMet")


def unprotected(properties: Json) -> Json:
    """Return an object's fields without holds and retention.

    :param properties: the fields.
    :returns: the same dictionary if there are none.
    """
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
