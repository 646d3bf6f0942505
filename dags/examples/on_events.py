"""Dispatch whenever there is something to dispatch, and every minute for safety (Airflow 3).

Use it if events come in bursts, and each burst should be a run of its own in Airflow. A trigger polls the task folder
and reports events to an asset, which schedules the DAG. The run's task starts in the triggerer, so an idle minute takes
no worker (on Airflow 3.0 to 3.2 it takes one). It dispatches for twenty seconds, so that the events after the first
one need no run of their own.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(way="events", dag_id="bqdispatch_on_events", schedule="* * * * *")
