"""Airflow's Stats of a task, sent to a StatsD server."""

from inspect import signature


def statsd_environment(port):
    """Return the environment variables for a StatsD server at a port of 127.0.0.1."""
    return {
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(port),
    }


def use_statsd(monkeypatch, stats):
    """Let Stats send to the server of the environment, which only Airflow's own processes do by themselves."""
    try:
        from airflow.sdk.observability.metrics.statsd_logger import get_statsd_logger
    except ImportError:
        try:
            from airflow.observability.metrics.statsd_logger import get_statsd_logger
        except ImportError:
            from airflow.metrics.statsd_logger import get_statsd_logger
    backend = get_statsd_logger(*signature(get_statsd_logger).parameters)
    for call in ("incr", "gauge", "timing"):
        monkeypatch.setattr(stats, call, getattr(backend, call), raising=False)
