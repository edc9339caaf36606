#!/usr/bin/env bash
# Makes the images of the application example from Debian's packages, in the engine at DOCKER_HOST.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
image=$here/../../../scripts/debian-image.sh
"$image" reeve/cache:1 redis-server redis-tools
"$image" reeve/database:1 postgresql-15 postgresql-client-15
"$image" reeve/web:1 lighttpd redis-tools postgresql-client-15 -- "$here/visits.cgi:/srv/visits.cgi" "$here/lighttpd.conf:/etc/lighttpd/visits.conf"
