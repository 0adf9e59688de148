#!/usr/bin/env bash
# Run every test with coverage, in two processes at once: tests on a real Ray mostly wait, the others compute.
#
#   scripts/test.sh        what `make test` runs; fails when a test does, or too little is covered
#
# What needs no Ray runs at a low priority, so that no deadline of a real cluster is missed for it; what it prints
# comes when the rest has ended.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
data=.cache/coverage
output=.cache/tests-beside-ray.log
stores=tests/integration/stores

run() { # a name, how nice, then arguments for pytest
  # Each process gathers what its own children have covered when it ends, so their files have names of their own.
  COVERAGE_FILE=$data/data.$1 nice -n "$2" "$python" -m pytest -m "not bench" \
    --cov --cov-report= --cov-fail-under=0 -o cache_dir=".cache/pytest-$1" "${@:3}"
}

beside_ray() {
  local status=0
  run pure 19 tests/unit tests/simulation || status=1
  run stores 5 "$stores" || status=1  # their servers have deadlines too
  return "$status"
}

rm -rf -- "$data"
mkdir -p -- "$data"
set -m  # a process group of its own, to end it as a whole
beside_ray >"$output" 2>&1 &
other=$!
set +m
trap 'kill -- "-$other" 2>/dev/null' EXIT

status=0
run ray 0 tests/integration tests/e2e tests/chaos --ignore="$stores" || status=1
wait "$other" || status=1
trap - EXIT
cat -- "$output"

{ "$python" -m coverage combine -q && "$python" -m coverage report; } || status=1
exit "$status"
