# make curve   a sparsity-accuracy curve on real digits, under runs/quickstart/
# make test    the test suite
# make kills   a hundred kills of running experiments, each of which must end in the same bits
# make check   format, lint, types, import order

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install curve test kills check format clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[vision,text,export,sweeps,tracking,dev]'
	touch $@

curve: install
	$(BIN)/python -m experiments.run experiment=quickstart
	$(BIN)/python -m experiments.report runs/quickstart

test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

kills: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 KILLS=100 $(BIN)/python -m pytest tests/experiments/test_interruption.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
