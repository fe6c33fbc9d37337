# On a fresh machine: `make verify` runs the main job, `make test` the tests, `make test-xla` those with torch-xla.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/installed
TESTS := $(VENV)/installed-tests
DOCS := $(VENV)/installed-docs

XLA_VENV := .venv-xla

.PHONY: verify test test-slow test-xla check docs fuzz launcher-faults bench packing kernels screenshot clean

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# What tests and checks need, beside what `verify` needs.
$(TESTS): $(STAMP)
	$(PIP) -e '.[test,dev]'
	touch $@

verify: $(STAMP)
	$(BIN)/tp-harness verify

# Three workers on two cores, each computing with one thread: a test often waits for ranks that it started. A test looks
# only at what it started itself.
WORKERS := $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))
PYTEST_OPTIONS := -n $(WORKERS) --dist loadgroup
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_OPTIONS)

test: $(TESTS)
	$(PYTEST)

test-slow: $(TESTS)
	$(BIN)/python -m pytest -m slow

# torch-xla needs its own torch: an environment of its own, whose heavy part is kept outside the clone.
$(XLA_VENV)/installed: setup.cfg pyproject.toml constraints-xla.txt .ci/xla_environment.py
	$(PYTHON) .ci/xla_environment.py $(XLA_VENV)
	touch $@

# All tests again, with torch-xla and the torch that it fits.
test-xla: $(XLA_VENV)/installed
	OMP_NUM_THREADS=1 $(XLA_VENV)/bin/python -m pytest $(PYTEST_OPTIONS)

# Types are checked on an installed copy: mypy does not follow the package mapping of setup.cfg.
check: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/typed .
	cd build && MYPYPATH=typed ../$(BIN)/mypy --config-file ../pyproject.toml -p tp_harness
	$(PYTEST)

$(DOCS): $(STAMP)
	$(PIP) -e '.[docs]'
	touch $@

# The documentation as a site, which asks no other host for anything: open build/site/index.html.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# 500 hostile inputs of each kind, and every fault in the launcher at every moment (half an hour).
fuzz: $(TESTS)
	$(BIN)/python tests/support/fuzz.py --count 500
	$(BIN)/python tests/support/fuzz_exact.py --count 500

launcher-faults: $(TESTS)
	$(BIN)/python tests/bench/launcher_faults.py --write docs/launcher-faults.md

bench: $(TESTS)
	$(BIN)/python tests/bench/sweep.py

packing: $(TESTS)
	$(BIN)/python tests/bench/packing.py

kernels: $(STAMP)
	$(BIN)/python -m tp_harness.kernels.checks.report

# The picture of a report in docs/report.md; needs Chromium.
screenshot: $(TESTS)
	$(BIN)/tp-harness verify --repeats 3 --out build/screenshot
	$(BIN)/python tests/support/screenshot.py build/screenshot/$$(ls -t build/screenshot | head -1)

clean:
	rm -rf $(VENV) $(XLA_VENV) build .pytest_cache .mypy_cache .ruff_cache
