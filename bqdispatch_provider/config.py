"""The configuration document: checked once, all findings at once, then frozen.

Rules: docs/protocol.md, section "Configuration document".
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from google.cloud.storage import Client

log = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = 1 << 20
"""Bytes that a configuration document may have."""

FILE_ROOTS = "BQDISPATCH_FILE_ROOTS"
"""Environment variable of Airflow's components: the folders whose files a connection may name as its document."""

_BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_GS_URL = re.compile(rf"gs://{_BUCKET}(/[^/\r\n]+)*/?")
_KMS_KEY = re.compile(r"[^\s/]+(/[^\s/]+)+")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[A-Za-z0-9_-]+")
_MOST = 10_000_000_000
_GO_LIMIT = "MaxConcurrentLoad"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_MAX_SHOWN = 80
"""Characters of a value or a key that a message shows."""
_MAX_NAMED = 40
"""Keys or variables that a message names."""


class ConfigError(ValueError):
    """A configuration that cannot be used.

    :param findings: one sentence for each thing that is wrong.
    :param where: what holds the configuration, for the message; by default nothing is said of it.
    """

    def __init__(self, findings: list[str], where: str = "") -> None:
        self.findings = findings
        listed = "\n".join(f"  - {finding}" for finding in findings)
        super().__init__(f"the configuration{where and f' of {where}'} cannot be used:\n{listed}")


@dataclass(frozen=True)
class SlackCredentials:
    """Where the Slack token lies: ``url`` of a KMS-encrypted JSON object, ``key`` as ``ring/key``."""

    url: str
    key: str


@dataclass(frozen=True)
class DispatchConfig:
    """A dispatcher's configuration. :meth:`from_dict`, :meth:`from_json` and :meth:`from_url` make it, and check it.

    :param async_task_url: task folder, ``gs://bucket/folder/``.
    :param journal_url: where ``performance.json`` and the response documents go.
    :param error_url: where goes what can never be dispatched.
    :param project_id: project of root traces and of windows that name none; ``None``: the credentials' project.
    :param region: where the KMS key lies; never used to look a job up.
    :param trigger_bucket: bucket that BqTail watches; ``None``: ``<project with _ for ->_bqtail``.
    :param time_to_live_in_min: how long one run goes on with cycles, in minutes.
    :param check_in_ms: how often a change of the document is looked for, in milliseconds; 0: once a run.
    :param max_concurrent_sql: limit for query jobs, per project; 0: none.
    :param max_concurrent_jobs: limit for all other jobs and for windows, per project; 0: none.
    :param max_trigger_delay_ms: least time for which a fired window is kept, in milliseconds.
    :param max_unknown_job_min: how long a trace may wait whose job BigQuery does not know before it is quarantined, in
        minutes; 0: for ever.
    :param post_job_prefix: where traces go in the trigger bucket, with slashes around it.
    :param batch_prefix: where windows go in the trigger bucket, with slashes around it.
    :param max_writes_per_second: objects that are written or deleted a second at most, in each bucket and by each
        process; 0: as fast as it goes. It gives way where a bucket takes less.
    :param on_doubt: what becomes of an event whose delivery can neither be proven nor excluded: ``deliver`` it again,
        or ``quarantine`` it.
    :param slack_credentials: where the Slack token lies; ``None``: no Slack.
    :param url: where the document was read; ``None`` when it was given in place.
    :param variables: the variables that it was read with.
    :param misspelt: keys of the document that are ignored and look like one that is not, each with that one.
    :param file_roots: as :meth:`from_url` was given them.
    """

    async_task_url: str
    journal_url: str
    error_url: str
    project_id: str | None = None
    region: str = "us-central1"
    trigger_bucket: str | None = None
    time_to_live_in_min: float = 1
    check_in_ms: int = 0
    max_concurrent_sql: int = 0
    max_concurrent_jobs: int = 0
    max_trigger_delay_ms: int = 120_000
    max_unknown_job_min: int = 24 * 60
    post_job_prefix: str = "/_bqjob_/"
    batch_prefix: str = "/_batch_/"
    max_writes_per_second: int = 5000
    on_doubt: str = "deliver"
    slack_credentials: SlackCredentials | None = None
    url: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    misspelt: Mapping[str, str] = field(default_factory=dict, repr=False)
    file_roots: tuple[str, ...] | None = field(default=None, repr=False)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> DispatchConfig:
        """Check a document that has been read already.

        :param document: the keys and values of docs/protocol.md; keys that only BqTail knows are ignored.
        :param variables: values for ``${name}`` in any string; none by default.
        :raises ConfigError: with every finding at once.
        """
        return cls._checked(document, variables or {}, None)

    @classmethod
    def from_json(cls, text: str | bytes, variables: Mapping[str, str] | None = None) -> DispatchConfig:
        """Read and check a JSON document.

        :param text: the document.
        :param variables: values for ``${name}`` in any string; none by default.
        :raises ConfigError: when it is no JSON object, or with every finding at once.
        """
        return cls._checked(read_json(text, "the document"), variables or {}, None)

    @classmethod
    def from_url(
        cls,
        url: str,
        variables: Mapping[str, str] | None = None,
        storage_client: Client | None = None,
        file_roots: Sequence[str] | None = None,
    ) -> DispatchConfig:
        """Fetch, read and check a JSON document of 1 MiB at most.

        :param url: ``gs://bucket/object`` or ``file:///path``, of a regular file.
        :param variables: values for ``${name}`` in any string; none by default.
        :param storage_client: client for ``gs://``; by default one with the environment's credentials.
        :param file_roots: absolute paths of the folders in which a file may lie, wherever symbolic links lead; none of
            them: no file is read. By default every file is.
        :raises ConfigError: when it cannot be read, is no JSON object, or with every finding at once.
        """
        roots = None if file_roots is None else tuple(file_roots)
        document = read_json(_fetch(url, storage_client, roots), _found(url))
        return replace(cls._checked(document, variables or {}, url), file_roots=roots)

    @classmethod
    def _checked(cls, document: Any, variables: Mapping[str, str], url: str | None) -> DispatchConfig:
        if not isinstance(document, Mapping):
            # Not shown: a file that is no document may be anything.
            raise ConfigError([f"the document is {_kind(document)}; expected a JSON object"])
        # Go's JSON decoder takes keys in any case, so documents that worked there may hold them so.
        known = {key.lower(): key for key in (*_KEYS, _GO_LIMIT)}
        reading = _Reading({known.get(str(key).lower(), str(key)): each for key, each in document.items()}, variables)
        fields = {attribute: read(reading, key) for key, (attribute, read) in _KEYS.items()}
        reading.limit_by_its_go_name(fields)
        places = {**_DEFAULT_PREFIXES, **{k: v for k, v in fields.items() if v is not None}}
        findings = [*reading.findings, *_overlaps(places)]
        misspelt = reading.log_ignored(all_of_them=not findings)
        if findings:
            raise ConfigError(findings)
        known_fields = {k: v for k, v in fields.items() if v is not None}
        return cls(**known_fields, url=url, variables=dict(variables), misspelt=misspelt)

    def for_project(self, project: str | None) -> DispatchConfig:
        """This configuration with the project, and the trigger bucket that follows from it, filled in.

        :param project: the credentials' project, for a document that names none.
        :raises ConfigError: when neither names a project, or the places overlap.
        """
        project_id = self.project_id or project
        if not project_id:
            raise ConfigError(["ProjectID is missing and the credentials name no project; expected a project ID"])
        bucket = self.trigger_bucket or f"{project_id.rsplit(':')[-1].replace('-', '_')}_bqtail"
        config = replace(self, project_id=project_id, trigger_bucket=bucket)
        if findings := _overlaps(vars(config)):
            raise ConfigError(findings)
        return config

    def again(self, storage_client: Client | None = None) -> DispatchConfig:
        """The configuration as its document says now; itself when it was given in place.

        :raises ConfigError: as :meth:`from_url`.
        """
        return self if self.url is None else self.from_url(self.url, self.variables, storage_client, self.file_roots)


_DEFAULT_PREFIXES = {"post_job_prefix": DispatchConfig.post_job_prefix, "batch_prefix": DispatchConfig.batch_prefix}


def _overlaps(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with places beside each other; those that are not known are passed over."""
    findings: list[str] = []
    tasks, trigger = fields.get("async_task_url"), fields.get("trigger_bucket")
    places = {key: fields.get(field) for key, (field, _) in _KEYS.items() if key in ("JournalURL", "ErrorURL")}
    for key, url in places.items():
        if _lies_in(url, tasks):
            findings.append(
                f"{key} {_found(url)} lies inside the task folder {_found(tasks)}, where every object is taken for an "
                "event; expected a place outside of it"
            )
    journal, errors = places.values()
    runs = f"{journal.rstrip('/')}/runs" if journal else None
    # Where one lies in the other both ways, they are the same, which is told above.
    if _lies_in(tasks, errors) and not _lies_in(errors, tasks):
        findings.append(
            f"AsyncTaskURL {_found(tasks)} lies inside the ErrorURL {_found(errors)}, where every object is taken for "
            "one that was set aside; expected a place outside of it"
        )
    for key, url in {"AsyncTaskURL": tasks, "ErrorURL": errors}.items():
        if _lies_in(url, runs):
            findings.append(
                f"{key} {_found(url)} lies inside {_found(runs)}, where the documents of runs lie; expected a place "
                "outside of it"
            )
    for key, url in {"AsyncTaskURL": tasks, **places}.items():
        if url and trigger and urlsplit(url).netloc == trigger:
            findings.append(
                f"{key} {_found(url)} lies in the TriggerBucket, whose every object BqTail consumes; expected another "
                "bucket"
            )
    one, other = sorted((fields["post_job_prefix"], fields["batch_prefix"]), key=len)
    if other.startswith(one):
        findings.append(
            f"PostJobPrefix {_found(fields['post_job_prefix'])} and BatchPrefix {_found(fields['batch_prefix'])} "
            "overlap; expected two folders side by side"
        )
    return findings


def _lies_in(url: str | None, folder: str | None) -> bool:
    """Tell whether one ``gs://`` URL is the other, or lies inside of it."""
    return bool(url and folder) and f"{str(url).rstrip('/')}/".startswith(f"{str(folder).rstrip('/')}/")


def _fetch(url: str, storage_client: Client | None, roots: tuple[str, ...] | None) -> bytes:
    shown, expected = _found(url), "expected gs://bucket/object or file:///path"
    parts = urlsplit(url)
    if parts.scheme not in ("gs", "file") or (parts.scheme == "gs" and not _GS_URL.fullmatch(url)):
        raise ConfigError([f"the document's URL is {shown}; {expected}"])
    try:
        if parts.scheme == "file":
            return _read_file(_allowed(Path(unquote(parts.path)), shown, roots))
        from bqdispatch_provider.storage import read_object  # noqa: PLC0415  (costs 0.5 s, and only gs:// needs it)

        return read_object(url, storage_client, at_most=MAX_DOCUMENT_BYTES)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError([f"the document at {shown} cannot be read: {type(error).__name__}: {error}"]) from error


def _allowed(path: Path, shown: str, roots: tuple[str, ...] | None) -> Path:
    """Return where a path leads.

    :param shown: its URL, for the message.
    :param roots: folders in which that has to be; ``None``: anywhere.
    :raises ConfigError: when it is somewhere else, whether there is a file or not.
    """
    leads_to = path.resolve()
    if roots is None:
        return leads_to
    folders = [Path(root) for root in roots if Path(root).is_absolute()]
    if not folders:
        raise ConfigError(
            [
                f"the document's URL is {shown}, but Airflow reads no files: name the folders of configuration "
                f"documents in the environment variable {FILE_ROOTS} of its components (absolute paths, "
                f"{os.pathsep!r} between them), or put the document into a bucket (gs://bucket/object)"
            ]
        )
    if not any(leads_to.is_relative_to(folder.resolve()) for folder in folders):
        raise ConfigError(
            [
                f"the document's URL is {shown}, which leads outside of the folders in {FILE_ROOTS}; expected a file "
                "in one of them"
            ]
        )
    return leads_to


def _read_file(path: Path) -> bytes:
    """Read a regular file.

    :param path: without symbolic links.
    :raises OSError: when it cannot be read.
    :raises ValueError: when it is something else, or too large.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # and is not opened: a device may do something then
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = opened.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it is larger than {MAX_DOCUMENT_BYTES:,} bytes")
    return content


def read_json(text: str | bytes, what: str) -> Any:
    """Read JSON. What is said of text that is none tells where it is wrong, and shows nothing of it.

    :param what: what the text is, for the message.
    :raises ConfigError: when it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        said = str(error)
    except UnicodeDecodeError:
        said = "it is no text"
    except RecursionError:
        said = "it is nested too deeply"
    except ValueError:
        said = "a number has too many digits"
    # Here, and not from the error, which has the text with it.
    raise ConfigError([f"{what} is no JSON ({said}); expected a JSON object"])


def _kind(value: Any) -> str:
    """Return what a JSON value is, without saying any of it."""
    kinds = {type(None): "null", bool: "true or false", str: "a string", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, Mapping) else "a number")


def _found(value: Any) -> str:
    """Return the value of a key for a message: cut short, in one line."""
    if value is None or isinstance(value, Mapping | list):
        return _kind(value)
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a huge number"  # which Python would not print
    if isinstance(value, str):
        return f"{_quoted(value[:_MAX_SHOWN])}{'…' if len(value) > _MAX_SHOWN else ''}"
    return repr(value)


def _quoted(text: str) -> str:
    return repr(text) if text.isprintable() else ascii(text)


def _shown(key: str) -> str:
    """Return a key or a variable's name for a message: untrusted text, cut short, in one line."""
    cut = key if len(key) <= _MAX_SHOWN else f"{key[:_MAX_SHOWN]}…"
    return cut if cut.isprintable() else ascii(cut)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(islice(names, _MAX_NAMED))}{more}"


class _Reading:
    """One document being read: what was found wrong so far."""

    def __init__(self, document: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        self.document = document
        self.variables = variables
        self.findings: list[str] = []

    def wrong(self, key: str, value: Any, expected: str) -> None:
        self.findings.append(f"{key} is {_found(value)}; expected {expected}")

    def text(self, key: str, value: Any, expected: str = "a string") -> str | None:
        """The string with its variables filled in, or ``None`` with a finding."""
        if not isinstance(value, str):
            self.wrong(key, value, expected)
            return None
        # Behind the last brace none ends; to look for one there would take the square of the text's length.
        start, brace, rest = value.rpartition("}")
        names = set(_VARIABLE.findall(start + brace))
        unknown = names - self.variables.keys()
        known = _listed([_shown(each) for each in sorted(self.variables)]) or "none"
        # Not shown: the value may be a secret.
        kinds = {name: type(self.variables[name]).__name__ for name in names - unknown}
        odd = {name: kind for name, kind in kinds.items() if kind not in ("str", "int", "float")}
        for name in islice(sorted({*unknown, *odd}), _MAX_NAMED):
            what = "not given; expected one of the given ones: " + known
            if name in odd:
                what = f"a {odd[name]}; expected text or a number"
            self.findings.append(f"{key} asks for the variable ${{{_shown(name)}}}, which is {what}")
        if unknown or odd:
            return None
        # Once: what a value says is no variable again.
        filled = _VARIABLE.sub(lambda match: str(self.variables[match[1]]), start + brace) + rest
        if any("\ud800" <= character <= "\udfff" for character in filled):
            self.wrong(key, value, "text that can be encoded, without surrogates")
            return None
        return filled

    def number(self, key: str) -> Any:
        """The value, read where it is text: the URI of a connection can carry nothing else."""
        value = self.document.get(key)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value, re.ASCII):
            return float(value) if "." in value else int(value)
        return value

    def limit_by_its_go_name(self, fields: dict[str, Any]) -> None:
        """``MaxConcurrentLoad`` is what the Go code calls ``MaxConcurrentJobs``."""
        if self.document.get(_GO_LIMIT) is None:
            return
        limit = _count(self, _GO_LIMIT)
        if self.document.get("MaxConcurrentJobs") is None:
            fields["max_concurrent_jobs"] = limit
        elif None not in (limit, fields["max_concurrent_jobs"]) and limit != fields["max_concurrent_jobs"]:
            self.wrong(_GO_LIMIT, limit, f"the same as MaxConcurrentJobs ({fields['max_concurrent_jobs']})")

    def log_ignored(self, *, all_of_them: bool) -> dict[str, str]:
        """Log the keys that are ignored; gives those that are misspelt, with what they are like.

        :param all_of_them: also those that are like none of ours: what is no configuration may have anything for a key.
        """
        ignored = sorted(self.document.keys() - {*_KEYS, _GO_LIMIT})
        alike = {key: each[0] for key in ignored if (each := get_close_matches(key, _KEYS, 1, 0.9))}
        ignored = [*alike, *(key for key in ignored if all_of_them and key not in alike)]
        named = _listed([f"{_shown(key)} (not {alike[key]})" if key in alike else _shown(key) for key in ignored])
        if ignored:
            # A misspelt limit is no limit: that must not go unseen.
            level = logging.WARNING if alike else logging.INFO
            log.log(level, "Ignored keys of the configuration that a dispatcher does not use: %s", named)
        return alike


def _string(reading: _Reading, key: str) -> str | None:
    value = reading.document.get(key)
    return reading.text(key, value) or None if value not in (None, "") else None


def _project(reading: _Reading, key: str) -> str | None:
    project = _string(reading, key)
    if project is not None and not _PROJECT.fullmatch(project):
        reading.wrong(key, reading.document[key], "a project ID")
        return None
    return project


def _location(reading: _Reading, key: str) -> str | None:
    expected = "gs://bucket/folder, the bucket's name of 3 characters at least"
    value = reading.document.get(key)
    if value in (None, ""):
        first = "; DeferTaskURL is its name in BqTail's first version, whose traces have another form"
        known = first if key == "AsyncTaskURL" and "DeferTaskURL" in reading.document else ""
        reading.findings.append(f"{key} is missing; expected {expected}{known}")
        return None
    url = reading.text(key, value, expected)
    if url is not None and not _GS_URL.fullmatch(url):
        scheme, _, place = url.partition("://")
        bucket, slash, path = place.partition("/")
        small = _GS_URL.fullmatch(f"{scheme}://{bucket.lower()}{slash}{path}")
        reading.wrong(key, value, f"{expected}{', without capital letters' if small else ''}")
        return None
    return url


def _bucket(reading: _Reading, key: str) -> str | None:
    bucket = _string(reading, key)
    if bucket is not None and not re.fullmatch(_BUCKET, bucket):
        reading.wrong(key, reading.document[key], "the name of a bucket, without gs:// and without a path")
        return None
    return bucket


def _prefix(reading: _Reading, key: str) -> str | None:
    prefix = _string(reading, key)
    if prefix is None:
        return None
    if not prefix.strip("/") or "\n" in prefix or "\r" in prefix:
        reading.wrong(key, reading.document[key], "a folder with slashes around it, such as /_batch_/")
        return None
    return f"/{prefix.strip('/')}/"


def _count(reading: _Reading, key: str) -> int | None:
    value = reading.number(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        reading.wrong(key, value, f"a whole number, 0 to {_MOST:,}")
        return None
    return value


def _minutes(reading: _Reading, key: str) -> float | None:
    value = reading.number(key)
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None  # the default, as in Go
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 24 * 60:
        reading.wrong(key, value, "a number of minutes above 0, a day at most")
        return None
    return value


def _doubt(reading: _Reading, key: str) -> str | None:
    word = _string(reading, key)
    if word is not None and word not in ("deliver", "quarantine"):
        reading.wrong(key, reading.document[key], "deliver or quarantine")
        return None
    return word


def _slack(reading: _Reading, key: str) -> SlackCredentials | None:
    value = reading.document.get(key)
    if value is None:
        return None
    expected = 'an object {"URL": gs:// URL of the encrypted token, "Key": "ring/key"}'
    if not isinstance(value, Mapping):
        # Not shown: it may be the token itself.
        reading.findings.append(f"{key} is a {type(value).__name__}; expected {expected}")
        return None
    found: list[str] = []
    for part, form, like in (("URL", _GS_URL, "gs://bucket/object"), ("Key", _KMS_KEY, "ring/key")):
        given = value.get(part)
        text = reading.text(f"{key}.{part}", given, like) if isinstance(given, str) else ""
        if text is not None and not form.fullmatch(text):
            # Not shown either.
            reading.findings.append(
                f"{key}.{part} is {'missing' if given is None else 'something else'}; expected {like}"
            )
        elif text is not None:
            found.append(text)
    return SlackCredentials(*found) if len(found) == 2 else None


_KEYS: dict[str, tuple[str, Callable[[_Reading, str], Any]]] = {
    "ProjectID": ("project_id", _project),
    "Region": ("region", _string),
    "AsyncTaskURL": ("async_task_url", _location),
    "JournalURL": ("journal_url", _location),
    "ErrorURL": ("error_url", _location),
    "TriggerBucket": ("trigger_bucket", _bucket),
    "TimeToLiveInMin": ("time_to_live_in_min", _minutes),
    "CheckInMs": ("check_in_ms", _count),
    "MaxConcurrentSQL": ("max_concurrent_sql", _count),
    "MaxConcurrentJobs": ("max_concurrent_jobs", _count),
    "MaxTriggerDelayMs": ("max_trigger_delay_ms", _count),
    "MaxUnknownJobMin": ("max_unknown_job_min", _count),
    "PostJobPrefix": ("post_job_prefix", _prefix),
    "BatchPrefix": ("batch_prefix", _prefix),
    "MaxWritesPerSecond": ("max_writes_per_second", _count),
    "OnDoubt": ("on_doubt", _doubt),
    "SlackCredentials": ("slack_credentials", _slack),
}
