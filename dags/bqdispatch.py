"""DAG ``bqdispatch``: every minute, dispatch what BqTail waits for.

Airflow's environment may say otherwise: ``BQDISPATCH_SCHEDULE``, such as ``@continuous``, and ``BQDISPATCH_SQL_SLOTS``
and ``BQDISPATCH_JOBS_SLOTS``, which are ``MaxConcurrentSQL`` and ``MaxConcurrentJobs``.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag()
