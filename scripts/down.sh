#!/usr/bin/env bash
# Takes away all that `make up` made: the services, reeve, the containers' networks, the hello image, the engine if it
# was started by us, and the data. Nothing of anybody else's is touched: containers are found by this cluster's id.
set -euo pipefail
bin=$(realpath -m "${1:?the reeve binary}")
cd "$(dirname "$0")/.."
state=$PWD/.reeve
[ -d "$state" ] || { echo "down: nothing is up here"; exit 0; }
alive() { [ -f "$state/up.pid" ] && grep -qz "up" "/proc/$(cat "$state/up.pid")/cmdline" 2>/dev/null; }
if [ -S "$state/engine/docker.sock" ]; then export DOCKER_HOST=unix://$state/engine/docker.sock; fi
if [ -x "$bin" ] && alive && [ -s "$state/up/endpoint" ]; then
  "$bin" --etcd "$(cat "$state/up/endpoint")" delete services --all -A --yes || true
fi
if alive; then
  pid=$(cat "$state/up.pid")
  kill "$pid"
  for _ in $(seq 1 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
fi
if docker version >/dev/null 2>&1 && [ -s "$state/up/cluster" ]; then
  id=$(cat "$state/up/cluster")
  docker ps -aq --filter "label=reeve.cluster=$id" | xargs -r docker rm -f >/dev/null
  docker network ls -q --filter "label=reeve.cluster=$id" | xargs -r docker network rm >/dev/null
  docker image rm reeve/hello:1 >/dev/null 2>&1 || true
fi
scripts/engine.sh stop "$state/engine"
rm -rf "$state"
echo "down: all that \`make up\` made is gone; target/ and Debian's packages stay"
