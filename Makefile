# Every target installs what it needs into .venv first; `make help` lists them.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# The stamps carry the version of Python, so that another PYTHON makes another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INSTALLED := $(VENV)/.installed-$(VERSION)
DOCS_INSTALLED := $(VENV)/.docs-$(VERSION)
BENCH_INSTALLED := $(VENV)/.bench-$(VERSION)

.DEFAULT_GOAL := help
.PHONY: demo test test-all check bench docs clean help require-python

# The demo's problems are small too: with two threads and another process on one of two cores it was seen to take eight
# times as long. OMP_NUM_THREADS=2 make demo asks for more.
demo: export OMP_NUM_THREADS ?= 1
demo: $(INSTALLED) ## Compress the shipped network on the shipped digits, show what was lost, and write it in C
	$(BIN)/tenflex demo

# The tests' problems are small: a second thread would only wait, and for long where another process has its core. Two
# processes share them instead, file by file: by name, as files of few tests are among the longest and must not come last.
test test-all: export OMP_NUM_THREADS = 1

test: $(INSTALLED) ## Run the tests, without the slow ones
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(INSTALLED) ## Run all tests
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED) ## Look for errors without running anything: ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(BENCH_INSTALLED) ## Run the benchmarks
	$(BIN)/python -m benchmarks

docs: $(DOCS_INSTALLED) ## Write the documentation to docs/_build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

clean: ## Remove the environment and all that is made from the sources
	rm -rf $(VENV) build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

require-python:
	@case "$(VERSION)" in \
	    3.10|3.11|3.12|3.13) ;; \
	    [0-9].*) echo "tenflex needs Python 3.10 to 3.13, but $(PYTHON) is Python $(VERSION): try make PYTHON=python3.12 ..." >&2; exit 1 ;; \
	    *) echo "tenflex needs Python 3.10 to 3.13, but $(PYTHON) does not run: try make PYTHON=python3.12 ..." >&2; exit 1 ;; \
	esac

# Without a stamp the environment is missing, half made or of another Python, and is made from nothing. torch goes first,
# alone: then nothing else can choose another build of it.
$(INSTALLED): pyproject.toml constraints.txt | require-python
	@test -f $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.installed-* $(VENV)/.docs-* $(VENV)/.bench-*
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --quiet --editable '.[plot,dev]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) --quiet --editable '.[docs]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) --quiet --editable '.[plot,dev,bench]'
	@touch $@
