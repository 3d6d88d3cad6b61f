PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs bench ci clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' Makefile

setup: $(STAMP)  ## make the virtual environment .venv (PYTHON=... chooses the interpreter)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## train a small PETS agent
	$(BIN)/python -m experiments.train pets --preset demo --name demo --fresh

test: $(STAMP)  ## the fast tests; `pytest -m slow` runs the others
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(STAMP)  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)  ## static types
	$(BIN)/mypy

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS_STAMP)  ## the documentation site, build/docs/index.html; a warning or a broken link is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs -d build/doctrees . build/docs

bench: $(STAMP)  ## how fast the model is on this machine
	$(BIN)/python -m experiments.benchmarks.model

ci: lint types test docs  ## what continuous integration runs

clean:  ## remove .venv, caches and build output; runs/ stays
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -path ./runs -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
