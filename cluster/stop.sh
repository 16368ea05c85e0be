#!/usr/bin/env bash
# Stop the cluster that cluster/two_nodes.sh started, and delete Ray's temporary files; the store is left alone.
#
#   cluster/stop.sh [FOLDER]
set -euo pipefail

folder=$(cd "${1:-.cluster}" && pwd)
temporary=$(cat "$folder/temporary")

# Processes of this cluster carry the folder in their environment or the temporary folder on their command line;
# those that renamed themselves are children of these.
roots() {
  { grep -lzxs "RNNLM_CLUSTER=$folder" /proc/[0-9]*/environ | cut -d/ -f3; pgrep -f -- "$temporary" || true; } |
    sort -u | grep -vx "$$" || true
}
family() {
  local parent
  for parent in "$@"; do
    echo "$parent"
    # shellcheck disable=SC2046
    family $(pgrep -P "$parent" || true)
  done
}
alive() {
  local process
  for process in "$@"; do
    grep -qs '^State:[[:space:]]*[^Z]' "/proc/$process/status" && echo "$process"
  done || true
}
# shellcheck disable=SC2046
members=$(family $(roots) | sort -u)
for signal in TERM KILL; do
  # shellcheck disable=SC2086
  for process in $(alive $members); do kill "-$signal" "$process" 2>/dev/null || true; done
  for _ in $(seq 1 20); do
    # shellcheck disable=SC2086
    [ -n "$(alive $members)" ] || break 2
    sleep 0.5
  done
done
rm -rf "$temporary" "$temporary-2" "$folder/temporary"
echo "stopped"
