# Two commands matter: `make quickstart` and `make test`. Each sets up all it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-dashboard test-slow lint benchmarks screenshots clean

quickstart: $(VENV)/installed
	$(BIN)/dataeff run quickstart

test: $(VENV)/installed-test lint
	$(BIN)/pytest -n 2

test-dashboard: $(VENV)/installed-test
	$(BIN)/pytest -m "browser and not slow" -n 2 --dist loadfile

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow -n 0

lint: $(VENV)/installed-test
	$(BIN)/ruff check .

benchmarks: $(VENV)/installed-test
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

screenshots: $(VENV)/installed-test
	$(BIN)/python docs/screenshots.py

# torch comes first and pinned, so that nothing later pulls in a CUDA build of several gigabytes.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(f"dataeff needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
