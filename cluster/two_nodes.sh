#!/usr/bin/env bash
# Start a Ray cluster of two nodes on this machine: a head and a worker, with token authentication and every port
# that can be bound to loopback bound there. Stop it with cluster/stop.sh.
#
#   cluster/two_nodes.sh [FOLDER]          FOLDER keeps the token and the environment (default: .cluster)
#   cluster/two_nodes.sh FOLDER worker     start the worker again, after it was killed
#
# Then:  source FOLDER/environment && python -m pipelines.run_all EXPERIMENT.toml --address "$RAY_ADDRESS"
set -euo pipefail

folder=$(mkdir -p "${1:-.cluster}" && cd "${1:-.cluster}" && pwd)
port=${RAY_PORT:-6399}
dashboard_port=${RAY_DASHBOARD_PORT:-8299}
# Each node's agent needs a port of its own, as jobs are submitted through it; the third is Ray Client's, unused here.
agent_port=${RAY_AGENT_PORT:-8300}
cpus_per_node=${CPUS_PER_NODE:-1}
# Ray puts sockets here, whose paths may have 107 characters at most: so not into FOLDER.
temporary=${TMPDIR:-/tmp}/rnnlm-ray-$(id -u)-$port
python=${PYTHON:-python}

umask 077
[ -s "$folder/token" ] || "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token"
chmod 600 "$folder/token"

cat >"$folder/environment" <<EOF
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$folder/token
export RAY_ADDRESS=127.0.0.1:$port
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port
export RAY_USAGE_STATS_ENABLED=0
EOF
# shellcheck disable=SC1091
source "$folder/environment"
echo "$temporary" >"$folder/temporary"
export RNNLM_CLUSTER=$folder  # by which cluster/stop.sh knows the processes
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS

start_head() {
  "$python" -m ray.scripts.scripts start --head --node-ip-address=127.0.0.1 --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" --include-dashboard=true \
    --dashboard-agent-listen-port="$agent_port" --ray-client-server-port="$((agent_port + 2))" \
    --num-cpus="$cpus_per_node" --object-store-memory=268435456 --temp-dir="$temporary" --disable-usage-stats
}
start_worker() {
  # With a folder of its own: a node that unpacks a job's working directory deletes the other's copy of it first.
  "$python" -m ray.scripts.scripts start --address="127.0.0.1:$port" --node-ip-address=127.0.0.1 \
    --temp-dir="$temporary-2" \
    --dashboard-agent-listen-port="$((agent_port + 1))" \
    --num-cpus="$cpus_per_node" --object-store-memory=268435456 --disable-usage-stats
}
[ "${2:-}" = worker ] || start_head
start_worker

echo "two nodes are up; for your shell: source $folder/environment"
echo "stop them with: cluster/stop.sh $folder"
