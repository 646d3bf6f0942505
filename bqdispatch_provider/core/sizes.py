"""The largest objects that are read, by kind. No honest object is larger, whoever else may write to the buckets.

A larger one is an error that names it. Its size is known from a listing, or the read ends at the bound.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MAX_TRACE_BYTES = 8 * MIB
"""BqTail writes some 10 KB, and the URL of each file twice: BigQuery takes 10,000 of them for a load (BigQuery,
"Quotas"), so this holds URLs of 400 bytes each. The job of a larger trace is looked for in the list of jobs."""

MAX_WINDOW_BYTES = 256 * KIB
"""Of a window, its claim and its copy in ``undecided/``. BqTail writes under 1 KB: ten URLs, of which each has a little
more than 1,024 bytes at most, and the parameters of a rule."""

MAX_LOCATION_BYTES = 8 * KIB
"""Of a ``.loc`` object: the URL of one folder, whose name has 1,024 bytes at most."""

MAX_INTENT_BYTES = 16 * MIB
"""1,000 events, each with a name of 1,024 bytes, a project and an event ID of 256. JSON writes six bytes for one that
it has to escape."""

MAX_NOTE_BYTES = 256 * KIB
"""Of a note beside an object in quarantine: two URLs, a job, and a reason that quotes a service's message."""

MAX_ALERT_BYTES = 256 * KIB
"""Of the document that says that an alert was sent."""

MAX_HOUR_BYTES = 8 * MIB
"""Of an hour of the history: twelve spans, each with figures of twenty projects, and the IDs of DAGs."""

MAX_PERFORMANCE_BYTES = 8 * MIB
"""Of ``performance.json``: the numbers of each project take under 1 KB."""

MAX_WAITS_BYTES = 32 * MIB
"""Of ``waiting.json``: 1,000 waits, each with a name and a service's message."""

MAX_RUN_DOCUMENT_BYTES = 512 * MIB
"""Of what a run leaves in the journal: a response document, shares, a checkpoint. Each event takes up to a few KB, and
a run may have hundreds of thousands."""

MAX_ID_CHARS = 256
"""Of a project or an event ID in the content of a window. A project's has 30 and a domain, an event's has 20."""
