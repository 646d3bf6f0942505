"""Permissions of the dispatcher's account: which it needs where and why, how each is tested, what a missing one means.

IAM answers for a whole bucket (``testPermissions``), and needs no permission for that. A condition of IAM may limit a
role to folders. Only a probe finds that out: a call in that folder, which needs the permission and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from google.api_core.exceptions import Forbidden, NotFound, Unauthorized

from bqdispatch_provider.core.model import JobKey
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.gcs_batch import ApiCall
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.gcp.storage_calls import object_path, split_url
from bqdispatch_provider.names import in_words

if TYPE_CHECKING:
    from bqdispatch_provider.gcp.pubsub import Subscription

T = TypeVar("T")
log = logging.getLogger(__name__)

LIST, GET, CREATE, DELETE = (f"storage.objects.{verb}" for verb in ("list", "get", "create", "delete"))
GET_BUCKET = "storage.buckets.get"
LIST_JOBS, LIST_ALL_JOBS, GET_JOBS = "bigquery.jobs.list", "bigquery.jobs.listAll", "bigquery.jobs.get"
CONSUME = "pubsub.subscriptions.consume"


@dataclass(frozen=True, slots=True)
class Requirement:
    """Permissions that the account needs in one kind of place.

    :param role: ID of the role that has them: a custom one (deploy/roles), or one of Google's.
    :param permissions: the permissions.
    """

    role: str
    permissions: tuple[str, ...]

    @property
    def on_objects(self) -> list[str]:
        """The permissions on objects, which a condition of IAM can limit to folders."""
        return [each for each in self.permissions if each.startswith("storage.objects.")]

    def how_to_grant(self, where: str) -> str:
        """Return what to do when one of them is missing.

        :param where: such as ``gs://bucket``.
        """
        source = "" if self.role.startswith("roles/") else " (deploy/roles)"
        return f"bind the role {self.role}{source} to the account on {where}"


FOLDERS = Requirement(
    "bqdispatchFolders",
    (
        LIST,  # to find traces, windows, and what other dispatchers have begun
        GET,  # to read windows, and copy events
        CREATE,  # to write intents, claims, the journal, and quarantined events
        DELETE,  # to delete dispatched events; an overwrite is a delete, too
    ),
)
"""On the buckets of the task folder (``AsyncTaskURL``), the journal (``JournalURL``) and the errors (``ErrorURL``)."""

TRIGGER_BUCKET = Requirement(
    "bqdispatchTrigger",
    (
        CREATE,  # to deliver events
        GET,  # to see whether a delivered event is still there
        LIST,  # to find deliveries that BqTail has consumed, among soft-deleted and noncurrent objects
        GET_BUCKET,  # to read the soft-delete and versioning settings: how long a consumed delivery can be proven
    ),
)
"""On the bucket that BqTail watches (``TriggerBucket``)."""

JOBS = Requirement(
    "bqdispatchJobs",
    (
        LIST_JOBS,  # to see the states of many jobs at once
        LIST_ALL_JOBS,  # to see them when BqTail runs as another account
        GET_JOBS,  # to look up the state of one job
    ),
)
"""In each project with traces."""

SUBSCRIBER = Requirement("roles/pubsub.subscriber", (CONSUME,))
"""On the subscription that the connection names."""


# Tests by IAM


def missing_permissions(store: TaskStore) -> list[str]:
    """Return which permissions to dispatch the account does not have, and what to do: one sentence for each bucket.

    Both buckets are asked about in one batch. So an endpoint without batches is known before anything is written.

    :param store: of the task folder.
    :returns: none if the endpoint does not know the call.
    """
    needed = {store.task_bucket: FOLDERS, store.trigger_bucket: TRIGGER_BUCKET}
    asked = {bucket: each.on_objects for bucket, each in needed.items()}
    missing: list[str] = []
    for bucket, found in missing_on_buckets(store, asked).items():
        if isinstance(found, Result):
            # An emulator need not know the call; a bucket that does not exist is reported by the listing or the move.
            log.debug("The permissions on bucket %r cannot be tested: %s", bucket, found)
        elif found:
            missing.append(_are_missing(found, needed[bucket], f"gs://{bucket}", on=f" on bucket {bucket!r}"))
    return missing


def missing_on_buckets(store: TaskStore, needed: Mapping[str, Iterable[str]]) -> dict[str, list[str] | Result]:
    """Ask IAM for the permissions that the account does not have (Cloud Storage, "Buckets: testIamPermissions").

    :param store: any of the client in question.
    :param needed: permissions to test, by bucket.
    :returns: by bucket the missing ones, or the refusal.
    """
    asked = {bucket: list(permissions) for bucket, permissions in needed.items()}
    calls = [ApiCall("GET", f"/b/{each}/iam/testPermissions", {"permissions": asked[each]}) for each in asked]
    missing: dict[str, list[str] | Result] = {}
    for bucket, result in zip(asked, store.calls.run(calls), strict=True):
        granted = result.body.get("permissions", ())
        missing[bucket] = [each for each in asked[bucket] if each not in granted] if result.ok else result
    return missing


# Tests by calls that change nothing


@dataclass(frozen=True, slots=True)
class Probe:
    """Answers to calls that change nothing.

    :param answers: by the permission that each call needs.
    """

    answers: Mapping[str, Result]

    @property
    def refused(self) -> dict[str, Result]:
        """The answers that say that a permission is missing."""
        return {permission: each for permission, each in self.answers.items() if each.status in (401, 403)}

    @property
    def unexpected(self) -> list[Result]:
        """The answers that say neither that a permission is granted nor that it is missing."""
        others = (each for each in self.answers.values() if each.status not in (401, 403))
        return [each for each in others if not (each.ok or each.overtaken)]


def probe(store: TaskStore, url: str, permissions: Iterable[str]) -> Probe:
    """Make calls that need permissions on objects and change nothing.

    A read, a write or a delete is for a generation that never existed (412, or 404 without any object).

    :param store: any of the client in question.
    :param url: of the object in question, which need not exist.
    :param permissions: some of those in :data:`FOLDERS` on objects.
    """
    bucket, name = split_url(url)
    calls = {
        LIST: ApiCall("GET", f"/b/{bucket}/o", {"prefix": name, "maxResults": 1, "fields": "kind"}),
        GET: ApiCall("GET", object_path(bucket, name), {"ifGenerationMatch": 1, "fields": "kind"}),
        DELETE: ApiCall("DELETE", object_path(bucket, name), {"ifGenerationMatch": 1}),
    }

    def answer(permission: str) -> Result:
        if permission in calls:
            return store.calls.run([calls[permission]])[0]
        try:
            store.write(url, b"", replaces=1)
        except GOOGLE_ERRORS as error:
            return Result.of_error(error)
        return Result(200)

    return Probe({each: answer(each) for each in permissions})


def missing_in_project(board: JobBoard, project: str) -> list[str]:
    """Return the permissions in a project that the account does not have, found out by a call for each.

    :param board: of the jobs.
    :raises google.api_core.exceptions.GoogleAPICallError: when BigQuery refuses for another reason.
    """
    calls = board.calls
    missing: list[str] = []
    if _is_forbidden(lambda: calls.list_one(project)):
        mine_too = _is_forbidden(lambda: calls.list_one(project, all_users=False))
        missing.append(LIST_JOBS if mine_too else LIST_ALL_JOBS)
    with suppress(NotFound):  # there is no such job
        if _is_forbidden(lambda: calls.get(JobKey(project, None, "bqdispatch_asks_for_no_job"))):
            missing.append(GET_JOBS)
    return missing


def _is_forbidden(call: Callable[[], object]) -> bool:
    try:
        call()
    except Forbidden:
        return True
    return False


# What to tell the user


def problem_in_folder(store: TaskStore, url: str, needed: Requirement, key: str, unused: str) -> str:
    """Test the permissions in a folder, and say what is wrong and what to do.

    :param store: any of the client in question.
    :param url: of the folder, with a slash at the end.
    :param needed: what the account needs there.
    :param key: of the configuration, which names the folder.
    :param unused: name below the folder that no object has.
    :returns: empty when nothing is wrong.
    """
    bucket, _ = split_url(url)
    missing = missing_on_buckets(store, {bucket: needed.on_objects})[bucket]
    probed = probe(store, f"{url}{unused}", needed.on_objects)
    if isinstance(missing, Result) and missing.status == 404 and probed.answers[LIST].status == 404:
        return f"bucket {bucket!r} does not exist: create it, or correct {key}"
    if not isinstance(missing, Result) and missing:
        return _are_missing(missing, needed, f"gs://{bucket}")
    if probed.refused:
        said = f"{', '.join(probed.refused)} is refused in this folder ({next(iter(probed.refused.values()))})"
        granted = "look for a condition on the binding, or a deny policy"
        return f"{said}: {needed.how_to_grant(f'gs://{bucket}') if isinstance(missing, Result) else granted}"
    return f"a call was answered with {probed.unexpected[0]}: try again later" if probed.unexpected else ""


def problem_in_project(board: JobBoard, project: str) -> str:
    """Test the permissions in a project, and say what is wrong and what to do.

    :param board: of the jobs.
    :returns: empty when nothing is wrong.
    """
    try:
        missing = missing_in_project(board, project)
    except GOOGLE_ERRORS as error:
        return f"its jobs cannot be read ({in_words(error)}): see that ProjectID is right"
    return _are_missing(missing, JOBS, f"project {project!r}") if missing else ""


def _are_missing(permissions: Sequence[str], needed: Requirement, where: str, *, on: str = "", said: str = "") -> str:
    """Return the sentence that permissions are missing, with what to do.

    :param where: as :meth:`Requirement.how_to_grant` takes it.
    :param on: where they are missing, unless the reader knows.
    :param said: answer of the service.
    """
    verb = "is" if len(permissions) == 1 else "are"
    return f"{', '.join(permissions)}{on} {verb} missing{said}; {needed.how_to_grant(where)}"


class ReadCheck:
    """Calls that read what a dispatcher reads, and one sentence for each thing that is wrong. Nothing is written.

    :param store: of the task folder.
    :param board: of the jobs.
    """

    def __init__(self, store: TaskStore, board: JobBoard) -> None:
        self._store, self._board = store, board
        self._problems: dict[tuple[str, str], str] = {}

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong; each permission is named once for each place."""
        return list(self._problems.values())

    def can_reach(self, bucket: str) -> bool:
        """Return False if the bucket does not exist, or did not answer."""
        return ("", _bucket(bucket)) not in self._problems

    def list_folder(self, url: str) -> list[str]:
        """List objects of a folder.

        :returns: the URLs of the first thousand; none if the folder cannot be listed.
        """
        bucket, _ = split_url(url)
        needed = TRIGGER_BUCKET if bucket == self._store.trigger_bucket else FOLDERS
        urls = self._attempt(LIST, needed, _bucket(bucket), lambda: list(islice(self._store.list_urls(url), 1000)))
        return urls or []

    def get_delivery(self, name: str) -> None:
        """Look for an object of the trigger bucket; one that does not exist is fine."""
        where = _bucket(self._store.trigger_bucket)
        self._attempt(GET, TRIGGER_BUCKET, where, lambda: self._store.get_target(name))

    def list_jobs(self, project: str) -> None:
        """List a job of a project."""
        permission, calls = f"{LIST_JOBS}, or {LIST_ALL_JOBS},", self._board.calls
        self._attempt(permission, JOBS, f"project {project}", lambda: calls.list_one(project))

    def consume(self, subscription: Subscription) -> None:
        """Ask for the permission to use a subscription."""
        where = f"subscription {subscription.name}"
        granted = self._attempt(CONSUME, SUBSCRIBER, where, lambda: subscription.test_permissions([CONSUME]))
        if granted == []:
            self._problems[CONSUME, where] = _are_missing([CONSUME], SUBSCRIBER, where, on=f" on {where}")

    def _attempt(self, permission: str, needed: Requirement, where: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except (Forbidden, Unauthorized) as error:
            reason = error.errors[0].get("message") if error.errors else error.message
            said = f" ({error.code} {reason})"
            self._problems[permission, where] = _are_missing([permission], needed, where, on=f" on {where}", said=said)
        except NotFound:
            self._problems["", where] = f"{where} does not exist"
        except Exception as error:
            self._problems["", where] = f"{where} cannot be reached: {in_words(error)}"
        return None


def _bucket(name: str) -> str:
    return f"bucket {name}"
