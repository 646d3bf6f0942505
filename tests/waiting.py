"""Wait for what is to happen, however slow the machine is."""

import time

PATIENCE_S = 600
"""So long that only what never happens takes longer."""
HELD_MS = 1000 * PATIENCE_S
"""How late a call is answered that a test holds up; clearing the faults ends it."""


def wait_until(is_so, what="it is so"):
    """Wait until a condition holds.

    :param is_so: the condition; called again and again.
    :param what: what it says, for the message of a failure.
    :returns: what the condition returned.
    :raises AssertionError: when it still does not hold after ``PATIENCE_S`` seconds.
    """
    until = time.monotonic() + PATIENCE_S
    while not (found := is_so()):
        assert time.monotonic() < until, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)
    return found
