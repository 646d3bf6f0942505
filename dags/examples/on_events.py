"""Dispatch whenever there is something to dispatch, and every minute for safety (Airflow 3).

Use it where events come in bursts, and each burst should be a run that is seen in Airflow. A trigger watches the task
folder, and an asset by which the DAG is scheduled tells of what it sees. The run's one task begins in the triggerer, so
an idle minute starts no worker process (on Airflow 3.0 to 3.2 it starts one), and stays there for twenty seconds: what
follows the first event soon does not wait until Airflow has begun another run.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(way="events", dag_id="bqdispatch_on_events", schedule="* * * * *", is_paused_upon_creation=True)
