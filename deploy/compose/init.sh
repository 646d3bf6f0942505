#!/usr/bin/env bash
# Brings Airflow's database up to date, with the pools and connections of the configuration.
set -euo pipefail
work=$(mktemp -d)
airflow db migrate
bqdispatch pools --config "$BQDISPATCH_CONFIG_URL" >"$work/pools.json"
airflow pools import "$work/pools.json"
python - >"$work/connections.json" <<'PY'
import json, os

emulated = bool(os.environ["STORAGE_EMULATOR_HOST"])
google = {"project": os.environ["GOOGLE_CLOUD_PROJECT"], **({"is_anonymous": True} if emulated else {})}
dispatch = {"config_url": os.environ["BQDISPATCH_CONFIG_URL"], "gcp_conn_id": "google_cloud_default"}
connections = {
    "bqdispatch_default": {"conn_type": "bqdispatch", "extra": dispatch},
    "google_cloud_default": {"conn_type": "google_cloud_platform", "extra": google},
}
print(json.dumps(connections))
PY
airflow connections import --overwrite "$work/connections.json"
