# The one place for commands; CI calls the same. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config/quickstart.yaml
SERVE_ARGS := $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))
SDKS := $(VENV)/sdks
SECONDS ?= 60

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

.PHONY: bounds
bounds: $(VENV)/.tools  ## the tests with the lowest versions that pyproject.toml allows, in an environment of their own
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/bounds
	$(BIN)/uv pip install --quiet --python $(VENV)/bounds/bin/python --resolution lowest-direct --editable '.[test]'
	$(VENV)/bounds/bin/python -m pytest -n 2 $(ARGS)

.PHONY: constraints
constraints: $(VENV)/.tools  ## write the newest versions into constraints.txt; then `make clean check test`
	@sed -n 1p constraints.txt >$(VENV)/constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --extra dev --upgrade \
		--no-header --no-annotate pyproject.toml >>$(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

.PHONY: audit
audit: $(VENV)/.tools  ## look constraints.txt up among known holes; fails where that cannot be done
	$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip --requirement constraints.txt

.PHONY: fuzz
fuzz: $(VENV)/.tools  ## look for inputs that break a promise: SECONDS each (60), then requests made from openapi.yaml
	$(BIN)/python -m tests.fuzz $(SECONDS)
	$(BIN)/python -m tests.fuzz.surface $(SECONDS)

.PHONY: numbers
numbers: $(VENV)/.dev  ## print start time and memory of the real process
	$(BIN)/python -m bench.numbers

.PHONY: bench
bench: $(VENV)/.runtime  ## measure it beside nginx, LiteLLM, Portkey, sglang-router (QUICK=1: two minutes, nginx; KEEP=1)
	@$(BIN)/python -m bench

.PHONY: pieces
pieces: $(VENV)/.pyperf  ## time and instructions of the pure pieces, beside the last kept ones (KEEP=1 keeps them)
	@$(BIN)/python -m bench.compare

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

$(VENV)/.pyperf: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pyperf
	@touch $@

$(VENV)/.tools: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit uv --editable '.[fuzz]'
	@touch $@

# OpenAI's SDKs, two majors of each language, and Ollama's clients, beside the environment: two versions do not fit
# into one
$(SDKS)/.installed: $(VENV)/bin/python Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(SDKS)/openai-1 'openai==1.*'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(SDKS)/openai-newest openai
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(SDKS)/ollama 'ollama==0.6.3'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(SDKS)/langchain-ollama \
		'langchain-ollama==1.1.0' 'langchain-core==1.8.3' 'ollama==0.6.3'
	@if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(SDKS) openai@7 openai-6@npm:openai@6; \
		else echo "no npm here: the tests of OpenAI's Node SDK will be skipped"; fi
	@touch $@
