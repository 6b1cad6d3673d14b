# make test | lint | demo | clean. The environment .venv is made on first use, and again
# when pyproject.toml or constraints.txt changes. Needs make and Python 3.11 or newer:
#     make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: test lint demo clean

test: $(INSTALLED) lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo

# The environment stays: `rm -r .venv` removes it. So do the results of benchmarks.
clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    "constraints.txt needs Python 3.11 or newer, not " + sys.version.split()[0] \
	    + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
