# The one place for commands; CI calls the same. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config/quickstart.yaml
SERVE_ARGS := $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))
SDKS := $(VENV)/sdks

.DEFAULT_GOAL := help

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.PHONY: run
run: $(VENV)/.runtime  ## install into .venv and serve config/quickstart.yaml (HOST, PORT, CONFIG)
	@exec $(BIN)/manallm-proxy serve --config $(CONFIG) $(SERVE_ARGS)

.PHONY: test
test: $(VENV)/.dev $(SDKS)/.installed  ## install what the tests need and run all of them
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --durations=8 $(ARGS)

.PHONY: faults
faults: $(VENV)/.dev  ## all faults, load, soak, restarts, with their figures: some ten minutes (SOAK=seconds, STREAMS, ARGS)
	$(BIN)/python -m pytest -n 2 --timeout 120 -m 'not heavy' tests/faults $(ARGS)
	$(BIN)/python -m pytest -s -m heavy tests/faults $(ARGS)

.PHONY: check
check: $(VENV)/.dev  ## formatter, linter, strict types, the shipped configurations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/manallm-proxy check --config config/proxy.yaml
	$(BIN)/manallm-proxy check --config config/quickstart.yaml

.PHONY: numbers
numbers: $(VENV)/.dev  ## print start time and memory of the real process
	$(BIN)/python -m bench.numbers

.PHONY: fmt
fmt: $(VENV)/.dev  ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: clean
clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

include systemd/install.mk

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "manallm-proxy needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml setup.cfg
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml setup.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	@touch $@ $(VENV)/.runtime

# OpenAI's SDKs, two majors of each language, beside the environment: two versions do not fit into one
$(SDKS)/.installed: $(VENV)/bin/python Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(SDKS)/openai-1 'openai==1.*'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(SDKS)/openai-newest openai
	@if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(SDKS) openai@7 openai-6@npm:openai@6; \
		else echo "no npm here: the tests of OpenAI's Node SDK will be skipped"; fi
	@touch $@
