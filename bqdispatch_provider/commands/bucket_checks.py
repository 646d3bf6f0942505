"""Checks of the buckets: permissions in each folder, settings, the configuration document, and what BqTail consumes."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from google.cloud.storage import Client

from bqdispatch_provider.commands.checks import Check, CheckResult
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.cycle.unconsumed import unconsumed
from bqdispatch_provider.gcp import permissions
from bqdispatch_provider.gcp.bucket_settings import cannot_be_checked
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.gcp.storage_answers import Result


class BucketChecks:
    """The checks of one set-up's buckets.

    :param config: of the set-up, with its project filled in.
    :param client: a ``google.cloud.storage.Client``.
    :param store: of the task folder.
    :param unused: a path that no object has, in any folder.
    """

    def __init__(self, config: DispatchConfig, client: Client, store: TaskStore, unused: str) -> None:
        self._config, self._client, self._store, self._unused = config, client, store, unused

    def checks(self) -> Generator[Check, None, bool]:
        """Yield the checks, one after the other.

        :returns: whether objects of the task folder can be written, and deleted again.
        """
        can_write = yield from self._folders()
        yield from self._trigger_bucket()
        can_delete = yield from self._settings()
        yield from self._document()
        yield self._unconsumed()
        return can_write and can_delete

    def _folders(self) -> Generator[Check, None, bool]:
        """Check the permissions in the folders.

        :returns: whether the account has those that it needs in the task folder.
        """
        tasks = self._check_folder("task folder", self._config.async_task_url, "AsyncTaskURL", permissions.FOLDERS)
        yield tasks
        yield self._check_folder("journal", self._config.journal_url, "JournalURL", permissions.FOLDERS)
        yield self._check_folder("errors", self._config.error_url, "ErrorURL", permissions.FOLDERS)
        return tasks.result is CheckResult.OK

    def _check_folder(self, what: str, url: str, key: str, needed: permissions.Requirement) -> Check:
        """Check the permissions in a folder, which a key of the configuration names."""
        if problem := permissions.problem_in_folder(self._store, url, needed, key, self._unused):
            return Check(what, url, CheckResult.FAILED, problem)
        verbs = ", ".join(each.rpartition(".")[2] for each in needed.on_objects)
        return Check(what, url, CheckResult.OK, f"the account may {verbs}")

    def _trigger_bucket(self) -> Iterator[Check]:
        bucket = self._config.trigger_bucket or ""
        for what, prefix in {"traces": self._config.post_job_prefix, "windows": self._config.batch_prefix}.items():
            url = f"gs://{bucket}{prefix}"
            yield self._check_folder(f"trigger bucket, {what}", url, "TriggerBucket", permissions.TRIGGER_BUCKET)
        yield self._consumed(bucket)

    def _consumed(self, bucket: str) -> Check:
        """Check that the trigger bucket keeps what BqTail has consumed.

        :param bucket: its name.
        """
        what, where = "what was consumed", f"gs://{bucket}"
        missing = permissions.missing_on_buckets(self._store, {bucket: [permissions.GET_BUCKET]})[bucket]
        in_doubt = "delivered again" if self._config.on_doubt == "deliver" else "quarantined"
        if missing == [permissions.GET_BUCKET]:
            finding = (
                f"{permissions.GET_BUCKET} is missing, so an event whose delivery is in doubt is {in_doubt}; "
                f"{permissions.TRIGGER_BUCKET.how_to_grant(where)}"
            )
            return Check(what, where, CheckResult.FAILED, finding)
        if isinstance(missing, Result) and missing.status == 404:
            return Check(what, where, CheckResult.NOT_CHECKED, "there is no such bucket")
        try:
            is_kept = self._store.trigger.keeps_deleted(self._store.now())
            unknown = self._store.trigger.refusal
        except GOOGLE_ERRORS as error:
            is_kept, unknown = False, Result.of_error(error)
        if unknown:
            finding = cannot_be_checked(bucket, unknown, "soft delete and versioning")
            return Check(what, where, CheckResult.NOT_CHECKED, finding)
        if is_kept:
            return Check(what, where, CheckResult.OK, "is kept by the bucket for a while, which proves deliveries")
        finding = (
            f"the bucket keeps nothing that is deleted, so an event whose delivery is in doubt is {in_doubt}: give "
            f"it soft delete (`gcloud storage buckets update gs://{bucket} --soft-delete-duration=7d`), or versions"
        )
        return Check(what, where, CheckResult.WARNING, finding)

    def _settings(self) -> Generator[Check, None, bool]:
        """Check settings by which a bucket deletes or keeps objects itself: they would lose or repeat events.

        :returns: whether the task bucket lets objects be deleted, as far as its settings can be read.
        """
        settings, now, can_delete = self._store.settings(), self._store.now(), True
        for bucket, found in settings.items():
            is_task_bucket, where = bucket == self._store.task_bucket, f"gs://{bucket}"
            what = f"settings of the {'task' if is_task_bucket else 'trigger'} bucket"
            if isinstance(found, Result):
                yield Check(what, where, CheckResult.NOT_CHECKED, cannot_be_checked(bucket, found))
                continue
            findings = found.problems(self._config, now)
            for finding in findings:
                yield Check(what, where, CheckResult.FAILED, finding)
            if is_task_bucket and found.blocks_deletes:
                can_delete = False
            if not findings:
                finding = "no retention policy, default hold or lifecycle rule is in the way"
                yield Check(what, where, CheckResult.OK, finding)
        return can_delete

    def _document(self) -> Iterator[Check]:
        """Check that the account cannot replace its own configuration document, and neither can who gets hold of it."""
        what, url = "configuration document", self._config.url or ""
        if not url.startswith("gs://"):
            return
        # A service that ignores preconditions, as an emulator may, would delete the document.
        read = permissions.probe(self._store, url, (permissions.GET,)).answers[permissions.GET]
        if not read.overtaken:
            said = "the service ignores preconditions" if read.ok else f"a read was answered with {read}"
            yield Check(what, url, CheckResult.NOT_CHECKED, f"{said}, so whether the account may replace it is unknown")
            return
        probed = permissions.probe(self._store, url, (permissions.CREATE, permissions.DELETE))
        if probed.refused:
            finding = f"the account cannot replace it: {', '.join(probed.refused)} is refused"
            yield Check(what, url, CheckResult.OK, finding)
        elif probed.unexpected:
            finding = f"a call on it was answered with {probed.unexpected[0]}: try again later"
            yield Check(what, url, CheckResult.NOT_CHECKED, finding)
        else:
            finding = (
                "the account that dispatches may replace the document, and so change what is dispatched and where to: "
                "put it into a bucket on which the account has only storage.objects.get, such as by the role "
                "roles/storage.objectViewer, and let people or your deployment write it"
            )
            yield Check(what, url, CheckResult.WARNING, finding)

    def _unconsumed(self) -> Check:
        """Check that BqTail consumes what is delivered."""
        what, url = "BqTail consumes", f"gs://{self._config.trigger_bucket}"
        found, unknown = unconsumed(self._store, self._config)
        if found:
            return Check(what, url, CheckResult.FAILED, found)
        if unknown:
            return Check(what, url, CheckResult.NOT_CHECKED, unknown)
        return Check(what, url, CheckResult.OK, "no delivered object has waited for long")
