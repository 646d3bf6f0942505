"""The page's answer, once it has read everything."""

import time

from waiting import PATIENCE_S

UNREAD = ("being read", "read for the first time", "has not answered")


def state(client, setup="bqdispatch_default", **query):
    """Return all that the page shows, once it has read everything."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        answer = client.get("/api/state", params={"setup": setup, **query})
        answer.raise_for_status()
        found = answer.json()
        problems = found["overview"]["problems"]
        if (problems or found["whole"]) and not any(word in each for each in problems for word in UNREAD):
            return found
        time.sleep(0.1)
    raise AssertionError(found)
