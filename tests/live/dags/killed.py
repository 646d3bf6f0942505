"""Airflow's sample DAG, whose sensor waits in the triggerer while its tasks dispatch on workers."""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(dag_id="killed", schedule="@continuous")
dag.get_task("detect").deferrable = True
