#!/usr/bin/env bash
# Makes the image `reeve/hello:1` in the engine at DOCKER_HOST from this machine's busybox: a shell and a web server, and the C
# library's `getent`, which finds names as programs do; three megabytes. No registry is asked. TAG may be given to make it under
# another name.
set -euo pipefail
tag=${1:-reeve/hello:1}
docker image inspect "$tag" >/dev/null 2>&1 && exit 0
busybox=$(command -v busybox)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,tmp,etc,www,proc,sys,dev,root}
cp -L "$busybox" "$tree/bin/busybox"
for applet in $("$busybox" --list); do
  [ "$applet" = busybox ] || ln -sf busybox "$tree/bin/$applet"
done
getent=$(command -v getent)
cp -L "$getent" "$tree/bin/getent"
for library in $(ldd "$getent" | grep -o '/[^ ]*'); do
  mkdir -p "$tree$(dirname "$library")"
  cp -L "$library" "$tree$library"
done
echo 'root:x:0:0:root:/root:/bin/sh' > "$tree/etc/passwd"
echo 'root:x:0:' > "$tree/etc/group"
echo 'Hello from Reeve.' > "$tree/www/index.html"
tar -C "$tree" -c . | docker import - "$tag" >/dev/null
