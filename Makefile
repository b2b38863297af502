# make demo   real images through the whole pipeline, two trainers side by side
# make test   everything that is checked on every change
# Both make a virtual environment in .venv and install nnplug into it first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.nnplug-installed

.PHONY: demo test test-full lint install

demo: $(INSTALLED)
	$(BIN)/nnplug demo

test: lint
	$(BIN)/python -m pytest -m "not full"

test-full: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	touch $@
