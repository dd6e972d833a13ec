# make demo | test | check | bench | campaign | kills    Each sets up .venv itself and is quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check lint types bench campaign kills clean

demo: $(STAMP)
	$(BIN)/hermesd demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 4 --dist worksteal

check: lint types test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m simulations.bench

campaign: $(STAMP)
	$(BIN)/python -m simulations.campaign --cases 1000000

kills: $(STAMP)
	HERMES_KILL_CYCLES=200 HERMES_UPGRADE_KILLS=500 $(BIN)/python -m pytest -n 2 tests/test_kill_cycles.py tests/test_upgrades_kills.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Hermes needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[inference,serve,dev,peers]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
