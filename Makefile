.DEFAULT_GOAL := help
.PHONY: help setup quickstart test faults lint format docs clean

# make PYTHON=/path/to/python3.12 … chooses the interpreter that .venv is made with.
export PYTHON
PY := .venv/bin/python
# Processes of the test run, of one thread each: two that share the cores wait for each other far longer than they work.
WORKERS ?= 2
# More arguments for pytest, such as ARGS="-k schedules".
ARGS ?=

# What make faults draws, and how much of it.
SEED ?= 0
SHARE ?= 1

help: ## print the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## make .venv and install what is needed (every target below does this first)
	@bash tools/setup.sh

quickstart: setup ## handwritten digits from images to a trained, evaluated checkpoint, in minutes
	$(PY) -m ffcv_train quickstart

# mypy, which has one thread, beside the tests: before them it would leave the other cores idle.
test: setup ## linters, types and all tests
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy & types=$$!; OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) $(ARGS); tests=$$?; wait $$types && exit $$tests

faults: setup ## faults injected into real runs, counted: SHARE=0.1 of the trials of each kind, another SEED
	OMP_NUM_THREADS=1 $(PY) -m faults.run --seed $(SEED) --share $(SHARE)

lint: setup ## linters and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: setup ## fix what the linters can fix
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

docs: setup ## write docs/options.md and docs/api.md from schema and docstrings
	$(PY) -m ffcv_train.config.options_page > docs/options.md
	$(PY) -m tools.api_page > docs/api.md

clean: ## remove caches and the quickstart's outputs; .venv and runs/ stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis quickstart_run
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
