#!/usr/bin/env bash
# Make .venv hold exactly requirements/lock.txt and this checkout, editable.
#
#   scripts/setup.sh          what `make setup` runs; returns at once when nothing changed
#   FLOCK_PYTHON=/path/to/python3.11 scripts/setup.sh   with that interpreter
#
# An interrupted run is safe to repeat: the stamp is written last.
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE PYTHONHOME VIRTUAL_ENV
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv
python=$venv/bin/python
lock=requirements/lock.txt

say() { echo "setup: $*" >&2; }

fingerprint() {
  { pwd -P; cat -- "$lock" requirements/uv.txt pyproject.toml scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}

find_python() {
  local candidate
  for candidate in "${FLOCK_PYTHON:-}" python3.11 /usr/bin/python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

apt_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "installing $* with apt-get"
  { apt-get -o DPkg::Lock::Timeout=300 update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@"; } >/dev/null
}

make_venv() {
  local base
  base=$(find_python) || { apt_install python3.11 python3.11-venv && base=$(find_python); } ||
    { say "no Python 3.11 found: install it, or set FLOCK_PYTHON"; exit 1; }
  rm -rf -- "$venv"
  say "creating $venv with $base"
  if ! "$base" -c 'import ensurepip, venv' 2>/dev/null && ! apt_install python3.11-venv; then
    # No ensurepip and not root: build the environment with virtualenv instead.
    "$base" -m pip install -q --target .cache/bootstrap virtualenv ||
      { say "no venv module: install python3.11-venv"; exit 1; }
    PYTHONPATH=.cache/bootstrap "$base" -m virtualenv -q -- "$venv"
    return
  fi
  "$base" -m venv -- "$venv"
}

install() {
  # uv reads no pip configuration: hand it the index and the certificates that pip uses.
  local index
  index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"; fi
  if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"; fi
  export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"

  "$python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
  if ! "$python" -m uv pip sync -q --python "$python" --require-hashes "$lock"; then
    say "uv could not install the lock; trying pip"
    "$python" -m pip install -q --disable-pip-version-check --require-hashes -r "$lock"
  fi
  "$python" -m uv pip install -q --python "$python" --offline --no-deps --no-build-isolation --editable .
  # hatchling copies force-included folders into an editable install too; the checkout is
  # what is imported, so a copy that goes stale only misleads.
  rm -rf -- "$venv"/lib/python3.11/site-packages/flock_ray
  "$python" -c 'import flock_ray.actors, flock_ray.serve, ray'
}

stamp=$venv/.flock-stamp
want=$(fingerprint)
if [ -x "$python" ] && [ "$(cat -- "$stamp" 2>/dev/null)" = "$want" ]; then
  exit 0
fi
rm -f -- "$stamp"
# A venv that was moved, or whose interpreter has gone, cannot be repaired: start again.
if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
   ! grep -qxF "$(pwd -P)" "$venv/.flock-home" 2>/dev/null; then
  make_venv
  pwd -P > "$venv/.flock-home"
fi
export PYTHONPYCACHEPREFIX="$PWD/.cache/pycache"
say "installing $lock"
install
echo "$want" > "$stamp.new"
mv -- "$stamp.new" "$stamp"
say "done"
