"""Options that several commands have: the configuration, its variables, and the credentials it is read with."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError, shown
from bqdispatch_provider.config_keys import PROJECT

if TYPE_CHECKING:
    from google.cloud.storage import Client

    from bqdispatch_provider.dispatcher import Dispatcher

CONFIG_VARIABLE = "CONFIG"
"""The environment variable in which the Go service finds its configuration: a JSON document, or its URL."""

_PROJECT_VARIABLES = ("GCLOUD_PROJECT", "GOOGLE_CLOUD_PROJECT", "GCP_PROJECT")


def read_config(options: argparse.Namespace, given: str | None = None) -> DispatchConfig:
    """Read and check a configuration.

    :param options: the command line's, with ``--var``.
    :param given: URL or path; by default the value of ``--config``.
    :raises ConfigError: when it cannot be read or is invalid.
    """
    given = given or str(options.config)
    url = given if "://" in given else Path(given).resolve().as_uri()
    return DispatchConfig.from_url(url, read_variables(options))


def config_from_environment(options: argparse.Namespace) -> DispatchConfig:
    """Read the configuration from the environment, as the Go service does (docs/migration.md).

    :param options: the command line's, with ``--var``.
    :raises ConfigError: when there is none, or it is invalid.
    """
    given = os.environ.get(CONFIG_VARIABLE, "").strip()
    if not given:
        raise ConfigError(
            [f"no configuration given: use --config, or set {CONFIG_VARIABLE} to a JSON document or its URL"]
        )
    if given.startswith("{"):
        config = DispatchConfig.from_json(given, read_variables(options))
    else:
        config = read_config(options, given)
    project = next((name for variable in _PROJECT_VARIABLES if (name := os.environ.get(variable))), None)
    region = os.environ.get("FUNCTION_REGION")
    return replace(
        config,
        project_id=config.project_id or project,
        region=region if region and config.region == DispatchConfig.region else config.region,
        time_to_live_in_min=min(config.time_to_live_in_min, _function_timeout_s() / 60),
    )


def _function_timeout_s() -> float:
    """Return the time-out of the cloud function, in seconds; infinite outside of one.

    :raises ConfigError: when it is no time.
    """
    given = os.environ.get("FUNCTION_TIMEOUT_SEC") or "inf"
    with suppress(ValueError):
        if (seconds := float(given)) > 0:
            return seconds
    raise ConfigError([f"FUNCTION_TIMEOUT_SEC is {shown(given)}; expected a number of seconds above 0"])


def read_variables(options: argparse.Namespace) -> dict[str, str]:
    """Return the values of ``--var`` by name.

    :param options: the command line's.
    :raises ConfigError: when one of them has no ``=``.
    """
    malformed = [each for each in options.var if "=" not in each]
    if malformed:
        raise ConfigError([f"--var {each!r}; expected NAME=VALUE" for each in malformed])
    return dict(each.split("=", 1) for each in options.var)


def project_id(text: str) -> str:
    """Return a project ID that an option gives.

    :raises argparse.ArgumentTypeError: if it is none.
    """
    if not re.fullmatch(PROJECT, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no project ID; give the option once for each project")
    return text


def connect(options: argparse.Namespace) -> tuple[DispatchConfig, Client]:
    """Read the configuration, and make a client for Cloud Storage.

    :param options: the command line's, with ``--config`` and ``--var``.
    :returns: the configuration with its project filled in, and a client with the environment's credentials.
    :raises ConfigError: when the configuration is invalid, or there are no credentials.
    """
    config = read_config(options)
    from bqdispatch_provider.gcp.clients import client_of  # noqa: PLC0415  (pools needs no client)

    with google_credentials():
        client = client_of(config.project_id)
    return config.for_project(client.project), client


def dispatcher_of(config: DispatchConfig, client: Client) -> Dispatcher:
    """Make a dispatcher that looks at BigQuery with the environment's credentials.

    :param config: from :func:`connect`, as is the client.
    :raises ConfigError: when there are no credentials.
    """
    from bqdispatch_provider.dispatcher import Dispatcher  # noqa: PLC0415  (pools needs no client)

    with google_credentials():
        return Dispatcher(config, client)


@contextmanager
def google_credentials() -> Iterator[None]:
    """Raise :class:`ConfigError` where the environment has no credentials for Google Cloud."""
    from google.auth.exceptions import DefaultCredentialsError  # noqa: PLC0415  (pools needs no client)

    try:
        yield
    except DefaultCredentialsError as error:
        raise ConfigError([f"no Google Cloud credentials found: {error}"]) from error
