"""Two set-ups in one Airflow: two task folders, each with a DAG, a connection, pools and limits of its own.

Use it if BqTail runs more than once, for tenants or environments, and one Airflow dispatches for all of them. Each DAG
needs its connection, ``bqdispatch_acme`` and ``bqdispatch_globex``, with a task folder, a trigger bucket and a journal
that no other set-up uses, and the pools that ``bqdispatch pools --setup acme`` and ``--setup globex`` print.
"""

from bqdispatch_provider.factory import dispatch_dag

acme = dispatch_dag("acme")
globex = dispatch_dag("globex")
