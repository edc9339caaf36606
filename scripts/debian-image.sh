#!/usr/bin/env bash
# Makes an image from Debian packages in the engine at DOCKER_HOST, without a registry of images and without installing
# anything here: TAG PACKAGE... [-- FILE:PATH ...] puts the packages and what they need, busybox's commands, and local
# FILEs at PATH into one layer. Packages' own set-up scripts are not run.
set -euo pipefail
tag=${1:?a tag}
shift
packages=() files=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do packages+=("$1"); shift; done
[ $# -eq 0 ] || shift
files=("$@")
docker image inspect "$tag" >/dev/null 2>&1 && exit 0
cache=${REEVE_PACKAGE_CACHE:-${TMPDIR:-/tmp}/reeve-packages}
mkdir -p "$cache"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
# What their dependencies name for installing and administration, and no program in the image needs.
without='^(adduser|apt|cdebconf.*|debconf|dpkg|gcc-.*-base|init-system-helpers|install-info|libaudit-common|libc-bin|libc-l10n|libdebian-installer4|libfile-find-rule-perl|libgdbm.*|libjson-perl|libllvm.*|libnewt.*|libnumber-compare-perl|libpam-modules.*|libperl.*|libslang2|libtext.*|libz3.*|locales.*|lsb-base|netbase|passwd|perl.*|postgresql(-client)?-common|python3.*|sensible-utils|spawn-fcgi|ssl-cert|sysvinit-utils|tar|ucf|usr-is-merged|usrmerge|tzdata|readline-common|mime-support|media-types)$'
names=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "${packages[@]}" \
  | grep -E '^[a-z0-9]' | sort -u | grep -vE "$without")
mkdir -p "$tree"/{usr/bin,usr/sbin,usr/lib,usr/lib64,tmp,etc,proc,sys,dev,root,run,var}
for link in bin sbin lib lib64; do ln -s "usr/$link" "$tree/$link"; done
chmod 1777 "$tree/tmp"
for name in $names; do
  found=$(compgen -G "$cache/${name}_*.deb" | head -1 || true)
  if [ -z "$found" ]; then
    (cd "$cache" && apt-get download -qq "$name" 2>/dev/null) || { echo "image: package $name cannot be fetched; run apt-get update" >&2; exit 1; }
    found=$(compgen -G "$cache/${name}_*.deb" | head -1)
  fi
  dpkg-deb --fsys-tarfile "$found" | tar -x -C "$tree" --keep-directory-symlink --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' -f -
done
cp -L "$(command -v busybox)" "$tree/usr/bin/busybox"
for applet in $("$tree/usr/bin/busybox" --list); do
  [ -e "$tree/usr/bin/$applet" ] || [ -e "$tree/usr/sbin/$applet" ] || ln -s busybox "$tree/usr/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nredis:x:71:71::/var/lib/redis:/bin/sh\n' > "$tree/etc/passwd"
printf 'root:x:0:\npostgres:x:70:\nwww-data:x:33:\nredis:x:71:\n' > "$tree/etc/group"
for file in "${files[@]}"; do
  mkdir -p "$tree/$(dirname "${file#*:}")"
  cp "${file%%:*}" "$tree/${file#*:}"
done
ldconfig -r "$tree" 2>/dev/null || true
tar -C "$tree" -c . | docker import --change 'ENV PATH=/usr/sbin:/usr/bin:/usr/lib/postgresql/15/bin' - "$tag" >/dev/null
