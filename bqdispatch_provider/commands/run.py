"""``bqdispatch run``: dispatch until the time to live is over, and print the response document."""

from __future__ import annotations

import argparse
import gc
import json

from bqdispatch_provider.commands.options import config_from_environment, google_credentials, read_config
from bqdispatch_provider.commands.output import FAILED, OK, graceful_stop, progress
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.threads import StopRequest


def execute(options: argparse.Namespace) -> int:
    """Dispatch, and print the response document.

    :param options: of the command line.
    :returns: the exit code: 1 when the document's status is ``error``.
    """
    # A hundred thousand objects live until the end of a cycle. With the default thresholds, a fifth of the CPU goes
    # into collections that find nothing.
    gc.set_threshold(100_000, 50, 1000)
    config = read_config(options) if options.config else config_from_environment(options)
    stop = StopRequest()
    with google_credentials():
        dispatcher = Dispatcher(config, go_on=lambda: not stop.is_made)
    with dispatcher, progress("Looking at the task folder …") as show, graceful_stop(stop):
        report = dispatcher.run(
            time_to_live=0 if options.once else None,
            progress=lambda report: show(f"Cycle {report.cycles}: {report.in_words()}"),
        )
    print(json.dumps(report.to_dict(), indent=1))
    return OK if report.ok else FAILED
