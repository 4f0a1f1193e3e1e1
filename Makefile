# longseq: `make demo` for a newcomer, `make test` for a contributor. Both set up .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard core/kernels/cpu/*)
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -gt 4 ] && n=4; echo $$n)

.PHONY: help demo test lint types unit bench install clean
help:
	@echo "make demo   train a Mamba DNA model on a real genome (about 6 minutes; the first run also installs)"
	@echo "make test   lint, types and all tests (the first run also installs)"
	@echo "make bench  measure the kernels against the sequential reference"
	@echo "make clean  remove the environment and build products"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "longseq needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || { echo "longseq needs a C++ compiler (Debian: apt install g++; macOS: xcode-select --install)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	@echo "Installing longseq with PyTorch into $(VENV): about 5 GB, a few minutes, once."
	$(BIN)/python -m pip install --quiet --editable '.[genomics]'
	@touch $@

$(VENV)/.all: $(BIN)/python $(SOURCES)
	@echo "Installing longseq with every extra into $(VENV): about 5.5 GB, a few minutes, once."
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	@touch $@ $(VENV)/.demo

install: $(VENV)/.all

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

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks.selective_scan

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
