# Two commands do all set-up on a fresh Debian 12 machine: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo-out
# Without bytecode on disk each of the hundreds of processes that tests start would compile its imports anew, for up to
# ten seconds; images of containers often turn it off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup lock demo test lint types unit bench campaign clean packages

setup: $(VENV)/.synced

# `uv` is bootstrapped by pip into its own small environment, so a Debian whose pip is "externally managed" works too.
.cache/uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "VeilRay needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv .cache/uv || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 69; }
	@.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.synced: requirements.lock pyproject.toml CHANGELOG.md | .cache/uv/bin/uv
	@test -x $(BIN)/python || .cache/uv/bin/uv venv --quiet --python $(PYTHON) $(VENV)
	.cache/uv/bin/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	.cache/uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lock: | .cache/uv/bin/uv
	.cache/uv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

demo: setup
	$(BIN)/dicom-node demo --out $(DEMO_OUT)

packages:
	@tests/packages.sh

test: setup packages lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Three processes on two cores: tests of whole systems mostly wait for each other's processes.
unit: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not campaign'

bench: setup
	$(BIN)/python -m tests.bench

# What takes long: the tests marked so, and a night's worth of queries.
campaign: setup packages
	$(BIN)/python -m pytest -n 2 --dist loadfile -m campaign
	$(BIN)/python -m tests.bench.soak --json build/soak.json --queries 2000

clean:
	rm -rf $(VENV) .cache build dist demo-out .mypy_cache .ruff_cache .pytest_cache
