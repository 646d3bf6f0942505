# `make help` lists what people do here. Needs Python 3.11 (`make PYTHON=…` names another) and make; everything else comes by itself.
PYTHON ?= python3.11
BIN := .venv/bin
# As pip is set up, behind a company's mirror too.
UV := $(BIN)/python .ci/uv.py
FAKE_GCS := v1.56.1
STATSD_EXPORTER := v0.31.0
COMPILE := $(UV) pip compile --quiet --python-version 3.11 --group dev --generate-hashes --no-emit-index-url --no-emit-find-links --no-header

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-matrix test-compose soak trials late apples soak-deferral fake-gcs statsd-exporter contract bench latency check lock docs dist clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: .venv/ready ## make the environment in .venv

.venv/uv: .ci/uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "make needs $(PYTHON); name another with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .ci/uv.lock
	@touch $@

.venv/ready: .venv/uv .ci/requirements.lock pyproject.toml
	@echo "Setting up .venv (a minute or two the first time) …"
	@$(UV) pip sync --quiet --python $(BIN)/python .ci/requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# Airflow 2.11 and the lower bounds of everything else.
.venv/lowest/ready: .venv/ready .ci/lowest.lock
	@$(UV) venv --quiet --clear --python $(BIN)/python .venv/lowest
	@$(UV) pip sync --quiet --python .venv/lowest/bin/python .ci/lowest.lock
	@$(UV) pip install --quiet --python .venv/lowest/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# Airflow without this project, for the wheel.
.venv/clean/ready: .venv/ready
	@$(UV) venv --quiet --clear --python $(BIN)/python .venv/clean
	@$(UV) pip sync --quiet --python .venv/clean/bin/python .ci/requirements.lock
	@touch $@

demo: setup ## a moving system on this machine: stand-ins and a real Airflow (ONCE=1: ends by itself)
	@trap : INT; $(BIN)/python -m demo $(if $(ONCE),--once) || [ $$? = 130 ]

test: setup .venv/lowest/ready .venv/clean/ready ## all checks and tests, with line coverage (about half an hour)
	@.ci/test

test-matrix: setup ## Airflow's side on each version of Airflow that is served, into docs/versions.md (VERSION=3.1.8: only that)
	$(BIN)/python tests/tools/matrix.py run $(VERSION) --write

test-compose: setup ## docker-compose.yaml, run by Docker (PROFILE=default|celery|fake_gcs: only that)
	$(BIN)/pytest -p no:cacheprovider $(if $(PROFILE),tests/compose/test_$(PROFILE).py,tests/compose)

soak: setup ## the fault tests for an hour: thousands of kills, many more failing calls (KILLS=…, ROUNDS=…)
	BQDISPATCH_KILLS=$(or $(KILLS),5000) BQDISPATCH_ROUNDS=$(or $(ROUNDS),500) HYPOTHESIS_PROFILE=soak BQDISPATCH_MODEL=all \
	  BQDISPATCH_APPLES=all BQDISPATCH_SEEDS=all $(BIN)/pytest tests/faults tests/unit tests/model tests/apples \
	  tests/dispatch/test_remaining.py
	BQDISPATCH_TABLES=10 $(BIN)/pytest tests/live/test_live_postgres.py tests/live/test_live_pools.py
	$(BIN)/python tests/tools/late.py --kills

apples: setup ## carry out each cell of one bad apple and write the table into docs/reliability.md (an hour)
	BQDISPATCH_APPLES=all $(BIN)/pytest -n 8 --quiet tests/apples --apples docs/reliability.md

soak-deferral: setup ## deferred sensors in a live triggerer for ten minutes (VERSION=3.1.8, MINUTES=…)
	$(BIN)/python tests/tools/matrix.py soak $(or $(VERSION),3.1.8) --minutes $(or $(MINUTES),10)

trials: setup ## run the fault tests and write what came of them into docs/reliability.md
	$(BIN)/pytest tests/faults tests/airflow/test_timeouts.py tests/live/test_live_faults.py --trials docs/reliability.md

late: setup ## carry out each case of a late storage event and write the table into docs/reliability.md (a minute)
	$(BIN)/python tests/tools/late.py --write docs/reliability.md

# Other people's programs for the tests: a Cloud Storage, and what makes StatsD's metrics Prometheus'. Each is built once
# for each version, where Go is.
.work/bin/fake-gcs-server-$(FAKE_GCS): MODULE := github.com/fsouza/fake-gcs-server@$(FAKE_GCS)
.work/bin/statsd_exporter-$(STATSD_EXPORTER): MODULE := github.com/prometheus/statsd_exporter@$(STATSD_EXPORTER)
.work/bin/fake-gcs-server-$(FAKE_GCS) .work/bin/statsd_exporter-$(STATSD_EXPORTER):
	@mkdir -p $(@D)
	@if ! command -v go >/dev/null; then echo "No Go here to build $(MODULE): its tests are skipped."; \
	elif GOBIN=$(CURDIR)/$(@D) go install $(MODULE); then touch $@; \
	else echo "Go cannot build $(MODULE) here: its tests are skipped."; fi

fake-gcs: .work/bin/fake-gcs-server-$(FAKE_GCS)

statsd-exporter: .work/bin/statsd_exporter-$(STATSD_EXPORTER)

contract: setup fake-gcs ## the stores against every back end that can be had (Go builds fake-gcs-server)
	$(BIN)/pytest tests/contract -rxXs

bench: setup ## measure every line of benchmarks/README.md beside two peers, and write it (a quarter of an hour)
	$(BIN)/python benchmarks/bench.py --write

latency: setup ## measure how soon events are dispatched, for each way to run, and write docs/latency.md (forty minutes)
	$(BIN)/python benchmarks/latency.py --write

check: setup ## lint, types, what bandit finds, and that each package is locked by its hash
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --severity-level medium --confidence-level medium bqdispatch_provider
	$(BIN)/python .ci/locks.py

lock: setup ## resolve the newest releases, the lower bounds, and each Airflow between, into .ci/*.lock
	$(COMPILE) --universal --group newest --upgrade --output-file .ci/requirements.lock pyproject.toml
	$(COMPILE) --override .ci/lowest.txt --upgrade --output-file .ci/lowest.lock pyproject.toml
	$(BIN)/python tests/tools/matrix.py lock
	echo uv | $(UV) pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --upgrade --output-file .ci/uv.lock -

docs: setup ## the documentation site in .work/site, without a warning
	@$(BIN)/python docs/site.py .work/site-pages
	@AIRFLOW_HOME=$(CURDIR)/.work/site-airflow AIRFLOW__LOGGING__LOGGING_LEVEL=ERROR $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going .work/site-pages .work/site
	@echo "Open .work/site/index.html"

dist: .venv/uv ## wheel and sdist in dist/, in place of earlier ones
	@rm -f $(or $(DIST),dist)/airflow_provider_bqdispatch-*
	$(UV) build --quiet --build-constraint .ci/requirements.lock --require-hashes --python $(BIN)/python --out-dir $(or $(DIST),dist)

clean: ## remove what make made
	rm -rf .venv .work dist
