#!/usr/bin/env bash
# Installs what a machine lacks to build, run or test Reeve: Debian packages, by name, as root. Asks nothing, repeats
# nothing: a second run finds all in place and ends at once.
#   scripts/setup.sh build      what `cargo build` needs
#   scripts/setup.sh run        and what `make up` needs: a Docker engine, busybox for the hello image, curl
#   scripts/setup.sh test       and what `make test` needs: etcd, a registry, Prometheus, network tools
set -euo pipefail
need=()
want() { # COMMAND-OR-FILE PACKAGE
  case $1 in
    /*) [ -e "$1" ] || need+=("$2") ;;
    *) command -v "$1" >/dev/null 2>&1 || need+=("$2") ;;
  esac
}
PATH=$PATH:/usr/sbin:/sbin
level=${1:-build}
want cc gcc
want protoc protobuf-compiler
want /usr/include/google/protobuf/timestamp.proto libprotobuf-dev
if [ "$level" != build ]; then
  # An engine that answers needs no package of ours.
  docker version >/dev/null 2>&1 || want dockerd docker.io
  want docker docker.io
  [ -x /bin/busybox ] || [ -x /usr/bin/busybox ] || need+=(busybox-static)
  want curl curl
  want iptables iptables
  want ip iproute2
fi
if [ "$level" = test ]; then
  want dockerd docker.io
  want etcd etcd-server
  want etcdctl etcd-client
  want docker-registry docker-registry
  want htpasswd apache2-utils
  want promtool prometheus
  want nft nftables
  want nsenter util-linux
  want ping iputils-ping
  want dig bind9-dnsutils
  want musl-gcc musl-tools
  want /usr/lib/python3/dist-packages/dns python3-dnspython
  want /usr/lib/python3/dist-packages/jsonschema python3-jsonschema
fi
if [ ${#need[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: missing: ${need[*]}. Run as root, or install them: apt-get install ${need[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${need[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # Services that come with the packages (etcd, prometheus, a registry) must not start by themselves.
  policy=/usr/sbin/policy-rc.d
  made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod +x $policy
    made=1
  fi
  trap '[ -z "$made" ] || rm -f $policy' EXIT
  log=$(mktemp)
  if ! { apt-get update && apt-get install -y --no-install-recommends "${need[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "setup: installing ${need[*]} failed; the whole output is in $log" >&2
    exit 1
  fi
  rm -f "$log"
fi
command -v cargo >/dev/null 2>&1 || { echo "setup: cargo is missing: install Rust 1.90 or newer (https://rustup.rs)" >&2; exit 1; }
