# `make demo` and `make test` need nothing but Python 3.11 to 3.13 and a way to install packages.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first of these that runs and is new enough, unless PYTHON=... says which.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint check format docs site clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## create .venv with pinned versions (once; again where the pins change)

demo: $(READY)  ## the whole job on generated images, offline once set up
	$(BIN)/segtune demo

test: $(READY)  ## all tests, warnings are errors; one process for each core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(READY)  ## style, formatting, types, the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zensical build --clean --strict

check: lint test  ## everything that must pass before a commit

format: $(READY)  ## put imports and formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write the generated pages of docs/
	$(BIN)/python tools/generate_docs.py
	$(BIN)/python tools/generate_python_docs.py
	$(BIN)/python tools/generate_results.py
	$(BIN)/python tools/generate_performance.py
	$(BIN)/python tools/generate_tables.py
	$(BIN)/python tools/generate_recipes.py

site: $(READY)  ## build the documentation's site, every link checked: site/index.html
	$(BIN)/zensical build --clean --strict

clean:  ## remove .venv, caches and build output; runs stay
	rm -rf $(VENV) build dist site .cache *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11, 3.12 or 3.13 with the module venv was found (Debian, Ubuntu: apt install python3-venv)."; \
		echo "Install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12"; exit 1; } >&2
	@echo "[1/3] $$($(PYTHON) --version): creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing the versions of constraints.txt (PyTorch is large: this takes minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo "[3/3] ready: $(BIN)/segtune"
	@touch $@
