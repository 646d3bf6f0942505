"""The extra of a connection of type ``bqdispatch``: the configuration, and the credentials to use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError, listed, shown, shown_name
from bqdispatch_provider.config_source import FILE_ROOTS, read_json
from bqdispatch_provider.core.connection import CONFIG_KEYS, OTHER_KEYS, accounts_of, non_empty
from bqdispatch_provider.gcp.emulators import BIGQUERY, PUBSUB, STORAGE, emulator
from bqdispatch_provider.names import in_words

if TYPE_CHECKING:
    from google.cloud.storage import Client

GCP_CONN_ID = "google_cloud_default"
"""The Google Cloud connection of a set-up that names none."""


class ConnectionExtra:
    """The extra of a connection of type ``bqdispatch``.

    :param conn_id: ID of the connection, which errors name.
    :param extra: the extra as Airflow stores it. Empty fields count as missing.
    """

    def __init__(self, conn_id: str, extra: Mapping[str, Any]) -> None:
        self._conn_id = conn_id
        self.values: Mapping[str, Any] = non_empty(extra)

    def config(self, variables: Mapping[str, str] | None, open_client: Callable[[], Client]) -> DispatchConfig:
        """Return the configuration that the extra holds or points to.

        :param variables: values for ``${name}`` in the document. They win over the extra's own.
        :param open_client: called for a client of Cloud Storage if the document is in a bucket.
        :raises ConfigError: if the extra or the document is invalid. The error lists every finding.
        """
        if not isinstance(variables, Mapping | None):
            raise self.error(f"the argument variables is {str(variables)[:80]!r}; expected a dict")
        given = {**self._object("variables"), **(variables or {})}
        forms = [form for form in CONFIG_KEYS if form in self.values]
        keys = {key: value for key, value in self.values.items() if key not in (*CONFIG_KEYS, *OTHER_KEYS)}
        if len(forms) + bool(keys) != 1:
            found = [*forms, *(f"the key {shown_name(key)}" for key in sorted(keys))]
            raise self.error(
                f"its extra holds {listed(found, ' and ') or 'no configuration'}; expected exactly one of config (the "
                "document), config_url (where it lies), or the document's keys (AsyncTaskURL, JournalURL, …)"
            )
        try:
            if forms == ["config_url"]:
                return self._config_at(str(self.values["config_url"]), given, open_client)
            return DispatchConfig.from_dict(self._object("config") if forms else keys, given)
        except ConfigError as error:
            raise self.error(*error.findings) from error

    def _config_at(self, url: str, variables: Mapping[str, str], open_client: Callable[[], Client]) -> DispatchConfig:
        roots = [root for root in os.environ.get(FILE_ROOTS, "").split(os.pathsep) if root]
        client = None
        if url.startswith("gs://"):
            try:
                client = open_client()
            except ConfigError:
                raise
            except Exception as error:  # by the credentials: anything, such as the KeyError of an incomplete key
                said = f"cannot be read with the connection {self.gcp_conn_id!r}: {in_words(error)}"
                raise ConfigError([f"the document at {shown(url)} {said}"]) from error
        return DispatchConfig.from_url(url, variables, client, roots)

    @property
    def gcp_conn_id(self) -> str:
        """ID of the Google Cloud connection."""
        return str(self.values.get("gcp_conn_id", GCP_CONN_ID))

    @property
    def impersonation_chain(self) -> list[str] | None:
        """Service accounts to impersonate, as Google's hooks take them."""
        try:
            return accounts_of(self.values.get("impersonation_chain")) or None
        except ConfigError as error:
            raise self.error(*error.findings) from error

    @property
    def is_emulated(self) -> bool:
        """True if stand-ins replace every service that the connection uses, so that it needs no credentials."""
        used = (STORAGE, BIGQUERY, *((PUBSUB,) if "subscription" in self.values else ()))
        return all(map(emulator, used))

    def error(self, *findings: str) -> ConfigError:
        """Return an error that names the connection.

        :param findings: one sentence for each thing that is wrong.
        """
        return ConfigError(list(findings), f"connection {self._conn_id!r}")

    def _object(self, key: str) -> Mapping[str, Any]:
        """Read an object, which a form can only store as a JSON string."""
        value = self.values.get(key, {})
        try:
            value = read_json(value, key) if isinstance(value, str) else value
        except ConfigError as error:
            raise self.error(*error.findings) from error
        if not isinstance(value, Mapping):
            raise self.error(f"{key} is a {type(value).__name__}; expected a JSON object")
        return value
