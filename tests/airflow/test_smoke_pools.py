"""`bqdispatch smoke` beside an Airflow: its pools are looked at, too."""

import json
import subprocess
import sys

from world import TASKS

from bqdispatch_provider.pools import pools_of


def smoke(config):
    command = [sys.executable, "-m", "bqdispatch_provider.cli", "smoke", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    return {where: (verdict, said) for verdict, what, where, said in rows if what in ("pool", "pools")}


def test_pools_that_an_airflow_lacks_are_named(world, database, airflow_prints, tmp_path):
    world.control.refuse("storage.objects.delete", bucket=TASKS)  # no trial, which takes seconds
    config, pools = tmp_path / "config.json", tmp_path / "pools.json"
    config.write_text(json.dumps(world.document(MaxConcurrentSQL=5)))
    found = smoke(config)
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(
        ["bqdispatch_sql", "bqdispatch_jobs"], "failed"
    )
    assert "is missing" in found["bqdispatch_sql"][1]
    pools.write_text(json.dumps(pools_of(world.config(MaxConcurrentSQL=5))))
    airflow_prints("pools", "import", str(pools))
    try:
        assert {verdict for verdict, _ in smoke(config).values()} == {"ok"}
    finally:
        for name in found:
            airflow_prints("pools", "delete", name)
