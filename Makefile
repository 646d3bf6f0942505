# `make help` lists what people do here. Needs Python 3.11 or later and make; everything else comes by itself.
PYTHON ?= python3.11
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lock dist clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/ready ## make the environment in .venv

.venv/ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make needs $(PYTHON); name another with make PYTHON=…" >&2; exit 1; }
	@echo "Setting up .venv (a few minutes the first time) …"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup ## a moving system on this machine: stand-ins and a real Airflow (ONCE=1: ends by itself)
	@exec $(BIN)/python -m bqdispatch_provider.testing.demo $(if $(ONCE),--once)

test: setup ## all checks and tests, with line coverage
	@.ci/test

check: setup ## lint and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: ## resolve the newest releases into requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --no-emit-index-url \
	  --no-emit-find-links --no-header --upgrade --output-file requirements.lock pyproject.toml

dist: setup ## wheel and sdist in dist/
	$(BIN)/uv build --quiet --out-dir dist

clean: ## remove what make made
	rm -rf .venv .work dist
