"""The hook of a connection of type ``bqdispatch``: its configuration, its credentials and its dispatcher."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from bqdispatch_provider import compat
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core.connection import CONN_TYPE
from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.names import TraceName, counted, in_one_line, in_words
from bqdispatch_provider.provider_info import HIDDEN_FIELDS, INTEGRATION, connection_fields

if TYPE_CHECKING:
    import requests
    from google.cloud.storage import Client

    from bqdispatch_provider.connection_extra import ConnectionExtra
    from bqdispatch_provider.core.report import Report
    from bqdispatch_provider.cycle.task_folder import TaskFolder
    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.gcp.pubsub import Subscription

_PLACEHOLDERS = {
    "config": '{"AsyncTaskURL": "gs://…", "JournalURL": "gs://…", "ErrorURL": "gs://…"}',
    "config_url": "gs://bucket/config.json",
    "variables": '{"env": "prod"}',
    "gcp_conn_id": "google_cloud_default",
}


class DispatchError(RuntimeError):
    """A task that could not do its work, or not all of it."""


def trigger_failed(doing: str, conn_id: str, event: Mapping[str, Any]) -> DispatchError:
    """Return the error of a task whose trigger has failed.

    :param doing: what the trigger did, in the past tense.
    :param conn_id: ID of its connection.
    :param event: what it has said.
    """
    return DispatchError(
        f"the trigger with connection {conn_id!r} failed while it {doing}: {event['message']}; the traceback stands "
        "above in this log"
    )


def raise_on_error(report: Report, url: str) -> None:
    """Raise what a report says went wrong.

    :param url: of the report.
    :raises DispatchError: if something did.
    """
    if not report.ok:
        number = counted(len(report.errors), "error")
        raise DispatchError(f"the report has {number}, first {report.errors[0]}; all of them are in {url}")


class BqDispatchHook(BaseHook):
    """A connection of type ``bqdispatch``, and a dispatcher with its configuration and credentials.

    The connection holds no secret. Its extra holds the configuration document (docs/configuration.md) in exactly one of
    three forms:

    - ``config``: the document, as an object or a JSON string
    - ``config_url``: the document's URL, ``gs://…`` or ``file://…``. Files have to be below a folder that the
      environment variable ``BQDISPATCH_FILE_ROOTS`` names
    - the document's own keys

    It may also hold:

    - ``variables``: an object, values for ``${name}`` in the document
    - ``gcp_conn_id``: ID of the connection whose credentials are used. Default: ``google_cloud_default``
    - ``impersonation_chain``: service accounts to impersonate, comma-separated or as a list
    - ``quota_project_id``: project that calls are charged to
    - ``subscription``: Pub/Sub subscription whose messages end a pause as soon as a job is done (docs/push.md)

    A service with a stand-in (``STORAGE_EMULATOR_HOST``, ``BIGQUERY_EMULATOR_HOST``, ``PUBSUB_EMULATOR_HOST``) is
    called without credentials.

    :param bqdispatch_conn_id: ID of the connection.
    """

    conn_name_attr = "bqdispatch_conn_id"
    default_conn_name = "bqdispatch_default"
    conn_type = CONN_TYPE
    hook_name = INTEGRATION

    def __init__(self, bqdispatch_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self._read_extra: Callable[[str], Mapping[str, Any]] = lambda conn_id: self.get_connection(conn_id).extra_dejson

    @classmethod
    async def resolved(cls, bqdispatch_conn_id: str) -> BqDispatchHook:
        """Return a hook that has read its connections, for a thread of the triggerer.

        Such a thread must not call Airflow's SDK (apache/airflow#64620).

        :param bqdispatch_conn_id: ID of the connection.
        :raises ConfigError: if the extra is invalid.
        """
        hook = cls(bqdispatch_conn_id)
        extras = {bqdispatch_conn_id: await compat.extra_of(bqdispatch_conn_id)}
        hook._read_extra = extras.__getitem__
        if not hook.extra.is_emulated:
            extras[hook.extra.gcp_conn_id] = await compat.extra_of(hook.extra.gcp_conn_id)
        return hook

    @classmethod
    def from_database(cls, bqdispatch_conn_id: str) -> BqDispatchHook:
        """Return a hook for a command. Outside of its components, Airflow 3 reads no connection from its database.

        :param bqdispatch_conn_id: ID of the connection. If it does not exist, the hook's methods raise
            ``AirflowNotFoundException``.
        """
        hook = cls(bqdispatch_conn_id)
        hook._read_extra = compat.stored_extra
        return hook

    @classmethod
    def configs(cls, but: str) -> dict[str, DispatchConfig | Exception]:
        """Read the configurations of all connections, for a command.

        These are the connections in Airflow's database and in ``AIRFLOW_CONN_…``. Other secrets backends cannot be
        listed.

        :param but: ID of the connection to leave out.
        :returns: the configuration by connection ID, or the error of reading it.
        """
        found: dict[str, DispatchConfig | Exception] = {}
        for conn_id in sorted(compat.connections_of(cls.conn_type) - {but}):
            try:
                found[conn_id] = cls.from_database(conn_id).get_config()
            except Exception as error:
                found[conn_id] = error
        return found

    @cached_property
    def extra(self) -> ConnectionExtra:
        """The connection's extra."""
        from bqdispatch_provider.connection_extra import ConnectionExtra  # noqa: PLC0415

        return ConnectionExtra(self.bqdispatch_conn_id, self._read_extra(self.bqdispatch_conn_id))

    def get_config(self, variables: Mapping[str, str] | None = None) -> DispatchConfig:
        """Read and check the configuration.

        :param variables: values for ``${name}`` in the document. They win over the connection's own.
        :raises ConfigError: if the connection or its configuration is invalid. The error lists every finding.
        """
        with ExitStack() as held:
            return self.extra.config(variables, lambda: held.enter_context(closing(self.get_conn())))

    def get_conn(self) -> Client:
        """Return a client of Cloud Storage with the connection's credentials. The caller closes it."""
        return _client_of(*self._credentials())

    @contextmanager
    def get_dispatcher(
        self,
        go_on: Callable[[], bool] = lambda: True,
        variables: Mapping[str, str] | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Iterator[Dispatcher]:
        """Open a dispatcher with the connection's configuration and credentials, in a ``with`` statement.

        :param go_on: asked before new work starts. If it returns False, what has begun is finished and nothing else
            starts. Default: always True.
        :param variables: values for ``${name}`` in the document. They win over the connection's own.
        :param only: filter of events, by the keys of :class:`~bqdispatch_provider.core.events.EventFilter`. Default:
            all events.
        :raises ConfigError: if the connection or its configuration is invalid, or nothing names a project.
        :raises ValueError: if ``only`` is invalid.
        """
        chosen = EventFilter.from_dict(only)
        from bqdispatch_provider.dispatcher import Dispatcher  # noqa: PLC0415  (costs 0.5 s)
        from bqdispatch_provider.gcp.clients import session_of  # noqa: PLC0415

        credentials, project = self._credentials()
        with closing(_client_of(credentials, project)) as client, closing(session_of(credentials)) as session:
            config = self.extra.config(variables, lambda: client)
            with Dispatcher(config, client, session, go_on=go_on, only=chosen) as dispatcher:
                yield dispatcher

    @contextmanager
    def get_task_folder(self, variables: Mapping[str, str] | None = None) -> Iterator[TaskFolder]:
        """Open the task folder for reading, in a ``with`` statement.

        :param variables: values for ``${name}`` in the document. They win over the connection's own.
        :raises ConfigError: if the connection or its configuration is invalid, or nothing names a project.
        """
        from bqdispatch_provider.cycle.task_folder import TaskFolder  # noqa: PLC0415  (costs 0.5 s)

        with (
            closing(self.get_conn()) as client,
            TaskFolder(self.extra.config(variables, lambda: client), client) as folder,
        ):
            yield folder

    def get_subscription(self, session: requests.Session) -> Subscription | None:
        """Return the connection's Pub/Sub subscription; ``None`` if it names none.

        :param session: session with the connection's credentials, such as the dispatcher's.
        :raises ConfigError: if the subscription's name is incomplete.
        """
        from bqdispatch_provider.gcp.pubsub import SUBSCRIPTION, Subscription  # noqa: PLC0415

        name = self.extra.values.get("subscription")
        if name is None:
            return None
        if not isinstance(name, str) or not SUBSCRIPTION.fullmatch(name):
            raise self.extra.error(
                f"subscription is {str(name)[:80]!r}; expected projects/<project>/subscriptions/<subscription>"
            )
        return Subscription(session, name)

    def decrypt(self, key: str, ciphertext: bytes) -> bytes:
        """Decrypt with a KMS key, with the Google Cloud connection's credentials.

        :param key: ``projects/…/locations/…/keyRings/…/cryptoKeys/…``.
        :param ciphertext: what was encrypted.
        """
        from airflow.providers.google.cloud.hooks.kms import CloudKMSHook  # noqa: PLC0415  (costs 1 s)

        kms = CloudKMSHook(self.extra.gcp_conn_id, impersonation_chain=self.extra.impersonation_chain)
        plaintext: bytes = kms.decrypt(key, base64.b64encode(ciphertext).decode())
        return plaintext

    def test_connection(self) -> tuple[bool, str]:
        """Read what a dispatcher reads, and return every problem at once.

        Nothing is written, so permissions to create and delete are not tested.

        :returns: True if there is no problem; and the problems, or what was read.
        """
        try:
            with self.get_dispatcher() as dispatcher:
                findings, summary = _read_everything(dispatcher, self.get_subscription(dispatcher.session))
        except ConfigError as error:
            findings, summary = error.findings, ""
        except Exception as error:
            findings, summary = [f"the connection {self.bqdispatch_conn_id!r} cannot be used: {in_words(error)}"], ""
        # The problems quote names, which are untrusted.
        return not findings, in_one_line("; ".join(findings) or summary)

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of the connection's form before Airflow 3.2, which reads the provider's metadata."""
        return compat.form_widgets(connection_fields())

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return what the connection's form hides and suggests."""
        return {"hidden_fields": HIDDEN_FIELDS, "relabeling": {}, "placeholders": dict(_PLACEHOLDERS)}

    def _credentials(self) -> tuple[Any, str | None]:
        """Return the credentials of the Google Cloud connection, ``None`` for anonymous ones, and its project."""
        if self.extra.is_emulated:
            return None, os.environ.get("GOOGLE_CLOUD_PROJECT")
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook  # noqa: PLC0415  (costs 0.6 s)
        from google.auth.credentials import CredentialsWithQuotaProject  # noqa: PLC0415

        read_extra = self._read_extra

        class GoogleHook(GoogleBaseHook):
            @classmethod
            def get_connection(cls, conn_id: str) -> Any:
                return SimpleNamespace(extra_dejson=read_extra(conn_id))

        google = GoogleHook(self.extra.gcp_conn_id, impersonation_chain=self.extra.impersonation_chain)
        credentials, project = google.get_credentials_and_project_id()
        if google._get_field("is_anonymous"):
            return None, project or None
        if quota := self.extra.values.get("quota_project_id"):  # which older providers do not know
            if not isinstance(credentials, CredentialsWithQuotaProject):
                raise self.extra.error(f"quota_project_id is {str(quota)[:80]!r}, but these credentials take none")
            credentials = credentials.with_quota_project(str(quota))
        return credentials, project or None


def _client_of(credentials: Any, project: str | None) -> Client:
    from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415

    from bqdispatch_provider.gcp.clients import client_of  # noqa: PLC0415

    return client_of(project, AnonymousCredentials() if credentials is None else credentials)


def _read_everything(dispatcher: Dispatcher, subscription: Subscription | None) -> tuple[list[str], str]:
    """Read what a dispatcher reads, and return one sentence for each problem, and one on what was read."""
    from bqdispatch_provider.gcp.bucket_settings import BucketSettings, cannot_be_checked  # noqa: PLC0415
    from bqdispatch_provider.gcp.permissions import ReadCheck  # noqa: PLC0415

    config, store = dispatcher.config, dispatcher.store
    check, trigger = ReadCheck(store, dispatcher.board), config.trigger_bucket or ""
    tasks = check.list_folder(config.async_task_url)
    check.get_delivery(config.post_job_prefix[1:])
    for url in (f"gs://{trigger}{config.post_job_prefix}", config.journal_url, config.error_url):
        check.list_folder(url)
    problems, notes = [], []
    for name, found in store.settings().items():
        if isinstance(found, BucketSettings):
            problems += found.problems(config, store.now())
        elif check.can_reach(name):
            notes.append(f"; {cannot_be_checked(name, found)}")
    problems += config.ignored_mistakes
    projects = sorted({config.project_id or "", *_projects(tasks, store.task_url(""))})
    for project in projects:
        check.list_jobs(project)
    if subscription is not None:
        check.consume(subscription)
    return [*check.problems, *problems], (
        f"{config.async_task_url}, {trigger}, {config.journal_url}, {config.error_url} "
        f"and the jobs of {', '.join(projects)} can be read{''.join(notes)}"
    )


def _projects(urls: list[str], folder: str) -> Iterator[str]:
    for url in urls:
        try:
            project = TraceName.parse(url.removeprefix(folder)).project
        except ValueError:
            continue
        if project:
            yield project
