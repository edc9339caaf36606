#!/usr/bin/env bash
# The main job after the build: a Docker engine, the hello image, `reeve up` in the background, the hello manifest applied
# and awaited. A second run finds all of it and only applies again.
set -euo pipefail
bin=$(realpath "${1:?the reeve binary}")
cd "$(dirname "$0")/.."
state=$PWD/.reeve
mkdir -p "$state"
DOCKER_HOST=$(scripts/engine.sh start "$state/engine")
export DOCKER_HOST
scripts/hello-image.sh

running() { [ -f "$state/up.pid" ] && grep -qz "up" "/proc/$(cat "$state/up.pid")/cmdline" 2>/dev/null; }
if ! running; then
  setsid "$bin" up --data-dir "$state/up" --docker "$DOCKER_HOST" --listen auto >"$state/up.log" 2>&1 </dev/null &
  echo $! > "$state/up.pid"
fi
for _ in $(seq 1 300); do
  [ -s "$state/up/endpoint" ] && running && "$bin" --etcd "$(cat "$state/up/endpoint")" get nodes -o name 2>/dev/null | grep -q . && break
  if ! running; then
    tail -20 "$state/up.log" >&2
    echo "up: reeve ended; its log is .reeve/up.log" >&2
    exit 1
  fi
  sleep 0.1
done
REEVE_ETCD=$(cat "$state/up/endpoint")
export REEVE_ETCD
"$bin" apply -f manifests/examples/hello.yaml --yes
"$bin" get services
echo
printf 'http://127.0.0.1:8080 answers: '
curl -fsS --max-time 5 http://127.0.0.1:8080/
cat <<TEXT

Try next (the log is .reeve/up.log):
  export REEVE_DATA_DIR=$state/up
  export PATH=$(dirname "$bin"):\$PATH
  reeve status --watch                           the whole cluster, live
  reeve describe service hello                   why it is as it is
  reeve logs hello                               what it says; exec, top, cp go there, too
  reeve explain service.spec.container           every option there is
  reeve plan -f manifests/examples/hello.yaml    after you edited it; then apply
  make down                                      take all of this away
TEXT
