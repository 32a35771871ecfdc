# Everything runs in .venv, which `make` sets up on first use. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c '' >/dev/null 2>&1 && echo python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/.ready
TORCH_TENSORRT := .venv-torch-tensorrt
DEMO_OUTPUT ?= demo-output
BENCH ?=
PYTEST_ARGS ?=
TEST ?=
# Two workers with one thread each: libraries that start a thread per core in every worker slow each other down.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo setup rtx modelopt torch-tensorrt coreai swift test test-threads test-all coverage lint fix types editor economics readme bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## set up, then restore and validate an embedded photograph, in a minute
	$(BIN)/livemoments demo -o $(DEMO_OUTPUT)

setup: $(READY)  ## make .venv with everything that the other targets need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# piq, with which our metrics are compared, asks for torchvision, which breaks diffusers beside this torch
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps piq
	@touch $@

rtx: $(READY)  ## add TensorRT for RTX, whose tests are skipped without it: 95 MB to download, 240 MB on the disk
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt tensorrt-rtx cuda-bindings

modelopt: $(READY)  ## add nvidia-modelopt, whose tests are skipped without it: 75 MB on the disk
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[modelopt]'

coreai: $(READY)  ## add Apple's tools for Core AI, whose tests are skipped without: 65 MB to download, 223 MB on the disk
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[coreai]'

swift:  ## build the Swift package and run its tests, where a toolchain is installed
	cd swift && swift test

torch-tensorrt:  ## torch-tensorrt in .venv-torch-tensorrt, and its tests there: an older TensorRT for RTX than make rtx's
	test -x $(TORCH_TENSORRT)/bin/python || $(PYTHON) -m venv $(TORCH_TENSORRT)
	@# it wants TensorRT for RTX below 1.6, and the constraints pin ours
	sed '/^tensorrt-rtx==/d' constraints.txt > $(TORCH_TENSORRT)/constraints.txt
	$(TORCH_TENSORRT)/bin/python -m pip install -qq --disable-pip-version-check -c $(TORCH_TENSORRT)/constraints.txt torch
	$(TORCH_TENSORRT)/bin/python -m pip install -qq --disable-pip-version-check -c $(TORCH_TENSORRT)/constraints.txt \
	  -e '.[torch-tensorrt-rtx]' pytest pytest-xdist
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(TORCH_TENSORRT)/bin/python -m pytest $(PYTEST_ARGS) \
	  tests/export/test_torch_tensorrt.py $(TEST)

test: $(READY)  ## the tests that take seconds; make test TEST="tests/runtime/test_tiles.py -k name" some of them
	$(PYTEST) -m 'not slow' $(TEST)

test-threads: $(READY)  ## the numeric ones of them with two threads each
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS) -m 'threads and not slow'

test-all: $(READY)  ## every test
	$(PYTEST)

coverage: $(READY)  ## the quick tests, and which lines they run
	$(PYTEST) -m 'not slow' --cov=livemoments --cov-report=term:skip-covered --cov-report=html:build/coverage $(TEST)

fix: $(READY)  ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy
	$(BIN)/python tools/typecheck.py

editor: $(READY)  ## links under build/editor/ with which editors find the packages
	$(BIN)/python tools/editor_tree.py

lint: $(READY)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/typecheck.py

economics: $(READY)  ## whether the documents' tables of a 12-megapixel photo are what the planner says today
	$(BIN)/python tools/economics.py --check
	$(BIN)/python tools/apple_memory.py --check

readme: $(READY)  ## run the README's commands
	$(BIN)/python tools/readme_commands.py README.md

bench: $(READY)  ## list the benchmarks; make bench BENCH=name runs benchmarks/name.py
ifeq ($(BENCH),)
	@echo "make bench BENCH=NAME runs one of:"
	@for file in benchmarks/*.py; do \
	  if [ -f "$$file" ]; then echo "  $$(basename "$$file" .py)"; fi; \
	done
else
	$(BIN)/python benchmarks/$(BENCH).py
endif

clean:  ## remove what can be made again, .venv included
	rm -rf .venv $(TORCH_TENSORRT) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf *.egg-info src/*.egg-info
