"""The keys of a configuration document: how each value is read and checked.

Rules: docs/protocol.md, section "Configuration document".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any

from bqdispatch_provider.config_errors import MAX_NAMED, listed, shown, shown_name

log = logging.getLogger(__name__)

MAX_TIME_TO_LIVE_MIN = 24 * 60
"""The longest ``TimeToLiveInMin`` that a document may have."""

_BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
GS_URL = re.compile(rf"gs://{_BUCKET}(/[^/\r\n]+)*/?")
"""``gs://bucket/path``, with or without a slash at its end."""

_KMS_KEY = re.compile(
    r"(?!projects/)[^\s/]+/[^\s/]+|projects/[^\s/]+/locations/[^\s/]+/keyRings/[^\s/]+/cryptoKeys/[^\s/]+"
)
PROJECT = r"([a-z0-9][a-z0-9.-]*:)?[A-Za-z0-9_][A-Za-z0-9_-]*"
"""Without a dash at its beginning, which would be that of an option of gcloud."""

_LIKE_KEY = "ring/key, or projects/…/locations/…/keyRings/…/cryptoKeys/…"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_MAX_NUMBER = 10_000_000_000
_MAX_TEXT_CHARS = 10_000
"""Of a value, with its variables filled in. The longest is a URL: an object's name has 1,024 bytes at most."""

_MAX_COMPARED = 500
"""Ignored keys that are compared with the valid ones. BqTail's own configuration has fewer than fifty keys."""

_MAX_KEY_EXCESS = 1.25
"""A key that is longer than the longest valid one by this factor is like none of them."""

_GO_LIMIT = "MaxConcurrentLoad"
"""The Go code's name of ``MaxConcurrentJobs``."""


@dataclass(frozen=True)
class SlackCredentials:
    """The location of the Slack token.

    :param url: ``gs://`` URL of a KMS-encrypted JSON object.
    :param key: KMS key, as ``ring/key``, or whole: ``projects/…/locations/…/keyRings/…/cryptoKeys/…``.
    """

    url: str
    key: str


class Reading:
    """A document being read.

    :param document: its keys, in any case, as Go's JSON decoder takes them; and its values.
    :param variables: values for ``${name}`` in any string.
    """

    def __init__(self, document: Mapping[Any, Any], variables: Mapping[str, str]) -> None:
        known = {key.lower(): key for key in (*KEYS, _GO_LIMIT)}
        self.document = {known.get(str(key).lower(), str(key)): value for key, value in document.items()}
        self.variables = variables
        self.findings: list[str] = []
        """Everything that is wrong, one sentence each."""

        self.used: set[str] = set()
        """Names of the variables that the document asks for."""

        self._given = ""

    def fields(self) -> dict[str, Any]:
        """Return the valid values that are given, by attribute of the configuration; what is wrong is a finding."""
        fields = {attribute: read(self, key) for key, (attribute, read) in KEYS.items()}
        if self.document.get(_GO_LIMIT) is not None:
            limit, same = _number(self, _GO_LIMIT), fields["max_concurrent_jobs"]
            if self.document.get("MaxConcurrentJobs") is None:
                fields["max_concurrent_jobs"] = limit
            elif None not in (limit, same) and limit != same:
                self.wrong(_GO_LIMIT, limit, f"the same as MaxConcurrentJobs ({same})")
        return {attribute: value for attribute, value in fields.items() if value is not None}

    def wrong(self, key: str, value: Any, expected: str) -> None:
        """Note that a value is not what is expected."""
        self.findings.append(f"{key} is {shown(value)}; expected {expected}")

    def text(self, key: str, value: Any, expected: str = "a string") -> str | None:
        """Return a string with its variables filled in; ``None``, with a finding, when that cannot be done."""
        if not isinstance(value, str):
            self.wrong(key, value, expected)
            return None
        if len(value) > _MAX_TEXT_CHARS:
            self.wrong(key, value, f"{_MAX_TEXT_CHARS:,} characters at most")
            return None
        # No variable ends behind the last brace; to look for one there would take the square of the text's length.
        start, brace, rest = value.rpartition("}")
        asked = _VARIABLE.findall(start + brace)
        self.used.update(asked)
        unusable = {name for name in asked if not self._is_usable(name)}
        for name in islice(sorted(unusable), MAX_NAMED):
            self.findings.append(f"{key} asks for the variable ${{{shown_name(name)}}}, which is {self._said(name)}")
        if unusable:
            return None
        # Once: what a value says is no variable again.
        if sum(len(str(self.variables[name])) for name in asked) > _MAX_TEXT_CHARS:
            self.wrong(key, value, f"{_MAX_TEXT_CHARS:,} characters at most once its variables are filled in")
            return None
        filled = _VARIABLE.sub(lambda match: str(self.variables[match[1]]), start + brace) + rest
        if any("\ud800" <= character <= "\udfff" for character in filled):
            self.wrong(key, value, "text that can be encoded, without surrogates")
            return None
        return filled

    def _is_usable(self, variable: str) -> bool:
        return type(self.variables.get(variable)) in (str, int, float)

    def _said(self, variable: str) -> str:
        """Return what is wrong with a variable, without its value, which may be a secret."""
        if variable in self.variables:
            return f"a {type(self.variables[variable]).__name__}; expected text or a number"
        # Once: a document may ask for many that are not given.
        self._given = self._given or listed([shown_name(each) for each in sorted(self.variables)]) or "none"
        return f"not given; expected one of the given ones: {self._given}"

    def number(self, key: str) -> Any:
        """Return a value, as a number where it is the text of one: the URI of a connection holds only text."""
        value = self.document.get(key)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value, re.ASCII):
            return float(value) if "." in value else int(value)
        return value

    def log_ignored(self) -> dict[str, str]:
        """Log the keys that are ignored.

        Of an invalid document, only misspelt keys are logged: it may be no configuration, and hold anything as a key.

        :returns: misspelt keys, each with the key that it looks like; at most as many as a message names.
        """
        ignored = sorted(self.document.keys() - {*KEYS, _GO_LIMIT})
        longest = _MAX_KEY_EXCESS * max(map(len, KEYS))
        compared = list(islice((key for key in ignored if len(key) <= longest), _MAX_COMPARED))
        # No more than a message names: to compare keys takes long, and an untrusted document may have any number.
        similar = ((key, get_close_matches(key, (*KEYS, _GO_LIMIT), 1, 0.9)) for key in compared)
        alike = dict(islice(((key, found[0]) for key, found in similar if found), MAX_NAMED))
        named = [f"{shown_name(key)} (not {alike[key]})" for key in alike]
        named += [] if self.findings else [shown_name(key) for key in ignored if key not in alike]
        if named:
            # A misspelt limit is no limit: that must not go unseen.
            level = logging.WARNING if alike else logging.INFO
            log.log(level, "Ignored keys of the configuration that a dispatcher does not use: %s", listed(named))
        return alike


_Reader = Callable[[Reading, str], Any]


def _string(reading: Reading, key: str) -> str | None:
    value = reading.document.get(key)
    return reading.text(key, value) or None if value not in (None, "") else None


def _matching(form: str, expected: str) -> _Reader:
    """Return a reader of strings of a form.

    :param form: regular expression.
    :param expected: the form in words.
    """

    def read(reading: Reading, key: str) -> str | None:
        text = _string(reading, key)
        if text is not None and not re.fullmatch(form, text):
            reading.wrong(key, reading.document[key], expected)
            return None
        return text

    return read


def _location(reading: Reading, key: str) -> str | None:
    expected = "gs://bucket/folder, the bucket's name of 3 characters at least"
    value = reading.document.get(key)
    if value in (None, ""):
        first = "; DeferTaskURL is its name in BqTail's first version, whose traces have another form"
        known = first if key == "AsyncTaskURL" and "DeferTaskURL" in reading.document else ""
        reading.findings.append(f"{key} is missing; expected {expected}{known}")
        return None
    url = reading.text(key, value, expected)
    if url is not None and not GS_URL.fullmatch(url):
        scheme, _, place = url.partition("://")
        bucket, slash, path = place.partition("/")
        small = GS_URL.fullmatch(f"{scheme}://{bucket.lower()}{slash}{path}")
        reading.wrong(key, value, f"{expected}{', without capital letters' if small else ''}")
        return None
    return url and f"{url.rstrip('/')}/"


def _prefix(reading: Reading, key: str) -> str | None:
    prefix = _string(reading, key)
    if prefix is None:
        return None
    if not prefix.strip("/") or "\n" in prefix or "\r" in prefix:
        reading.wrong(key, reading.document[key], "a folder with slashes around it, such as /_batch_/")
        return None
    return f"/{prefix.strip('/')}/"


def _number(reading: Reading, key: str) -> int | None:
    value = reading.number(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
        reading.wrong(key, value, f"a whole number, 0 to {_MAX_NUMBER:,}")
        return None
    return value


def _minutes(reading: Reading, key: str) -> float | None:
    value = reading.number(key)
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None  # the default, as in Go
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIME_TO_LIVE_MIN:
        reading.wrong(key, value, f"a number of minutes, 0 to {MAX_TIME_TO_LIVE_MIN:,}; 0 means the default, 1")
        return None
    return value


def _slack(reading: Reading, key: str) -> SlackCredentials | None:
    value = reading.document.get(key)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        # Not shown: it may be the token itself.
        expected = 'an object {"URL": gs:// URL of the encrypted token, "Key": "ring/key"}'
        reading.findings.append(f"{key} is a {type(value).__name__}; expected {expected}")
        return None
    found: list[str] = []
    for part, form, like in (("URL", GS_URL, "gs://bucket/object"), ("Key", _KMS_KEY, _LIKE_KEY)):
        given = value.get(part)
        text = reading.text(f"{key}.{part}", given, like) if isinstance(given, str) else ""
        if text is not None and not form.fullmatch(text):
            # Not shown either.
            what = "missing" if given is None else "something else"
            reading.findings.append(f"{key}.{part} is {what}; expected {like}")
        elif text is not None:
            found.append(text)
    return SlackCredentials(*found) if len(found) == 2 else None


KEYS: Mapping[str, tuple[str, _Reader]] = {
    "ProjectID": ("project_id", _matching(PROJECT, "a project ID")),
    "Region": ("region", _string),
    "AsyncTaskURL": ("async_task_url", _location),
    "JournalURL": ("journal_url", _location),
    "ErrorURL": ("error_url", _location),
    "TriggerBucket": (
        "trigger_bucket",
        _matching(_BUCKET, "the name of a bucket, without gs:// and without a path"),
    ),
    "TimeToLiveInMin": ("time_to_live_in_min", _minutes),
    "CheckInMs": ("check_in_ms", _number),
    "MaxConcurrentSQL": ("max_concurrent_sql", _number),
    "MaxConcurrentJobs": ("max_concurrent_jobs", _number),
    "MaxTriggerDelayMs": ("max_trigger_delay_ms", _number),
    "MaxUnknownJobMin": ("max_unknown_job_min", _number),
    "JournalRetentionDays": ("journal_retention_days", _number),
    "PostJobPrefix": ("post_job_prefix", _prefix),
    "BatchPrefix": ("batch_prefix", _prefix),
    "MaxWritesPerSecond": ("max_writes_per_second", _number),
    "OnDoubt": ("on_doubt", _matching("deliver|quarantine", "deliver or quarantine")),
    "SlackCredentials": ("slack_credentials", _slack),
}
"""Each key, with the attribute of the configuration that it gives, and its reader."""
