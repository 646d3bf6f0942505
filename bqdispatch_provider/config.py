"""The configuration of a dispatcher: checked once, all findings at once, then frozen.

Rules: docs/protocol.md, section "Configuration document".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bqdispatch_provider.config_errors import ConfigError, kind_of, shown, shown_name
from bqdispatch_provider.config_keys import Reading, SlackCredentials
from bqdispatch_provider.config_source import fetch, read_json
from bqdispatch_provider.names import JournalName

if TYPE_CHECKING:
    from google.cloud.storage import Client


@dataclass(frozen=True)
class DispatchConfig:
    """A dispatcher's configuration, made by :meth:`from_dict`, :meth:`from_json` or :meth:`from_url`.

    :param async_task_url: task folder, ``gs://bucket/folder/``. URLs of folders end with a slash, however they were
        written.
    :param journal_url: folder of our documents; :class:`~bqdispatch_provider.names.JournalName` has their names.
    :param error_url: folder of quarantined objects.
    :param project_id: project of root traces and of windows that name none; ``None`` for the credentials' project.
    :param region: region of the KMS key; never used to look a job up.
    :param trigger_bucket: bucket that BqTail watches; ``None`` for ``<project with _ for ->_bqtail``.
    :param time_to_live_in_min: time for which one run begins cycles, in minutes.
    :param check_in_ms: interval of looking for a change of the document, in milliseconds; 0 for once a run.
    :param max_concurrent_sql: limit for query jobs, per project; 0 for none.
    :param max_concurrent_jobs: limit for all other jobs and for windows, per project; 0 for none.
    :param max_trigger_delay_ms: time for which a fired window is kept, in milliseconds.
    :param max_unknown_job_min: time after which a trace is quarantined if BigQuery does not know its job, in minutes; 0
        for never.
    :param journal_retention_days: time for which documents of runs and the history stay in the journal, in days; 0 for
        ever.
    :param post_job_prefix: folder of traces in the trigger bucket, with slashes around it.
    :param batch_prefix: folder of windows in the trigger bucket, with slashes around it.
    :param max_writes_per_second: rate limit of writing and deleting objects, in each bucket and by each process; 0 for
        none. The dispatcher backs off by itself when a bucket answers that it is too fast.
    :param on_doubt: what to do with an event whose delivery can neither be proven nor excluded: ``deliver`` it again,
        or ``quarantine`` it.
    :param slack_credentials: where the Slack token lies; ``None`` without Slack.
    :param url: URL of the document; ``None`` if it was given in place.
    :param variables: variables that the document was read with.
    :param used: names of those that the document asks for.
    :param misspelt: ignored keys of the document, each with the valid key that it looks like.
    :param file_roots: as given to :meth:`from_url`.
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
    journal_retention_days: int = 30
    post_job_prefix: str = "/_bqjob_/"
    batch_prefix: str = "/_batch_/"
    max_writes_per_second: int = 5000
    on_doubt: str = "deliver"
    slack_credentials: SlackCredentials | None = None
    url: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    used: frozenset[str] = field(default=frozenset(), repr=False)
    misspelt: Mapping[str, str] = field(default_factory=dict, repr=False)
    file_roots: tuple[str, ...] | None = field(default=None, repr=False)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> DispatchConfig:
        """Check a document that has been read already.

        :param document: the keys and values of docs/configuration.md; keys that only BqTail knows are ignored.
        :param variables: values for ``${name}`` in any string; none by default.
        :raises ConfigError: when it is invalid, with every finding at once.
        """
        return cls._checked(document, variables or {}, None)

    @classmethod
    def from_json(cls, text: str | bytes, variables: Mapping[str, str] | None = None) -> DispatchConfig:
        """Read and check a JSON document.

        :param text: the document.
        :param variables: values for ``${name}`` in any string; none by default.
        :raises ConfigError: when it is no JSON object, or invalid, with every finding at once.
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
        :param file_roots: absolute paths of the folders whose files may be read, wherever symbolic links lead; an empty
            list for no file, ``None``, the default, for every file.
        :raises ConfigError: when it cannot be read, is no JSON object, or is invalid, with every finding at once.
        """
        roots = None if file_roots is None else tuple(file_roots)
        document = read_json(fetch(url, storage_client, roots), shown(url))
        return replace(cls._checked(document, variables or {}, url), file_roots=roots)

    @classmethod
    def _checked(cls, document: Any, variables: Mapping[str, str], url: str | None) -> DispatchConfig:
        if not isinstance(document, Mapping):
            # Not shown: a file that is no document may be anything.
            raise ConfigError([f"the document is {kind_of(document)}; expected a JSON object"])
        reading = Reading(document, variables)
        fields = reading.fields()
        prefixes = {"post_job_prefix": cls.post_job_prefix, "batch_prefix": cls.batch_prefix}
        reading.findings += _overlaps({**prefixes, **fields})
        misspelt = reading.log_ignored()
        if reading.findings:
            raise ConfigError(reading.findings)
        used = frozenset(reading.used)
        return cls(**fields, url=url, variables=dict(variables), used=used, misspelt=misspelt)

    @property
    def ignored_mistakes(self) -> list[str]:
        """One sentence for each misspelt key, which is ignored: a misspelt limit is no limit."""
        return [
            f"{shown_name(key)} is no key of the configuration and is ignored; did you mean {meant}?"
            for key, meant in self.misspelt.items()
        ]

    def for_project(self, project: str | None) -> DispatchConfig:
        """Return this configuration with its project and its trigger bucket filled in.

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

    def reload(self, storage_client: Client | None = None) -> DispatchConfig:
        """Read the document again; a configuration that was given in place is returned as it is.

        :param storage_client: as in :meth:`from_url`.
        :raises ConfigError: as :meth:`from_url`.
        """
        return self if self.url is None else self.from_url(self.url, self.variables, storage_client, self.file_roots)


def _overlaps(fields: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the places of a configuration together; places that are missing are left out."""
    tasks, journal, errors = (fields.get(f"{place}_url") for place in ("async_task", "journal", "error"))
    places = {"AsyncTaskURL": tasks, "JournalURL": journal, "ErrorURL": errors}
    runs = f"{journal}{JournalName.RUNS}" if journal else None
    # If each lies in the other, they are the same, which the first two rules find.
    quarantine = None if _lies_in(errors, tasks) else errors
    inside = (
        ("JournalURL", tasks, "the task folder", "where every object is taken for an event"),
        ("ErrorURL", tasks, "the task folder", "where every object is taken for an event"),
        ("AsyncTaskURL", quarantine, "the ErrorURL", "where every object is taken for a quarantined one"),
        ("AsyncTaskURL", runs, "the journal's", "where the documents of runs lie"),
        ("ErrorURL", runs, "the journal's", "where the documents of runs lie"),
    )
    findings = [
        f"{key} {shown(places[key])} lies inside {what} {shown(folder)}, {why}; expected a place outside of it"
        for key, folder, what, why in inside
        if _lies_in(places[key], folder)
    ]
    findings += [
        f"{key} {shown(url)} lies in the TriggerBucket, whose every object BqTail consumes; expected another bucket"
        for key, url in places.items()
        if url and urlsplit(url).netloc == fields.get("trigger_bucket")
    ]
    one, other = sorted((fields["post_job_prefix"], fields["batch_prefix"]), key=len)
    if other.startswith(one):
        findings.append(
            f"PostJobPrefix {shown(fields['post_job_prefix'])} and BatchPrefix {shown(fields['batch_prefix'])} "
            "overlap; expected two folders side by side"
        )
    return findings


def _lies_in(url: str | None, folder: str | None) -> bool:
    """Tell whether one folder is the other, or lies inside of it."""
    return bool(url and folder) and str(url).startswith(str(folder))
