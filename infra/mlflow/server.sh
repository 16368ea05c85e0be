#!/usr/bin/env bash
# MLflow on loopback: runs and models in a database, artifacts served by the server itself.
set -euo pipefail
: "${MLFLOW_DATABASE:?a database URI, for instance postgresql://mlflow@127.0.0.1/mlflow}"
: "${MLFLOW_ARTIFACTS:?a folder or an object store, for instance s3://bucket/mlflow}"
export MLFLOW_DISABLE_TELEMETRY=true
exec "${MLFLOW:-mlflow}" server --host 127.0.0.1 --port "${MLFLOW_PORT:-5000}" --workers 2 \
  --backend-store-uri "$MLFLOW_DATABASE" --artifacts-destination "$MLFLOW_ARTIFACTS" \
  --allowed-hosts "localhost,127.0.0.1,localhost:${MLFLOW_PORT:-5000},127.0.0.1:${MLFLOW_PORT:-5000}"
