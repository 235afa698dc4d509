# The two commands a new user needs:
#   make run    simulate scenarios/quickstart.yaml: a summary on the screen and an HTML report
#   make test   lint, types, import rules and all tests
# Both make .venv and install what they need on first use. Needs Python 3.11 or newer (PYTHON=... picks one).

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
BIN := .venv/bin
RUN_STAMP := .venv/.stamp-run
DEV_STAMP := .venv/.stamp-dev
FAST_STAMP := .venv/.stamp-fast
FAST_TESTS := tests/native tests/golden tests/replica tests/cluster/test_conservation.py tests/cluster/test_vllm_logs.py
PROFILE_BIN := .venv-profile/bin
PROFILE_STAMP := .venv-profile/.stamp

.DEFAULT_GOAL := help
.PHONY: help run fast test test-fast test-profiler lint bench survey docs notebooks sample clean validation calibrations

help:
	@sed -n '2,5s/^# \{0,1\}//p' Makefile
	@echo "  make lint   ruff, mypy, import-linter     make bench  speed of the simulator"
	@echo "  make docs   regenerate docs from code     make clean  remove .venv, caches and runs"
	@echo "  make survey   published systems, scored   make validation, make calibrations   DATA=folder of measurements"
	@echo "  make fast   compile the modules every request passes through (needs a C compiler)"
	@echo "  make test-fast   the tests of what is compiled, quickly, as it is compiled"
	@echo "  make notebooks   runs notebooks/ and keeps their outputs"
	@echo "  make test-profiler   tests that need torch, in .venv-profile"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Windtunnel needs Python 3.11 or newer; none found. Try: make run PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(DEV_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(RUN_STAMP) $@

run: $(RUN_STAMP)
	$(BIN)/windtunnel run scenarios/quickstart.yaml

# Optional: the same results from machine code (docs/performance.md). An edited source runs as it is until made again.
$(FAST_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fast]'
	@touch $(RUN_STAMP) $@

fast: $(FAST_STAMP)
	$(BIN)/python -m simulator.native.build
	$(BIN)/windtunnel --version

# In a folder of its own and hardly optimized, so that it takes less than a minute.
test-fast: $(DEV_STAMP) $(FAST_STAMP)
	$(BIN)/python -m simulator.native.build --optimize 0 build/core-test
	WINDTUNNEL_CORE=build/core-test $(BIN)/python -m pytest -q $(FAST_TESTS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered

# Tests that need torch and transformers, in a venv of its own: the ordinary one stays small.
$(PROFILE_BIN)/python:
	$(PYTHON) -m venv .venv-profile

$(PROFILE_STAMP): pyproject.toml | $(PROFILE_BIN)/python
	$(PROFILE_BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,profile]'
	@touch $@

test-profiler: $(PROFILE_STAMP)
	$(PROFILE_BIN)/python -m pytest tests/profiler

bench: $(RUN_STAMP)
	$(BIN)/windtunnel bench

# Published systems in their own settings, against their claims: a scoreboard in runs/survey.
survey: $(RUN_STAMP)
	$(BIN)/windtunnel survey

validation: $(RUN_STAMP)
	$(BIN)/python -m profiler.validate.document $(or $(DATA),../shared/data)

# Fits the shipped calibrations again from published kernel tables: make calibrations DATA=../shared/data/kernels
calibrations: $(RUN_STAMP)
	$(BIN)/python -m profiler.fit.shipped $(or $(DATA),../shared/data/kernels)
	$(BIN)/python docs/generate.py

docs: $(RUN_STAMP)
	$(BIN)/python docs/generate.py

# The notebooks, run from top to bottom, with their outputs
notebooks: $(DEV_STAMP)
	$(BIN)/python docs/notebooks.py --write

# README's sample output and docs/report.png, after anything that changes numbers or looks
sample: $(RUN_STAMP)
	$(BIN)/python docs/sample.py

clean:
	rm -rf .venv .venv-profile build dist runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf .coverage .coverage.* htmlcov coverage.xml
	find simulator traces tests -name __pycache__ -type d -prune -exec rm -rf {} +
