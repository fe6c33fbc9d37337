# Two commands on a fresh machine: `make verify` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: verify test test-slow check bench kernels clean

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $@

verify: $(STAMP)
	$(BIN)/tp-harness verify

# One worker per core, each computing with one thread. A test looks only at what it started itself.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

test: $(STAMP)
	$(PYTEST)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Types are checked on an installed copy: mypy does not follow the package mapping of setup.cfg.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/typed .
	cd build && MYPYPATH=typed ../$(BIN)/mypy --config-file ../pyproject.toml -p tp_harness
	$(PYTEST)

bench: $(STAMP)
	$(BIN)/python tests/bench/sweep.py

kernels: $(STAMP)
	$(BIN)/python -m tp_harness.kernels.checks.report

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
