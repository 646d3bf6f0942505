"""Waits that do not depend on the speed of the machine."""

import time

PATIENCE_S = 600
"""Maximum wait. Only a condition that never holds takes longer."""
HELD_MS = 1000 * PATIENCE_S
"""Delay of a call that a test holds up until it clears the faults."""


def wait_until(is_so, what="it is so"):
    """Wait until a condition holds.

    :param is_so: condition, called repeatedly.
    :param what: description of the condition for the error message.
    :returns: result of the condition.
    :raises AssertionError: if the condition does not hold within ``PATIENCE_S`` seconds.
    """
    until = time.monotonic() + PATIENCE_S
    while not (found := is_so()):
        assert time.monotonic() < until, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)
    return found
