# Everything runs in ./.venv, made on first use; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
# The tests run in so many processes, of one thread each.
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: help demo test lint format types unit test-long test-cuda docs clean

help:
	@echo "make demo       install, train on the built-in digits, say where the pictures are"
	@echo "make test       install with the test extras; linters, type checker, all tests"
	@echo "make lint       ruff and the type checker"
	@echo "make format     rewrite the code as ruff formats it"
	@echo "make unit       the tests alone"
	@echo "make test-long  the long forms of the batteries, which make test leaves out (more than an hour)"
	@echo "make test-cuda  the tests marked cuda; fails where there is no CUDA device"
	@echo "make docs       the documentation, as HTML, in docs/_build/html"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	    "Expected Python 3.11 or newer; got %d.%d. Try make PYTHON=python3.12." % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.base

demo: $(VENV)/.base
	$(BIN)/pyro-vae train --data digits --latent_dim 2 --epochs 200 --out runs/demo --overwrite

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

docs: $(VENV)/.test
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

test: lint docs unit

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -m long

test-cuda: $(VENV)/.test
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	    "Expected a CUDA device; got none. Try this on a machine with an NVIDIA GPU.")'
	$(BIN)/python -m pytest -m cuda

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
