#!/usr/bin/env bash
# A Docker engine for a try or a test: uses the one that answers, else starts one of its own in DIR and stops only that.
#   scripts/engine.sh start DIR    prints the DOCKER_HOST to use
#   scripts/engine.sh stop DIR     stops the engine it started in DIR, if any, and removes its data
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
act=${1:?start or stop}
dir=${2:?a directory}
case $act in
start)
  if docker version >/dev/null 2>&1; then
    echo "${DOCKER_HOST:-unix:///var/run/docker.sock}"
    exit 0
  fi
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  host="unix://$dir/docker.sock"
  if DOCKER_HOST=$host docker version >/dev/null 2>&1; then
    echo "$host"
    exit 0
  fi
  [ "$(id -u)" = 0 ] || { echo "engine: no Docker engine answers, and starting one needs root: start Docker, or set DOCKER_HOST" >&2; exit 1; }
  rm -f "$dir/pid"
  setsid dockerd --data-root "$dir/data" --exec-root "$dir/exec" -H "$host" --pidfile "$dir/pid" >"$dir/log" 2>&1 </dev/null &
  for _ in $(seq 1 150); do
    if DOCKER_HOST=$host docker version >/dev/null 2>&1; then
      echo "$host"
      exit 0
    fi
    sleep 0.2
  done
  tail -5 "$dir/log" >&2
  echo "engine: dockerd did not answer within 30 s; its log is $dir/log" >&2
  exit 1
  ;;
stop)
  [ -d "$dir" ] || exit 0
  dir=$(cd "$dir" && pwd)
  pid=$(cat "$dir/pid" 2>/dev/null || true)
  export DOCKER_HOST="unix://$dir/docker.sock"
  if docker version >/dev/null 2>&1; then
    docker ps -aq | xargs -r docker rm -f >/dev/null
    docker network prune -f >/dev/null
  fi
  if [ -n "$pid" ] && grep -q "$dir" "/proc/$pid/cmdline" 2>/dev/null && kill "$pid"; then
    for _ in $(seq 1 150); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
    kill -9 "$pid" 2>/dev/null || true
  fi
  { grep -F " $dir/" /proc/mounts || true; } | cut -d' ' -f2 | sort -r | while read -r mount; do umount -l "$mount" || true; done
  rm -rf "$dir"
  ;;
*) echo "engine: start or stop" >&2; exit 2 ;;
esac
