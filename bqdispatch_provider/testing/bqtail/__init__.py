"""A stand-in BqTail: the other side of docs/protocol.md, with an account of the outcome of every event.

It puts data files into the trigger bucket, opens windows, writes traces, submits BigQuery jobs, and consumes the
windows and traces that a dispatcher delivers, all by the ordinary APIs of the services. Its account tells whether every
file was loaded, and every row and message sent, exactly once.
"""

from bqdispatch_provider.testing.bqtail.account import Account, DataFile
from bqdispatch_provider.testing.bqtail.chains import TRACE_LABEL
from bqdispatch_provider.testing.bqtail.settings import BqTailSettings, Rule
from bqdispatch_provider.testing.bqtail.stand_in import StandInBqTail

__all__ = ["TRACE_LABEL", "Account", "BqTailSettings", "DataFile", "Rule", "StandInBqTail"]
