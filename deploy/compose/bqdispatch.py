"""Airflow's DAG of the dispatcher. Between stand-ins it is switched on from the beginning, with real buckets it is not.

BQDISPATCH_PAUSED decides, by Airflow's own setting.
"""

from bqdispatch_provider.factory import dispatch_dag

dag = dispatch_dag(is_paused_upon_creation=None)
