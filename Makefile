# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv if it is missing.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# Test files are shared between as many processes as there are cores, four at most.
AT_ONCE := -n auto --maxprocesses 4 --dist loadfile
# Tests of Triton kernels, which are interpreted where there is no GPU.
INTERPRETED := tests/kernels/test_gpu_interpreted.py tests/kernels/test_gpu_parts.py tests/test_benchmarks.py
INTERPRETED_FAST := tests/kernels/test_gpu_interpreted.py::test_sizes tests/kernels/test_gpu_parts.py

# The first Python from 3.11 to 3.13 on this machine; `make PYTHON=/path/to/python` takes another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

.PHONY: help demo test slow stress check hooks pythons format notebook wheel clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /	/'

$(BIN)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "wsi2d needs Python 3.11, 3.12 or 3.13; install one, or run make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(BIN)/.installed  ## slides painted, cut, trained on, evaluated and drawn, into demo/ (about 4 minutes on 2 cores)
	$(BIN)/wsi2d demo --out $(DEMO)

test: $(BIN)/.installed  ## lint and the tests that take seconds, with the lines that no test runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest --quiet $(AT_ONCE) -m "not slow" $(INTERPRETED_FAST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(AT_ONCE) -m "not slow and not stress" --cov --cov-report=term:skip-covered

slow: $(BIN)/.installed  ## the tests that take longer
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest --quiet $(AT_ONCE) $(INTERPRETED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(AT_ONCE) -m "slow and not stress"

stress: $(BIN)/.installed  ## commands stopped at many more moments (about 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m stress

check: $(BIN)/.installed  ## everything but the tests: ruff, mypy --strict, tidy files (under a minute)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

hooks: $(BIN)/.installed  ## run `make check` on every commit, for the files it changes
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit install

pythons:  ## the fast tests on each Python from 3.11 to 3.13 that this machine has, each in an environment of its own
	.ci/pythons 3.11 3.12 3.13

format: $(BIN)/.installed  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: $(BIN)/.installed  ## run the notebook on demo/ and keep its outputs
	WSI2D_DEMO=$(abspath $(DEMO)) $(BIN)/jupyter-execute --inplace notebooks/attention_heatmaps.ipynb

wheel: $(BIN)/.installed  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove what was built and installed (not demo/)
	rm -rf $(VENV) .venv-3.* build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
