# `make serve` and `make test` are all you need to know; each sets up what it needs.

PYTHON ?= python3
BIN := .venv/bin
SCRIPTS := .ci/audit .ci/generate .ci/house .ci/setup .ci/serve .ci/test

.PHONY: serve test test-all coverage coverage-all lint generate check-drift audit models pins clean serving dev clients tools

serve: models ## serve the demo models on 127.0.0.1:8001, metrics on 127.0.0.1:8002
	@exec $(BIN)/python .ci/serve

test: dev models clients tools ## test all that a change can break; make test ARGS="tests/rpc -x" runs a part
	$(BIN)/python .ci/test $(ARGS)

test-all: dev models clients tools ## the slow tests too: soaks, fuzzers, browsers, systemd, Prometheus
	$(BIN)/python .ci/test --all $(ARGS)

coverage: dev models clients tools ## make test, and which lines of inferd it runs
	$(BIN)/python .ci/test --coverage $(ARGS)

coverage-all: dev models clients tools ## make test-all, and which lines of inferd it runs
	$(BIN)/python .ci/test --all --coverage $(ARGS)

lint: dev ## style and types
	$(BIN)/ruff check .
	@# Scripts print, run fixed commands, and tell an old Python that it is too old.
	$(BIN)/ruff check --extend-ignore T20,S603,S607,UP036 $(SCRIPTS)
	$(BIN)/ruff format --check . $(SCRIPTS)
	$(BIN)/mypy
	@# Structure and words, against their bars.
	$(BIN)/python .ci/house --check

generate: dev ## write the generated files again
	$(BIN)/python .ci/generate

check-drift: dev ## fail when a generated file is not what .ci/generate makes
	$(BIN)/python .ci/generate --check

audit: ## look for known vulnerabilities of all pinned packages, where a source of advisories can be reached
	@$(PYTHON) .ci/audit

models: serving ## get the demo models
	@$(BIN)/inferd demo fetch --to models

pins: ## resolve all dependencies again
	$(PYTHON) .ci/setup pins

clean: ## remove all that was made here
	rm -rf --one-file-system .venv .setup models build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

serving:
	@$(PYTHON) .ci/setup serve

dev clients tools:
	@$(PYTHON) .ci/setup $@
