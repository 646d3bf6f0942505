"""A stand-in Google Cloud in one process: the parts of Cloud Storage, BigQuery and Pub/Sub that a dispatcher uses.

Run it in a thread with :class:`StandIn` or as the command ``bqdispatch-standin``, and control it with
:class:`StandInControl`.
"""

from bqdispatch_provider.testing.standin.control_client import StandInControl
from bqdispatch_provider.testing.standin.serving import StandIn, main

__all__ = ["StandIn", "StandInControl", "main"]
