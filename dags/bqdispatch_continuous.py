"""DAG ``bqdispatch_continuous``: the tasks of ``bqdispatch``, one run after the other.

Choose it when a minute is too long to wait and events come all day: a run begins when the last one ends. It is the
dearest way: every run starts worker processes of Airflow, and there is always one.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(dag_id="bqdispatch_continuous", schedule="@continuous", is_paused_upon_creation=True)
