#!/usr/bin/env bash
# Install the servers that tests of stores start: PostgreSQL and Redis. Needs root and apt-get.
#
#   scripts/services.sh    quiet when both are there; safe to repeat
#
# Where it can't, it says so in one line and succeeds: the tests then skip, or fail when CI is set.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
command -v redis-server >/dev/null || missing+=(redis-server)
[ "${#missing[@]}" -gt 0 ] || exit 0

give_up() { echo "services: $1: install ${missing[*]} yourself, or tests of these stores are skipped" >&2; exit 0; }

[ "$(id -u)" = 0 ] || give_up "not root"
command -v apt-get >/dev/null || give_up "no apt-get"
# Two runs at once wait for each other. Debian would start a server of its own, which nobody here needs.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -o DPkg::Lock::Timeout=300 -qq)
{ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
  give_up "apt-get failed"
