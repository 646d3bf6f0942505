"""DAG ``bqdispatch_deferred``: the whole dispatcher in one task that runs in the triggerer, in a thread.

Choose it for the shortest way from a job's end to BqTail at the least cost: it looks every second while something is
on its way. A worker is needed only at the end of a run that dispatched something, to note its asset events (on Airflow
3.0 to 3.2 also to begin a run): a DAG that is scheduled by a table waits for that, ten minutes here. Pools have no say
in it; the dispatcher holds the limits itself.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(way="deferred", dag_id="bqdispatch_deferred", is_paused_upon_creation=True)
