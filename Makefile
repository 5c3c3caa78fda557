# make demo          compress a small network and check the .tflite (a few minutes)
# make test          the test suite;  make test-slow: the long tests only
# make test-jax      JAX in place of TensorFlow, in an environment of its own
# make test-lowest   a few tests with the lowest Keras of pyproject.toml, likewise
# make lint          ruff, mypy and import-linter
# make clean         remove the environments and everything generated
#
# Each command first creates its environment, and again whenever pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JAX_BIN := .venv-jax/bin
LOWEST_BIN := .venv-lowest/bin
CURVES := build/curves_tensorflow.json
LOWEST_KERAS := $(shell sed -n 's/.*"keras>=\([0-9.]*\)".*/\1/p' pyproject.toml)
# Private APIs, layers, and each scheme from `fit` to the file.
LOWEST_TESTS := tests/compat tests/layers tests/schemes/test_step_options.py

# Errors only: TensorFlow is talkative at start-up.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow test-jax test-lowest lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m recipes.pruned_ternary

# A file's tests stay in one process: what they share is then made once. Sorted by their
# number of tests, files of few long tests would come last.
test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile \
		--no-loadscope-reorder --durations 20

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --numprocesses auto --durations 20

# Two devices; a machine that only trains has no TensorFlow.
test-jax: $(VENV)/.installed .venv-jax/.installed
	mkdir -p $(dir $(CURVES))
	$(BIN)/python -m tests.backends.curves $(CURVES)
	KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=2 \
	TENSORFLOW_CURVES=$(CURVES) $(JAX_BIN)/python -m pytest tests/backends \
		tests/compat/test_keras_private.py \
		tests/compat/test_keras_calls_private.py \
		tests/compat/test_keras_weights_private.py

test-lowest: .venv-lowest/.installed
	$(LOWEST_BIN)/python -m pytest $(LOWEST_TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Debian ships Python without ensurepip, hence the outer pip installing into the
# environment instead of the environment's own.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip -e ".[recipes,tfmot,int8,micro,dev]"
	touch $@

# The short list of docs/devices.md, and what the tests need.
.venv-jax/.installed: pyproject.toml
	$(PYTHON) -m venv --without-pip .venv-jax
	$(PYTHON) -m pip --python $(JAX_BIN)/python install --quiet --no-deps -e .
	$(PYTHON) -m pip --python $(JAX_BIN)/python install --quiet jax "keras>=$(LOWEST_KERAS)" rich
	$(PYTHON) -m pip --python $(JAX_BIN)/python install --quiet mlxtend pytest
	touch $@

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv --without-pip .venv-lowest
	$(PYTHON) -m pip --python $(LOWEST_BIN)/python install --quiet \
		-e ".[tfmot,int8]" "keras==$(LOWEST_KERAS).*" mlxtend pytest
	touch $@

clean:
	rm -rf .venv .venv-jax .venv-lowest build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find recipes tests tfcompress benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
