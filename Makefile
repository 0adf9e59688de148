# Every path here is relative, so a checkout whose path holds spaces works.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup services models demo test test-unit check lint types layers format bench lock build clean

PY := .venv/bin/python

# Without compiled modules each Ray process starts about three times slower; the cache
# stays inside the checkout.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONHOME
unexport VIRTUAL_ENV
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
export RAY_USAGE_STATS_ENABLED := 0
export RAY_DISABLE_IMPORT_WARNING := 1
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## Create or refresh .venv from the hash-locked requirements
	@scripts/setup.sh

demo: setup ## Run the review flock on local Ray (INPUT=path reviews your own file)
	@$(PY) -m examples.review $(if $(INPUT),--input "$(INPUT)")

services: ## Install PostgreSQL and Redis for the tests, where that is possible
	@scripts/services.sh

models: setup ## Get the embedding model that tests run for real, about 90 MB, where that is possible
	@scripts/models.sh

test: setup services models ## Run every test with coverage; ARGS="tests/e2e -k name" runs a part without it
	@$(if $(ARGS),$(PY) -m pytest -m "not bench" $(ARGS),scripts/test.sh)

test-unit: setup ## Run the tests that need neither Ray nor a network, on every core (ARGS are passed on)
	@$(PY) -m pytest tests/unit -m "not bench" -n logical --dist worksteal $(ARGS)

simulate: setup ## Run a whole board under faults, in one process and virtual time, on SEEDS=1000 seeds
	@FLOCK_SIM_SEEDS=$(or $(SEEDS),1000) $(PY) -m pytest tests/simulation/test_simulation.py -q $(ARGS)

check: lint types layers ## Formatting, lint, types, import layers (make -k check goes on after a failure)

lint: setup ## ruff: formatting and lint
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

types: setup ## mypy and pyright
	@$(PY) -m mypy
	@$(PY) -m pyright

layers: setup ## The import rules between the layers
	@$(PY) .venv/bin/lint-imports --cache-dir .cache/import_linter

format: setup ## Format, and fix what ruff can fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

bench: setup ## Measure throughput and latency on local Ray (ARGS are passed on)
	@$(PY) -m bench $(ARGS)

LOCK := $(PY) -m uv pip compile --quiet --python-version 3.11 \
	--python-platform x86_64-unknown-linux-gnu --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links

lock: setup ## Resolve the requirements again (UPGRADE=1 takes newer versions)
	@$(LOCK) $(if $(UPGRADE),--upgrade) --extra dev pyproject.toml -o requirements/lock.txt >/dev/null
	@echo uv | $(LOCK) -c requirements/lock.txt - -o requirements/uv.txt >/dev/null

build: setup ## Build the wheel and the sdist into dist/
	@$(PY) -m hatchling build

clean: ## Remove caches and build output; keep .venv
	rm -rf .cache dist build htmlcov
