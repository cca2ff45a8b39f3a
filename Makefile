# Every task of the project, on Linux and macOS; `make help` lists them. All work happens in .venv,
# and nothing is installed outside it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Options to pass on: make lab LAB_ARGS="--no-browser --port=8899", make test PYTEST_ARGS="-k schedule".
LAB_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

LESSONS := $(sort $(wildcard notebooks/*.ipynb))
LABS := $(sort $(wildcard solutions/*/*.ipynb))

# The kernel is always this .venv's Python, whatever kernels the machine has registered.
export JUPYTER_PREFER_ENV_PATH := 1
PYTEST := $(BIN)/python -m pytest
SLOW := ranks or slow or browser or soak
NONE_IS_FINE := $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])  # a part in which PYTEST_ARGS chooses no test
# One more than there are cores: a test that starts ranks waits for them most of its time.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
NBVAL := $(PYTEST) -p no:cacheprovider -n $(WORKERS) --dist loadfile --nbval-current-env --nbval-cell-timeout=120

.DEFAULT_GOAL := help
.PHONY: help lab test check lint fast unit soak lessons labs notebooks build bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp file is newer than what it was installed from, so an installation happens once.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[lab]"
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[lab,test]"
	@touch $@ $(VENV)/.lab-installed

lab: $(VENV)/.lab-installed  ## install once, and open the course in JupyterLab
	$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/$(or $(firstword $(LESSONS)),README.md) $(LAB_ARGS)

test: lint unit lessons labs  ## install once, and run everything: lint, types, tests, all notebooks

check: lint fast  ## lint, types and the tests that start no ranks: before each commit

lint: $(VENV)/.test-installed  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests and stored outputs must not depend on a live display, nor on a terminal.
fast unit soak lessons labs notebooks: export PPKIT_LIVE := 0

fast: $(VENV)/.test-installed  ## the tests that start neither ranks nor browsers
	$(PYTEST) tests -m "not ($(SLOW))" $(PYTEST_ARGS)

# First what may share the machine; then what measures how soon something ends, and shares it with its like alone.
unit: $(VENV)/.test-installed  ## the tests of the library
	$(PYTEST) tests -n $(WORKERS) --dist worksteal -m "not alone and not soak" $(PYTEST_ARGS) $(NONE_IS_FINE)
	$(PYTEST) tests -n 2 -m "alone and not soak" $(PYTEST_ARGS) $(NONE_IS_FINE)

soak: $(VENV)/.test-installed  ## many runs and notebooks at once, notebooks killed at any moment, two nodes: minutes
	$(PYTEST) tests -m soak -s $(PYTEST_ARGS)

lessons: $(VENV)/.test-installed  ## execute the lessons, and compare every output with the stored one
	$(if $(LESSONS),$(NBVAL) --nbval $(LESSONS),@echo "notebooks/ holds no lesson yet")

labs: $(VENV)/.test-installed  ## execute the solution of every lab to its end
	$(if $(LABS),$(NBVAL) --nbval-lax $(LABS),@echo "solutions/ holds no lab yet")

notebooks: $(VENV)/.test-installed  ## execute the lessons and solutions, and store their outputs
	$(BIN)/python -m ppkit.course.execute $(wildcard notebooks solutions)

build: $(VENV)/.test-installed  ## make exercises/ from solutions/
	$(BIN)/ppkit build

bench: $(VENV)/.test-installed  ## measure what the design gives a budget for
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:  ## remove caches and what was built; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
