"""Functions that a function calls: their number tells how its work grows, whatever the speed of the machine."""

import gc
import re
import sys


def calls_of(function, *given, fails=()):
    """Call a function, and note the functions that it calls, in Python and in C.

    :param fails: exceptions that the function may raise.
    :returns: the names of those in Python and the functions in C, and the result or the exception.
    """
    called, come = [], None

    def note(frame, event, argument):
        if event in ("call", "c_call"):
            called.append(frame.f_code.co_name if event == "call" else argument)

    gc.disable()  # whose callbacks would count
    sys.setprofile(note)
    try:
        come = function(*given)
    except fails as error:
        come = error
    finally:
        sys.setprofile(None)
        gc.enable()
    return called, come


def patterns_in(called):
    """Return the patterns whose methods were called: each is one call that may take any time."""
    owners = (getattr(each, "__self__", None) for each in called)
    return [owner for owner in owners if isinstance(owner, re.Pattern)]
