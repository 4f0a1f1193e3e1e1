# longseq: `make demo` for a newcomer, `make test` for a contributor. Both set up .venv on first use.
PYTHON ?= python3
# make test TORCH=2.11.0: another version of torch, in an environment of its own
TORCH ?=
VENV := .venv$(if $(TORCH),-$(TORCH))
BIN := $(VENV)/bin
# The interpreter of Triton 3.6, which torch 2.11 brings, breaks with numpy 2.4.
PINS = $(if $(TORCH),torch==$(TORCH)) $(if $(filter 2.11.%,$(TORCH)),'numpy<2.4')
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PINS) --editable
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard core/kernels/cpu/* genomics/native/*)
BENCH ?=
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -gt 4 ] && n=4; echo $$n)

.PHONY: help demo test test-gpu lint types unit fuzz sanitize wheels lowest mutants interrupt docs bench install update clean
help:
	@echo "make demo   small models on real data in five sciences, beside baselines, with an HTML report (under 10 minutes; the first run also installs)"
	@echo "make test   lint, types and all tests (the first run also installs); TORCH=2.11.0 for that version of torch"
	@echo "make test-gpu  build, check and time the CUDA and Triton kernels on this machine's GPU (under 8 minutes)"
	@echo "make fuzz   every reader against damaged files, with limits of time and memory (INPUTS=1000 for each)"
	@echo "make sanitize  the compiled kernels under sanitizers: addresses, undefined behaviour, threads (under 10 minutes)"
	@echo "make wheels  build the wheel, install it into an empty environment, run it outside with one extra at a time (6 minutes)"
	@echo "make mutants   which small faults the tests would not notice: a sample of 200 (over an hour)"
	@echo "make interrupt commands stopped and killed at random moments, 40 times each: is anything lost? (half an hour)"
	@echo "make lowest  all tests with the lowest versions of everything that pyproject.toml asks for, in an environment of its own (an hour)"
	@echo "make docs   the documentation as a site in build/site; a broken link or name is an error"
	@echo "make bench  measure kernels and models against their peers (BENCH=--quick for a few minutes)"
	@echo "make update install the newest release of everything and write constraints.txt from it"
	@echo "make clean  remove the environment and build products"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "longseq needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || { echo "longseq needs a C++ compiler (Debian: apt install g++; macOS: xcode-select --install)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	@echo "Installing longseq with PyTorch into $(VENV): about 7 GB, a few minutes, once."
	$(INSTALL) '.[all]'
	@touch $@

$(VENV)/.all: $(BIN)/python $(SOURCES)
	@echo "Installing longseq with every extra into $(VENV): about 7 GB, a few minutes, once."
	$(INSTALL) '.[all,dev]'
	@touch $@ $(VENV)/.demo

install: $(VENV)/.all

# What an index serves changes every day: the bounds are what the tests have passed with. torch brings its own CUDA
# and Triton packages, at exactly one version, so they need no bound. statsforecast, which the tests do not install,
# holds pandas back: it is resolved beside the rest, and gives only the names that are not there yet.
FREEZE = import json, sys; [print(one["metadata"]["name"], one["metadata"]["version"], sep="==") for one in json.load(sys.stdin)["install"]]
update: $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[all,dev]'
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --dry-run --report build/statsforecast.json '.[statsforecast]'
	{ echo "# The newest release of every package with which the tests have passed; written by make update."; \
	  { $(BIN)/python -m pip list --format=freeze --exclude-editable; $(BIN)/python -c '$(FREEZE)' < build/statsforecast.json; } | \
	  tr 'A-Z_' 'a-z-' | sed 's/+.*//; s/==/<=/' | awk -F '<=' '!seen[$$1]++' | \
	  grep -Ev '^(nvidia|cuda|triton|pip|longseq)\b' | LC_ALL=C sort; } > constraints.tmp && mv constraints.tmp constraints.txt
	@touch $(VENV)/.all $(VENV)/.demo
	@echo "constraints.txt is written; keep it if make test passes."

# Only what the package itself asks for is lowest: the tests' own tools (dev), and what these packages bring, are the newest.
LOWEST := .venv-lowest/bin
lowest: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	@mkdir -p build
	$(PYTHON) -m venv .venv-lowest
	$(BIN)/uv pip compile --quiet --python $(LOWEST)/python --resolution lowest-direct --extra all pyproject.toml --output-file build/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/python --requirement build/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/python --constraint build/lowest.txt wheel scikit-build-core nanobind cmake ninja setuptools pytest pytest-xdist hypothesis polars nbclient ipykernel cosmic-ray
	$(BIN)/uv pip install --quiet --python $(LOWEST)/python --no-deps --no-build-isolation --editable .
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest -n $(JOBS)

demo: $(VENV)/.demo
	$(BIN)/longseq demo

test: lint types unit

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.all
	$(BIN)/mypy

unit: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=10

INPUTS ?= 1000
fuzz: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m longseq.bench.fuzz --inputs $(INPUTS)

sanitize: $(VENV)/.all
	OMP_NUM_THREADS=1 PATH="$(BIN):$$PATH" $(BIN)/python -m longseq.bench.sanitize

wheels: $(VENV)/.all
	OMP_NUM_THREADS=1 PATH="$(BIN):$$PATH" $(BIN)/python -m longseq.bench.wheels

SAMPLE ?= 200
mutants: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m longseq.bench.mutants --sample $(SAMPLE)

TRIALS ?= 40
interrupt: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m longseq.bench.interrupt --trials $(TRIALS)

docs: $(VENV)/.all
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html is written"

# Needs nothing installed but torch: an environment of ours is taken where there is one, else PYTHON and the folders
# under typings, which are links to the sources.
test-gpu:
	@mkdir -p build
	@if [ -x $(BIN)/longseq ]; then run=$(BIN)/python; else run="env PYTHONPATH=typings $(PYTHON)"; fi; \
	  $$run -m longseq.bench.gpu --json build/gpu.json

# The peers must not exchange the torch that is there: it is named beside them, as it is.
$(VENV)/.bench: $(VENV)/.all bench/requirements.txt
	torch=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))') && \
	  $(BIN)/python -m pip install --quiet -r bench/requirements.txt "torch==$$torch"
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/longseq bench kernels $(BENCH)
	$(BIN)/longseq bench models $(BENCH)

clean:
	rm -rf .venv .venv-* build .pytest_cache .mypy_cache .ruff_cache .hypothesis
