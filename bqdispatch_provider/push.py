"""A Pub/Sub subscription on BigQuery's audit logs, whose messages say that it is worth looking now (docs/push.md)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import requests
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError

from bqdispatch_provider.emulators import PUBSUB, emulator
from bqdispatch_provider.names import in_words
from bqdispatch_provider.refusals import refused

log = logging.getLogger(__name__)

SUBSCRIPTION = re.compile(r"projects/[a-z0-9:.-]+/subscriptions/[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
"""The full name of a subscription (Pub/Sub, "Guidelines to name a topic or a subscription")."""

PERMISSION = "pubsub.subscriptions.consume"

_CALL_S = 5.0
"""Seconds that one call waits for a message at most: so long may an end of waiting be late."""
_SLICE_S = 0.5
_CONNECT_S = 5.0
_MOST = 1000


class Subscription:
    """Waits for messages instead of sleeping. What they say does not matter: whoever is woken looks.

    Nothing rests on it: a subscription that cannot be used is a line in the log, and waiting is sleeping then. Messages
    are fetched by plain requests, with the session of the dispatcher: the client library wants gRPC, and Airflow's hook
    a connection that a thread of the triggerer must not ask for. ``PUBSUB_EMULATOR_HOST`` names a stand-in.

    :param session: a ``requests.Session`` with credentials.
    :param name: ``projects/<project>/subscriptions/<subscription>``.
    """

    def __init__(self, session: requests.Session, name: str) -> None:
        self.name = name
        self._session = session
        self._url = f"{emulator(PUBSUB) or 'https://pubsub.googleapis.com'}/v1/{name}"
        self._told = False

    def wait(self, seconds: float, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Wait until a message comes, and tell whether one did.

        :param seconds: for how long at most.
        :param go_on: asked every few seconds; once it says no, waiting ends.
        """
        until = time.monotonic() + seconds
        while go_on() and (left := until - time.monotonic()) > 0:
            try:
                messages = self._pull(min(left, _CALL_S))
                if messages:
                    # Only then: a message that was pulled and not seen by anybody comes again.
                    self._call("acknowledge", {"ackIds": [each["ackId"] for each in messages]}, _CALL_S)
                    return True
                self._told = False
                # The service holds a pull until there is a message, but does not promise for how long.
                _sleep(min(until, time.monotonic() + _SLICE_S), go_on)
            except requests.ReadTimeout:
                continue  # no message: the service waits for longer than we do
            except (requests.RequestException, GoogleAuthError, GoogleAPICallError, KeyError, TypeError) as error:
                if not self._told:
                    log.warning("%r cannot be used, so it is looked without being told: %s", self.name, in_words(error))
                self._told = True
                _sleep(until, go_on)
        return False

    def lacking(self) -> list[str]:
        """What the account lacks to use it: nothing, or the permission.

        :raises google.api_core.exceptions.GoogleAPICallError: when the service refuses to say.
        :raises requests.RequestException: when it cannot be reached.
        """
        granted = self._call("testIamPermissions", {"permissions": [PERMISSION]}, _CALL_S).get("permissions", [])
        return [] if PERMISSION in granted else [PERMISSION]

    def _pull(self, seconds: float) -> list[dict[str, Any]]:
        answer = self._call("pull", {"maxMessages": _MOST}, seconds)
        return list(answer.get("receivedMessages", []))

    def _call(self, verb: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        response = self._session.post(f"{self._url}:{verb}", json=body, timeout=(_CONNECT_S, max(seconds, _SLICE_S)))
        if response.status_code != 200:
            raise refused(response)
        answer: dict[str, Any] = response.json()
        if not isinstance(answer, dict):  # a proxy in between may say anything
            raise TypeError(f"{verb} was answered by no JSON object")
        return answer


def _sleep(until: float, go_on: Callable[[], bool]) -> None:
    while go_on() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_S))
