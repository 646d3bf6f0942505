"""DAG ``bqdispatch``: every minute, dispatch what BqTail waits for.

Set in Airflow's environment: ``BQDISPATCH_SCHEDULE``, such as ``@continuous``, for another schedule, and the limits
``MaxConcurrentSQL`` and ``MaxConcurrentJobs`` as ``BQDISPATCH_SQL_SLOTS`` and ``BQDISPATCH_JOBS_SLOTS``.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag()
