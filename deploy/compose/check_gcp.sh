#!/usr/bin/env bash
# Says what is missing before Airflow starts: settings, credentials, permissions to read.
set -euo pipefail
if [[ -n $STORAGE_EMULATOR_HOST || -n $BIGQUERY_EMULATOR_HOST || $BQDISPATCH_CONFIG_URL != gs://* ]]; then
  echo "The profile gcp has its settings in .env: copy deploy/compose/gcp.env there and fill it in." >&2
  exit 1
fi
exec airflow connections test bqdispatch_default
