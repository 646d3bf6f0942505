"""DAG ``bqdispatch_deferred``: the whole dispatcher in one task, in a thread of the triggerer.

Choose it to dispatch without pools and almost without workers: the task polls every second while something changes. A
worker is needed only at the end of a run that dispatched something, to write its asset events; on Airflow 3.0 to 3.2 it
also starts the run. So a DAG that is scheduled by a table starts up to ten minutes late. The dispatcher itself keeps
the limits.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(way="deferred", dag_id="bqdispatch_deferred")
