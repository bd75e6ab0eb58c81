# Two commands from a fresh clone, with Python 3.10+ and pip:
#   make demo   install and run the quickstart
#   make test   install what the tests need, lint, type-check, test
# For work on the CUDA kernels: `make kernels` without a GPU, `make gpu` with one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint launchers kernels gpu lowest clean

demo: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every launcher with every failure: a minute each.
launchers: $(VENV)/.test
	$(BIN)/python -m pytest tests/lightning/test_failures.py tests/lightning/test_launching.py -m "slow or not slow"

# What is too long for every run: all architectures, sanitizers, coverage, planted faults.
kernels: $(VENV)/.test
	$(BIN)/python -m pytest tests/cuda -m "slow or not slow"
	$(BIN)/python tests/simt/sanitize.py address
	$(BIN)/python tests/simt/sanitize.py thread
	$(BIN)/python tests/simt/sanitize.py coverage
	$(BIN)/python tests/simt/mutate.py

# For a machine with a GPU: the projection on the device, with times.
gpu: $(VENV)/.test
	$(BIN)/python -m pytest tests/gpu -s

# The tests with the oldest versions that pyproject.toml states, on the last commit.
lowest:
	rm -rf build/lowest
	git clone --quiet . build/lowest
	$(PYTHON) tests/lowest.py > build/lowest/lowest.txt
	PIP_CONSTRAINT="$(abspath build/lowest/lowest.txt)" $(MAKE) -C build/lowest .venv/.test
	cd build/lowest && .venv/bin/python -m pytest

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The compiled library is built against torch, which must be there first.
$(VENV)/.build: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'setuptools>=77' ninja 'torch>=2.10'
	touch $@

# A stamp per set of packages: installed again when the requirements or the sources of the library change.
$(VENV)/.%: pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*) $(VENV)/.build
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[$*]'
	$(BIN)/python -m cga_lightning info
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info cga_lightning/_*.so cga_lightning/*.missing.txt
