"""DAG ``bqdispatch_deferred``: the whole dispatcher in one task, in a thread of the triggerer.

Choose it for the shortest time from a job's end to BqTail at the lowest cost: the task polls every second while
something changes. A worker is needed only at the end of a run that dispatched something, to write its asset events; on
Airflow 3.0 to 3.2 it also starts the run. So a DAG that is scheduled by a table starts up to ten minutes late. Pools do
not apply; the dispatcher itself keeps the limits.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(way="deferred", dag_id="bqdispatch_deferred")
