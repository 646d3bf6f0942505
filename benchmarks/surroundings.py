"""Surroundings of the benchmarks: a stand-in Google Cloud, and a real Airflow beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bqdispatch_provider.commands.pools import expected_pools
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.testing.standin import StandInControl
from demo.live import LiveAirflow

BIN = Path(sys.executable).parent


@contextmanager
def stand_in() -> Iterator[tuple[str, StandInControl]]:
    """Run a stand-in Google Cloud in a process of its own, with the workloads' buckets.

    :returns: its address, and its control.
    """
    with subprocess.Popen([BIN / "bqdispatch-standin"], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = (process.stdout.readline() if process.stdout else "").strip()
            with StandInControl(url) as control:
                for bucket in ("ops", "p_bqtail", "journal"):
                    control.seed_objects(bucket, [])
                yield url, control
        finally:
            process.terminate()


@contextmanager
def airflow(url: str, document: Mapping[str, Any], dags: Mapping[str, str], **more: str) -> Iterator[LiveAirflow]:
    """Run a real Airflow.

    :param url: of the stand-in.
    :param document: the configuration; its pools are made.
    :param dags: DAG files, text by name.
    :param more: further environment variables.
    """
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "BIGQUERY_EMULATOR_HOST": url,
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps({"conn_type": "bqdispatch", "extra": {"config": document}}),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(google),
        **more,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "dags")
        files.mkdir()
        for name, text in dags.items():
            (files / name).write_text(text)
        pools = expected_pools(DispatchConfig.from_dict(document))
        with LiveAirflow(Path(folder, "airflow"), files, pools, environment) as live:
            yield live
