"""The connection of type ``bqdispatch``: where the configuration lies, and with which credentials it is used."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from bqdispatch_provider import compat
from bqdispatch_provider.bucket_settings import BucketSettings, cannot_be_checked
from bqdispatch_provider.config import FILE_ROOTS, ConfigError, DispatchConfig, read_json
from bqdispatch_provider.connection import CONN_TYPE, FORMS, OTHERS, filled
from bqdispatch_provider.emulators import BIGQUERY, PUBSUB, STORAGE, emulator
from bqdispatch_provider.model import Only
from bqdispatch_provider.names import TraceName, in_one_line
from bqdispatch_provider.provider_info import get_provider_info

if TYPE_CHECKING:
    import requests
    from google.cloud.storage import Client

    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.push import Subscription

_PLACEHOLDERS = {
    "config": '{"AsyncTaskURL": "gs://…", "JournalURL": "gs://…", "ErrorURL": "gs://…"}',
    "config_url": "gs://bucket/config.json",
    "variables": '{"env": "prod"}',
    "gcp_conn_id": "google_cloud_default",
}


class DispatchError(RuntimeError):
    """A dispatch task that cannot do its work, or not all of it, and why."""


class BqDispatchHook(BaseHook):
    """A connection of type ``bqdispatch``, and the dispatcher that it stands for.

    The connection's extra holds the configuration document (docs/protocol.md, "Configuration document") in exactly one
    of three forms: as ``config`` (an object or a JSON string), at ``config_url`` (``gs://…``, or ``file://…`` below a
    folder that the environment variable ``BQDISPATCH_FILE_ROOTS`` names), or its keys themselves. It may also hold
    ``variables`` (an object: values for ``${name}`` in the document), ``gcp_conn_id`` (the connection whose credentials
    are used, by default ``google_cloud_default``), ``impersonation_chain`` (service accounts, comma-separated or a
    list), ``quota_project_id``, and ``subscription`` (of Pub/Sub, whose messages wake whoever waits for this
    connection's jobs, docs/push.md). It holds no secret.

    With ``STORAGE_EMULATOR_HOST``, ``BIGQUERY_EMULATOR_HOST`` or ``PUBSUB_EMULATOR_HOST`` set, that service, and no
    other, is used without credentials.

    :param bqdispatch_conn_id: ID of the connection.
    """

    conn_name_attr = "bqdispatch_conn_id"
    default_conn_name = "bqdispatch_default"
    conn_type = CONN_TYPE
    hook_name = "BqTail dispatch"

    def __init__(self, bqdispatch_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self._extra: Mapping[str, Any] | None = None
        self._google_extra: Mapping[str, Any] | None = None

    @classmethod
    async def resolved(cls, bqdispatch_conn_id: str) -> BqDispatchHook:
        """A hook that has its connections already, so that its methods may run in a thread of the triggerer.

        Airflow's SDK must not be called from such a thread (apache/airflow#64620).

        :param bqdispatch_conn_id: ID of the connection.
        :raises ConfigError: when the extra is none that can be used.
        """
        hook = cls(bqdispatch_conn_id)
        hook._extra = filled(await compat.extra_of(bqdispatch_conn_id))
        if not hook._emulated:
            hook._google_extra = filled(await compat.extra_of(hook._gcp_conn_id))
        return hook

    @classmethod
    def from_database(cls, bqdispatch_conn_id: str) -> BqDispatchHook:
        """A hook for a command: outside of its components, Airflow 3 finds no connection that is in its database.

        :param bqdispatch_conn_id: ID of the connection.
        :raises AirflowNotFoundException: when there is none.
        """
        hook = cls(bqdispatch_conn_id)
        hook._extra = filled(compat.stored_extra(bqdispatch_conn_id))
        if not hook._emulated:
            hook._google_extra = filled(compat.stored_extra(hook._gcp_conn_id))
        return hook

    @classmethod
    def task_folders(cls, but: str) -> dict[str, str | Exception]:
        """Find the task folders of the connections in Airflow's database and in ``AIRFLOW_CONN_…``, for a command.

        Other backends of secrets cannot be listed.

        :param but: ID of the connection that is left out.
        :returns: by connection ID the folder's URL, or why it cannot be told.
        """
        found: dict[str, str | Exception] = {}
        for conn_id in sorted(compat.connections_of(cls.conn_type) - {but}):
            try:
                hook = cls(conn_id)
                hook._extra = filled(compat.stored_extra(conn_id))
                if hook._form() == "config_url":  # which may need credentials
                    hook = cls.from_database(conn_id)
                found[conn_id] = hook.get_config().async_task_url
            except Exception as error:
                found[conn_id] = error
        return found

    @property
    def extra(self) -> Mapping[str, Any]:
        """The connection's extra, without what is empty."""
        if self._extra is None:
            self._extra = filled(self.get_connection(self.bqdispatch_conn_id).extra_dejson)
        return self._extra

    def get_config(self, variables: Mapping[str, str] | None = None) -> DispatchConfig:
        """The configuration that the connection holds or points to, checked.

        :param variables: values for ``${name}`` in the document; they go before the connection's own.
        :raises ConfigError: with every finding at once.
        """
        with ExitStack() as held:
            return self._config(variables, lambda: held.enter_context(closing(self.get_conn())))

    def get_conn(self) -> Client:
        """A client of Cloud Storage with the connection's credentials; whoever asks for it closes it."""
        return _client_of(*self._credentials())

    @contextmanager
    def get_dispatcher(
        self,
        go_on: Callable[[], bool] = lambda: True,
        variables: Mapping[str, str] | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Iterator[Dispatcher]:
        """A dispatcher with the connection's configuration and credentials, to be used in a ``with`` statement.

        :param go_on: asked before new work is taken; once it says no, what was begun is finished and no more is begun.
        :param variables: values for ``${name}`` in the document; they go before the connection's own.
        :param only: which events are dispatched, as :class:`~bqdispatch_provider.model.Only` has it; all by default.
        :raises ConfigError: when the configuration cannot be used, or nothing names a project.
        :raises ValueError: when ``only`` is something else.
        """
        chosen = Only.of(only)
        from bqdispatch_provider.dispatcher import Dispatcher  # noqa: PLC0415  (costs 0.5 s)

        credentials, project = self._credentials()
        with closing(_client_of(credentials, project)) as client, closing(_session_of(credentials)) as session:
            config = self._config(variables, lambda: client)
            with Dispatcher(config, client, session, go_on=go_on, only=chosen) as dispatcher:
                yield dispatcher

    def get_subscription(self, dispatcher: Dispatcher) -> Subscription | None:
        """The subscription that the connection names, by which waiting ends as soon as a job is done.

        :param dispatcher: from :meth:`get_dispatcher`, whose session is used.
        :raises ConfigError: when it is not named in full.
        """
        from bqdispatch_provider.push import SUBSCRIPTION, Subscription  # noqa: PLC0415

        name = self.extra.get("subscription")
        if name is None:
            return None
        if not isinstance(name, str) or not SUBSCRIPTION.fullmatch(name):
            raise self._unusable(
                f"subscription is {str(name)[:80]!r}; expected projects/<project>/subscriptions/<subscription>"
            )
        return Subscription(dispatcher.session, name)

    def decrypt(self, key: str, ciphertext: bytes) -> bytes:
        """What was encrypted with a KMS key, by the Google Cloud connection's credentials.

        :param key: ``projects/…/locations/…/keyRings/…/cryptoKeys/…``.
        """
        from airflow.providers.google.cloud.hooks.kms import CloudKMSHook  # noqa: PLC0415  (costs 1 s)

        kms = CloudKMSHook(self._gcp_conn_id, impersonation_chain=self._impersonation_chain)
        plaintext: bytes = kms.decrypt(key, base64.b64encode(ciphertext).decode())
        return plaintext

    def test_connection(self) -> tuple[bool, str]:
        """Try what a dispatcher reads, and tell everything that is in the way at once.

        Nothing is written, so permissions to create and delete are not tried.

        :returns: whether it may be used, and one sentence for each thing that is wrong.
        """
        try:
            with self.get_dispatcher() as dispatcher:
                findings, summary = _try(dispatcher, self.get_subscription(dispatcher))
        except ConfigError as error:
            findings, summary = error.findings, ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            findings, summary = [f"the connection {self.bqdispatch_conn_id!r} cannot be used: {said}"], ""
        # Projects are named by traces, and services quote what they were asked for.
        return not findings, in_one_line("; ".join(findings) or summary)

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The fields of the connection's form, for Airflow 2; Airflow 3 reads them from the provider's metadata."""
        return compat.form_widgets(_form()["conn-fields"])

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What the connection's form hides and suggests."""
        hidden = _form()["ui-field-behaviour"]["hidden-fields"]
        return {"hidden_fields": hidden, "relabeling": {}, "placeholders": dict(_PLACEHOLDERS)}

    def _config(self, variables: Mapping[str, str] | None, client: Callable[[], Client]) -> DispatchConfig:
        given = {**self._object("variables"), **(variables or {})}
        form = self._form()
        try:
            if form == "config_url":
                url = str(self.extra["config_url"])
                roots = [root for root in os.environ.get(FILE_ROOTS, "").split(os.pathsep) if root]
                return DispatchConfig.from_url(url, given, client() if url.startswith("gs://") else None, roots)
            if form == "config":
                return DispatchConfig.from_dict(self._object("config"), given)
            return DispatchConfig.from_dict(self._keys(), given)
        except ConfigError as error:
            raise self._unusable(*error.findings) from error

    def _form(self) -> str:
        """Which form the configuration has: ``config``, ``config_url``, or ``keys``."""
        keys = self._keys()
        forms = [form for form in FORMS if form in self.extra] + (["keys"] if keys else [])
        if len(forms) == 1:
            return forms[0]
        found = [*(form for form in forms if form != "keys"), *(f"the key {key}" for key in sorted(keys))]
        raise self._unusable(
            f"its extra holds {' and '.join(found) or 'no configuration'}; expected exactly one of config (the "
            "document), config_url (where it lies), or the document's keys (AsyncTaskURL, JournalURL, …)"
        )

    def _keys(self) -> dict[str, Any]:
        return {key: value for key, value in self.extra.items() if key not in (*FORMS, *OTHERS)}

    def _object(self, key: str) -> Mapping[str, Any]:
        """An object of the extra, which a form can only give as a JSON string."""
        value = self.extra.get(key, {})
        try:
            value = read_json(value, key) if isinstance(value, str) else value
        except ConfigError as error:
            raise self._unusable(*error.findings) from error
        if not isinstance(value, Mapping):
            raise self._unusable(f"{key} is a {type(value).__name__}; expected a JSON object")
        return value

    def _unusable(self, *findings: str) -> ConfigError:
        return ConfigError(list(findings), f"connection {self.bqdispatch_conn_id!r}")

    @property
    def _gcp_conn_id(self) -> str:
        return str(self.extra.get("gcp_conn_id", "google_cloud_default"))

    @property
    def _impersonation_chain(self) -> Any:
        chain = self.extra.get("impersonation_chain")
        return [each.strip() for each in chain.split(",")] if isinstance(chain, str) and "," in chain else chain

    @property
    def _emulated(self) -> bool:
        """Tell whether stand-ins take the place of every service that is used: then none needs credentials."""
        used = (STORAGE, BIGQUERY, *((PUBSUB,) if "subscription" in self.extra else ()))
        return all(map(emulator, used))

    def _credentials(self) -> tuple[Any, str | None]:
        """The Google Cloud connection's credentials, ``None`` for anonymous ones, and its project."""
        if self._emulated:
            return None, os.environ.get("GOOGLE_CLOUD_PROJECT")
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook  # noqa: PLC0415  (costs 0.6 s)
        from google.auth.credentials import CredentialsWithQuotaProject  # noqa: PLC0415

        known = self._google_extra

        class ResolvedGoogleHook(GoogleBaseHook):
            @classmethod
            def get_connection(cls, conn_id: str) -> Any:
                return super().get_connection(conn_id) if known is None else SimpleNamespace(extra_dejson=known)

        google = ResolvedGoogleHook(self._gcp_conn_id, impersonation_chain=self._impersonation_chain)
        credentials, project = google.get_credentials_and_project_id()
        if google._get_field("is_anonymous"):
            return None, project or None
        if quota := self.extra.get("quota_project_id"):  # which older providers do not know
            if not isinstance(credentials, CredentialsWithQuotaProject):
                raise self._unusable(f"quota_project_id is {str(quota)[:80]!r}, but these credentials take none")
            credentials = credentials.with_quota_project(str(quota))
        return credentials, project or None


def _form() -> dict[str, Any]:
    """The connection's form, as the provider's metadata has it for Airflow 3."""
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form


def _client_of(credentials: Any, project: str | None) -> Client:
    from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415

    from bqdispatch_provider.storage import client_of  # noqa: PLC0415

    return client_of(project, AnonymousCredentials() if credentials is None else credentials)


def _session_of(credentials: Any) -> requests.Session:
    from bqdispatch_provider.sessions import session_of  # noqa: PLC0415  (costs 0.3 s)

    return session_of(credentials)


def _try(dispatcher: Dispatcher, subscription: Subscription | None) -> tuple[list[str], str]:
    """What is in the way of a dispatcher, one sentence each, and what was tried."""
    config, store = dispatcher.config, dispatcher.store
    findings: dict[tuple[str, str], str] = {}

    def attempt(permission: str, where: str, call: Callable[[], Any]) -> Any:
        from google.api_core.exceptions import Forbidden, NotFound, Unauthorized  # noqa: PLC0415

        try:
            return call()
        except (Forbidden, Unauthorized) as error:
            said = error.errors[0].get("message") if error.errors else error.message
            findings[permission, where] = f"{permission} on {where} is missing ({error.code} {said})"
        except NotFound:
            findings["", where] = f"{where} does not exist"
        except Exception as error:
            findings["", where] = f"{where} cannot be reached: {type(error).__name__}: {error}"
        return None

    def looked_at(url: str) -> Any:
        where = f"bucket {url.removeprefix('gs://').partition('/')[0]}"
        return attempt("storage.objects.list", where, lambda: list(islice(store.names(url), 1000)))

    tasks = looked_at(config.async_task_url) or []
    trigger = config.trigger_bucket or ""
    attempt("storage.objects.get", f"bucket {trigger}", lambda: store.look_at_target(config.post_job_prefix[1:]))
    looked_at(f"gs://{trigger}{config.post_job_prefix}")
    looked_at(config.journal_url)
    looked_at(config.error_url)
    notes = []
    for name, found in store.settings().items():
        if isinstance(found, BucketSettings):
            findings |= {("", said): said for said in found.in_the_way(config, store.now())}
        elif ("", f"bucket {name}") not in findings:
            notes.append(f"; {cannot_be_checked(name, found.status, str(found))}")
    for key, meant in config.misspelt.items():
        findings["", key] = f"{in_one_line(key)} is no key of the configuration, so it says nothing; {meant} is one"
    projects = sorted({config.project_id or "", *_projects(tasks, store.task_url(""))})
    for project in projects:
        attempt(
            "bigquery.jobs.list, or bigquery.jobs.listAll,",
            f"project {project}",
            lambda project=project: dispatcher.board.first(project),  # type: ignore[misc]
        )
    if subscription is not None:
        where = f"subscription {subscription.name}"
        for permission in attempt("pubsub.subscriptions.consume", where, subscription.lacking) or ():
            findings[permission, where] = f"{permission} on {where} is missing"
    return list(findings.values()), (
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
