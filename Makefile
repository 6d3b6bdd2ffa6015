# A fresh machine needs Python 3.11 or newer (PYTHON=python3.12 to choose), and a C and C++ compiler.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
INPUTS := pyproject.toml constraints.txt $(wildcard native/*.c native/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo test lint native-test bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## learn real text, and see what that is worth (ARGS=--quick for the short way)
	@echo "The demo learns real text and measures what that is worth: about 6 minutes on 2 cores, a few with"
	@echo "ARGS=--quick. After Ctrl-C make demo goes on; a finished demo shows its result again."
	$(BIN)/memdec-edge demo $(ARGS)

# Two processes at once, a file of tests to each. Threads that wait for work sleep, so that the two do not slow each other.
test: .venv/.dev ## all tests (ARGS='-k text' for some)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.dev ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

native-test: .venv/.dev ## the C kernels, warnings as errors, under ASan and UBSan
	PYTHON=$(BIN)/python sh native/native-test.sh

bench: .venv/.dev ## the measurements in benchmarks/ that need no model files, minutes each
	@set -e; for name in mixing sampling agreement train_step; do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py; \
	done

# [dev] holds [demo]: where the first is installed, the second is too.
.venv/.dev: $(INPUTS) | .venv/bin/python
	$(announce)
	$(INSTALL) '.[dev]'
	@touch .venv/.demo $@

.venv/.demo: $(INPUTS) | .venv/bin/python
	$(announce)
	$(INSTALL) '.[demo]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

define announce
@echo "Installing into .venv. The first time pip compiles llama.cpp for 4 to 9 minutes and says little meanwhile."
@echo "It needs a C and a C++ compiler; CMake and Ninja it fetches by itself where they are missing."
endef
