# `make` alone lists the targets. PYTHON is the interpreter (3.11 or later) that .venv is made from, EXTRAS what it gets.
PYTHON ?= $(shell command -v python3 || command -v python)
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
COMMA := ,
INSTALLED := $(VENV)/.installed-$(subst $(COMMA),-,$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help setup demo test long lint check bench validation soak clean reproduce-paper

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## make .venv and install the project for development; EXTRAS=dev,onnx,search: with these extras

demo: $(INSTALLED)  ## a lambda sweep on real digits, then table, front and plots (about three minutes)
	$(BIN)/eat-run -m experiment=demo

reproduce-paper: $(INSTALLED)  ## the paper's tables and figures: SCALE=full, paper-short, slim or smoke; DATA_DIR=data, DOWNLOAD=true
	$(BIN)/python scripts/reproduce.py $(if $(SCALE),--scale $(SCALE)) --data-dir "$(or $(DATA_DIR),data)" $(if $(DOWNLOAD),--download)

test: $(INSTALLED)  ## the tests (at most five minutes)
	$(BIN)/python -m pytest -m "not long" -n auto --maxprocesses 4

long: $(INSTALLED)  ## the tests that take longer
	$(BIN)/python -m pytest -m long

lint: $(INSTALLED)  ## format, style, types, imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test  ## lint, then test

bench: $(INSTALLED)  ## what penalty, meter, data and commands cost, beside the goals: results/bench (ten minutes)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONPATH=scripts $(BIN)/python -m bench

validation: $(INSTALLED)  ## counts and prices beside what others found: results/validation (twenty minutes; ZigZag if installed)
	OMP_NUM_THREADS=1 PYTHONPATH=scripts $(BIN)/python -m validation

soak: $(INSTALLED)  ## sweeps that are killed at random for MINUTES=30, then 1,000 tiny runs: results/soak
	$(BIN)/python scripts/soak.py --minutes $(or $(MINUTES),30)

clean:  ## remove .venv and caches; results and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# uv where it is; else uv from the index, inside the venv; else pip
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12")'
	@if command -v uv >/dev/null; then \
		{ test -x $(BIN)/python || uv venv --quiet --python "$(PYTHON)" $(VENV); } && \
		uv pip install --compile-bytecode --python $(BIN)/python --editable '.[$(EXTRAS)]'; \
	else \
		{ test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
		if $(BIN)/python -m pip install --quiet uv; \
		then $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --editable '.[$(EXTRAS)]'; \
		else $(BIN)/python -m pip install --editable '.[$(EXTRAS)]'; fi; \
	fi
	@touch $@
