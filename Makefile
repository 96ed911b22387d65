# Two commands need nothing but Python 3.10 or newer and make: `make demo` and `make test`.
# Nothing here runs `python -m …` in this folder: transformers would take our `kernels` for Hugging Face's (see README).

PYTHON ?= python3
VENV ?= .venv
# More for pytest, such as ARGS="-k layout -x".
ARGS ?=
# What `buf breaking` compares the contract with: a commit, unless given the main branch.
AGAINST ?=
UV_VERSION := 0.13.9

BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-lowest test-newest test-kserve test-clients lint format proto families bench soak pictures lock dist clean

help: ## Show this list
	@echo "Sidelight: streams, token by token, where a sequence model looks while it writes."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter, ARGS=\"-k name\" goes to pytest."

demo: $(VENV)/.server ## Translate a few sentences and show where the model looks
	@$(BIN)/sidelight demo

test: $(VENV)/.test ## Run the tests, but for those marked slow (ARGS="-m slow" runs these alone)
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.test ## Run all tests
	@$(PYTEST) $(ARGS)

# What Debian has; npm's packages come with the build. Without apt-get, with whatever is there.
CLIENT_TOOLS := cmake g++ protobuf-compiler protobuf-compiler-grpc libgrpc++-dev nlohmann-json3-dev golang-go \
  golang-google-grpc-dev protoc-gen-go-grpc default-jdk-headless libgrpc-java libnetty-java libnetty-tcnative-java \
  libgoogle-gson-java libguava-java libperfmark-java libprotobuf-java protobuf-compiler-grpc-java-plugin ruby \
  ruby-grpc ruby-grpc-tools $(if $(shell command -v npm),,nodejs npm)
test-clients: $(VENV)/.test ## Install the toolchains of other languages, build client/examples and test them
	@for tool in $(CLIENT_TOOLS); do dpkg -s $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
	test -z "$$missing" || { echo "Installing$$missing"; DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install --yes --no-install-recommends $$missing >/dev/null; } || echo "Not all of it can be had"
	@TEST_EXAMPLES=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -v tests/client/examples tests/vectors $(ARGS)

# Bytecode is kept, whatever the environment says: tests start many processes.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n 2 --dist worksteal

# What users may have: the oldest and the newest versions of what Sidelight stands on, each in an environment of its own.
test-lowest: $(VENV)-lowest/.test ## Run the tests of kernels, capture and parity with the oldest versions allowed
	@$(RUN_VERSIONS)

test-newest: $(VENV)-newest/.test ## ... with the newest versions that pip finds
	@$(RUN_VERSIONS)

RUN_VERSIONS = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(<D)/bin/pytest -n 2 --dist worksteal $(VERSION_TESTS) $(ARGS)
VERSION_TESTS ?= tests/kernels tests/parity tests/gpu tests/server/capture tests/server/runner tests/server/models

# KServe's client asks for protobuf 6, and Sidelight for protobuf 7.
test-kserve: $(VENV)/.test $(VENV)-clients/.kserve ## Run the tests with KServe's client, in an environment of its own
	@SIDELIGHT_CLIENTS_PYTHON="$(abspath $(VENV)-clients/bin/python)" $(PYTEST) tests/server/api/inference_protocol $(ARGS)

lint: $(VENV)/.lint ## Check style, types and the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/packaging/sizes.py
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/buf lint proto
	$(BIN)/buf format proto --diff --exit-code
	@against="$(AGAINST)"; for ref in origin/main main; do \
	  test -n "$$against" || against=$$(git rev-parse --verify --quiet "$$ref" 2>/dev/null); done; \
	if test -z "$$against"; then echo "buf breaking: skipped, as this clone has no branch main to compare with"; exit; fi; \
	old=$$(mktemp -d) && trap 'rm -rf "$$old"' EXIT && git archive "$$against" proto | tar -x -C "$$old" && \
	echo "$(BIN)/buf breaking proto --against $$(git rev-parse --short "$$against")" && \
	$(BIN)/buf breaking proto --against "$$old/proto"

format: $(VENV)/.lint ## Rewrite the code and the contract in the house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format proto --write

proto: $(VENV)/.test ## Generate Python, type stubs and proto/README.md from the contract
	@rm -f proto/sidelight/*/*_pb2*.py proto/sidelight/*/*_pb2*.pyi
	@$(BIN)/python proto/generate.py

families: $(VENV)/.test ## Write the table of tested families, server/models/FAMILIES.md
	@$(BIN)/python tests/families.py

bench: $(VENV)/.bench ## Measure: against Inseq, and what else tests/bench holds
	@for script in tests/bench/bench_*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

# Each script takes its number of messages, frames, calls or minutes: python tests/faults/soak_messages.py --help.
soak: $(VENV)/.bench $(VENV)/.test ## A million mutants, ten thousand calls that end early, 20 minutes of load: two hours
	@for script in tests/faults/soak_*.py tests/bench/bench_soak.py tests/bench/bench_clients.py; do \
	  echo "$$script"; $(BIN)/python "$$script" || exit 1; done

pictures: $(VENV)/.test ## Make the README's pictures with Sidelight's own commands
	@$(BIN)/python tests/pictures.py

# Universal: one file for every Python and platform, by markers. What torch's CUDA build brings along is left to torch,
# which pins it itself. Pins stay as they are unless pyproject.toml asks for others: ARGS=--upgrade takes the newest, but
# of torch and triton, whose versions here are those that are known to work together.
LOWEST := tests/packaging/lowest.lock
COMPILE = UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal \
  --python-version 3.10 --no-annotate --system-certs --custom-compile-command "make lock"
lock: $(VENV)/.python ## Resolve requirements.lock anew (ARGS=--upgrade for the newest), and the lowest versions
	@$(BIN)/pip install -qq uv==$(UV_VERSION)
	@printf 'torch==2.13.0\ntriton==3.7.1\n' | $(COMPILE) --constraint - --output-file requirements.lock $(ARGS)
	@$(COMPILE) --resolution lowest-direct --output-file $(LOWEST) --upgrade
	@sed -i.old -E '/^(nvidia|cuda)-/d' requirements.lock $(LOWEST) && rm requirements.lock.old $(LOWEST).old

dist: $(VENV)/.test ## Build the archive of sources and the wheel into dist/, and check them
	@rm -rf dist && $(BIN)/pyproject-build --no-isolation --outdir dist . >/dev/null
	@$(BIN)/twine check --strict dist/*

clean: ## Remove the environment and everything built
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-clients build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up: one stamp for each extra, renewed when what it was made from changes.

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "Sidelight needs Python 3.10 or newer, and there is no $(PYTHON) here." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Sidelight needs Python 3.10 or newer, and" \
	  "$(PYTHON) is $$($(PYTHON) --version 2>&1). Another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.server: pyproject.toml requirements.lock | $(VENV)/.python
	$(call install,server,1 to 3 minutes$(comma) more where torch comes with CUDA)

$(VENV)/.test: pyproject.toml requirements.lock | $(VENV)/.python
	$(call install,test,2 to 4 minutes$(comma) more where torch comes with CUDA)

$(VENV)/.lint: $(VENV)/.test
	$(call install,test$(comma)lint,half a minute)

$(VENV)/.bench: pyproject.toml requirements.lock | $(VENV)/.python
	$(call install,server$(comma)bench,2 to 4 minutes$(comma) more where torch comes with CUDA)

$(VENV)-lowest/.test: pyproject.toml $(LOWEST)
	$(call install_versions,lowest versions that it allows,--constraint $(LOWEST))

$(VENV)-newest/.test: pyproject.toml
	$(call install_versions,newest versions that pip finds,--upgrade)

$(VENV)-clients/.kserve: | $(VENV)/.python
	@$(PYTHON) -m venv $(@D)
	@echo "Installing KServe's client into $(@D)"
	@$(@D)/bin/pip install -qq 'kserve==0.21.0'
	@touch $@

define install_versions
	@$(PYTHON) -m venv $(@D)
	@echo "Installing Sidelight into $(@D) with the $(1), torch's CUDA build among them"
	@$(@D)/bin/pip install -qq $(2) --editable '.[test]'
	@touch $@
endef

comma := ,
define install
	@echo "Installing Sidelight with its extras [$(1)] into $(VENV), as requirements.lock has it: $(2)"
	@$(BIN)/pip install -qq --constraint requirements.lock --editable '.[$(1)]'
	@touch $@
endef
