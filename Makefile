# Every command of the project. Each target first makes what it depends on.
PYTHON ?= python3
export SIDECARS
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo check format test pythons unit integration e2e unit-compiled coverage containers fuzz sim bench experiments peers soak engine \
  compiled release wheel clean

# The compiled data path is in a tree of its own, as pip installs it. Only commands that name the tree use it, so an
# edited module is never hidden by a compiled one. Without a C compiler there is no tree, and the commands run from
# source.
COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/.compiled:$(CURDIR)
SOURCES := setup.py pyproject.toml $(shell find tokenpool runtime dashboard sidecar coordinator injector loadgen cli simulation -name __pycache__ -prune -o -print)

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  $(BIN)/tokenpool --help lists the commands for operators of a pool: check, top, usage, simulate and more"

demo: .venv/.installed ## run a real engine, a sidecar and three tenants under load; SIDECARS=3 DEMO_SECONDS=30
	@$(BIN)/python -m demo

test: .venv/.installed ## run the checks and every tier of tests, as CI does; some 20 minutes on two cores
	@$(TESTS) check unit integration e2e unit-compiled coverage

# The tiers. tests/__main__.py lists the tests of each tier, and the jobs that `make test` runs in parallel.
TESTS := $(BIN)/python -m tests
unit: .venv/.installed ## run the tests that need no network, no root and no other program, from source
	@$(TESTS) unit

integration: .venv/.installed ## run the tests with Redis, processes and a live sidecar over sockets, from source
	@$(TESTS) integration

e2e: .venv/.installed ## run the tests with vLLM, containers and a browser; root on Debian installs what is missing
	@$(TESTS) e2e

unit-compiled: .venv/.installed ## run all unit tests and those of a live sidecar on the compiled build, with the long simulations
	@$(TESTS) unit-compiled

# `make test` measures two of the tiers; each leaves a file with what it executed.
coverage: .venv/.installed ## report the branch coverage of the last `make test`; fails under 95 %
	@$(BIN)/python -m coverage combine --keep --quiet --data-file out/.coverage out/.coverage.unit out/.coverage.integration
	@$(BIN)/python -m coverage report --data-file out/.coverage

pythons: .venv/.installed ## run the unit tests on each Python that pyproject.toml claims, in environments under out/pythons
	@$(BIN)/python -m tests.pythons

check: .venv/.installed ## check the format, lint, strict types and the architecture; seconds
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: .venv/.installed ## format the code, and apply the fixes that the linter offers
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: compiled ## measure the proxy and its peers nginx, Envoy and aiohttp in one run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	$(COMPILED) $(BIN)/python -m bench

experiments: compiled engine ## measure guarantees in overload and fairness in scarcity on vLLM; EXPERIMENTS="--seeds 1 --short"
	$(COMPILED) $(BIN)/python -m experiments $(EXPERIMENTS)

peers: compiled ## compare with LiteLLM, Envoy and Rust routers under the same loads; an hour; PEERS="--seeds 1 --seconds 10"
	$(BIN)/python -m experiments peers --install
	$(COMPILED) $(BIN)/python -m experiments peers $(PEERS)

soak: compiled engine ## run two real engines at half load for half an hour with faults; checks memory and counts
	$(COMPILED) $(BIN)/python -m experiments soak $(EXPERIMENTS)

sim: .venv/.installed ## simulate many sidecars and the lease store on a virtual clock; SIM_SEED=1 repeats a run; SIM=one-pool compares handover with its alternatives, SIM=explore visits every state of small worlds
	$(BIN)/python -m simulation $(SIM)

containers: .venv/.installed engine ## build the images and run the tests in containers; root on Debian installs what is missing
	$(BIN)/python -m pytest -q tests/e2e/containers

fuzz: .venv/.installed ## mutate requests and answers around a live sidecar; FUZZ_SECONDS=3600 sets the time
	FUZZ_SECONDS=$${FUZZ_SECONDS:-300} $(BIN)/pytest -q $(shell find tests -name 'test_fuzz*.py')

engine: .venv/.installed ## install a vLLM for CPUs, for the demo and the tests
	@$(PYTHON) -m demo.install_engine

compiled: .venv/.installed .compiled/.made ## compile the data path for bench, experiments and tests; takes two minutes

.compiled/.made: $(SOURCES) | .venv/.installed
	@rm -rf .compiled build && mkdir .compiled
	@headers=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('include'))"); \
	if ! command -v cc > /dev/null || ! [ -f "$$headers/Python.h" ]; then \
	  echo "not compiled: there is no C compiler (cc) or no $$headers/Python.h; the sources are used"; \
	elif TOKENPOOL_COMPILE=1 $(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir .compiled/dist . > .compiled/log 2>&1 && $(BIN)/python -m pip install --disable-pip-version-check --no-deps \
	  --target .compiled .compiled/dist/*.whl >> .compiled/log 2>&1; then touch $@; else cat .compiled/log; rm -rf .compiled; exit 1; fi
	@rm -rf build

release: .venv/.installed ## build wheels, image with SBOM, and chart into dist/, and print their digests; REGISTRY=HOST/PATH pushes the image
	@$(BIN)/python -m release

# The build uses a virtual environment, since the chosen Python may have no pip of its own.
wheel: ## build a wheel with a compiled data path into dist/; PYTHON=python3.12 builds for that Python
	@rm -rf build out/wheel-env && mkdir -p out && $(PYTHON) -m venv out/wheel-env
	@headers=$$(out/wheel-env/bin/python -c "import sysconfig; print(sysconfig.get_path('include'))"); \
	if ! command -v cc > /dev/null || ! [ -f "$$headers/Python.h" ]; then \
	  echo "no wheel: there is no C compiler (cc) or no $$headers/Python.h; on Debian: apt-get install gcc libc6-dev python3-dev" >&2; exit 1; fi
	TOKENPOOL_COMPILE=1 out/wheel-env/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@rm -rf build out/wheel-env; ls dist/*.whl
	@echo "A wheel is for one Python version, one platform and this machine's C library or a later one. For others:"
	@echo "  PYTHON=python3.12 make wheel          another Python (3.11, 3.12 and 3.13 are tested)"
	@echo "  auditwheel repair dist/*.whl          gives it a manylinux tag (manylinux_2_17 when this was tried), in wheelhouse/"
	@echo "  docker build -f docker/Dockerfile .   the image, compiled in it"
	@echo "  pip install .                         pure Python, on any platform"

.PHONY: docs
docs: .venv/.installed ## write docs/reference/ from the code, and rules and dashboards from monitoring/
	$(BIN)/python -m docs.generate
	$(BIN)/python -m monitoring.generate

clean: ## remove everything that these targets made
	rm -rf .venv .venv-engine .cache .compiled dist out

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
