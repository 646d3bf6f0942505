"""DAGs as Airflow stores them."""


def serialized(dag):
    """Give a DAG as the scheduler and the web server read it."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))
