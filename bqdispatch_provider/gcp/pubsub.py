"""A Pub/Sub subscription on BigQuery's audit logs, whose messages say that a job may be done (docs/push.md)."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

import requests

from bqdispatch_provider.gcp.emulators import PUBSUB, emulator
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS, error_from_response
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)

SUBSCRIPTION = re.compile(r"projects/[a-z0-9:.-]+/subscriptions/[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
"""The full name of a subscription (Pub/Sub, "Guidelines to name a topic or a subscription")."""

_CALL_TIMEOUT_S = 5.0
"""Seconds that one call waits for a message. A request to stop is noticed this late."""

_CONNECT_TIMEOUT_S = 5.0
_SLEEP_S = 0.5
_MIN_INTERVAL_S = 1.0
"""Seconds between two messages that end a wait: each of them leads to a look, and there may be a hundred a second."""

_MAX_MESSAGES = 1000


class Subscription:
    """A wait that ends as soon as a message comes. What the message says does not matter.

    A subscription that is unavailable is a warning in the log, and the wait becomes a sleep. Messages are pulled by
    plain requests with the dispatcher's session: the client library needs gRPC, and Airflow's hook a connection, which
    a thread of the triggerer must not ask for. ``PUBSUB_EMULATOR_HOST`` names a stand-in.

    :param session: a ``requests.Session`` with credentials.
    :param name: ``projects/<project>/subscriptions/<subscription>``.
    """

    def __init__(self, session: requests.Session, name: str) -> None:
        self.name = name
        self._session = session
        self._url = f"{emulator(PUBSUB) or 'https://pubsub.googleapis.com'}/v1/{name}"
        self._warned = False
        self._woken_at = -math.inf

    def wait(self, seconds: float, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Wait for a message, but not within a second of the last one.

        :param seconds: longest wait.
        :param go_on: asked every few seconds; the wait ends once it returns False.
        :returns: True if a message came.
        """
        until = time.monotonic() + seconds
        _sleep(min(until, self._woken_at + _MIN_INTERVAL_S), go_on)
        while go_on() and (left := until - time.monotonic()) > 0:
            try:
                answer = self._call("pull", {"maxMessages": _MAX_MESSAGES}, min(left, _CALL_TIMEOUT_S))
                if messages := answer.get("receivedMessages"):
                    # Not earlier: a message that was pulled and not acknowledged comes again.
                    self._call("acknowledge", {"ackIds": [each["ackId"] for each in messages]}, _CALL_TIMEOUT_S)
                    self._woken_at = time.monotonic()
                    return True
                self._warned = False
                # The service holds a pull until there is a message, but does not promise for how long.
                _sleep(min(until, time.monotonic() + _SLEEP_S), go_on)
            except requests.ReadTimeout:
                continue  # no message: the service waits for longer than we do
            except (*GOOGLE_ERRORS, KeyError, TypeError) as error:
                if not self._warned:
                    said = in_words(error)
                    log.warning("Pub/Sub subscription %r unavailable; falling back to polling: %s", self.name, said)
                self._warned = True
                _sleep(until, go_on)
        return False

    def test_permissions(self, permissions: list[str]) -> list[str]:
        """Return those of some permissions that the account has (Pub/Sub, "subscriptions.testIamPermissions").

        :raises google.api_core.exceptions.GoogleAPICallError: when the service refuses to say.
        :raises requests.RequestException: when it cannot be reached.
        """
        answer = self._call("testIamPermissions", {"permissions": permissions}, _CALL_TIMEOUT_S)
        return list(answer.get("permissions", []))

    def _call(self, verb: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        timeout = (_CONNECT_TIMEOUT_S, max(seconds, _SLEEP_S))
        response = self._session.post(f"{self._url}:{verb}", json=body, timeout=timeout)
        if response.status_code != 200:
            raise error_from_response(response)
        try:
            answer: dict[str, Any] = json.loads(response.content)
        except (ValueError, RecursionError) as error:
            raise TypeError(f"the answer to {verb} is no JSON: {response.content[:100]!r}") from error
        if not isinstance(answer, dict):  # a proxy in between may answer anything
            raise TypeError(f"the answer to {verb} is not a JSON object")
        return answer


def _sleep(until: float, go_on: Callable[[], bool]) -> None:
    while go_on() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SLEEP_S))
