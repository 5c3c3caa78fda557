# make demo       compress a small network and check the .tflite (a few minutes)
# make test       the test suite;  make test-slow: the long tests only
# make test-jax   JAX in place of TensorFlow, in an environment of its own
# make lint       ruff
# make clean      remove the environment and everything generated
#
# Each command first creates .venv, and again whenever pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JAX_VENV := .venv-jax
JAX_STAMP := $(JAX_VENV)/.installed
CURVES := build/curves_tensorflow.json

# Errors only: TensorFlow is talkative at start-up.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow test-jax lint clean

demo: $(STAMP)
	$(BIN)/python -m recipes.pruned_ternary

# A file's tests stay in one process: what they share is then made once.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 20

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Two devices; a machine that only trains has no TensorFlow.
test-jax: $(STAMP) $(JAX_STAMP)
	mkdir -p $(dir $(CURVES))
	$(BIN)/python -m tests.backends.curves $(CURVES)
	KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=2 \
	TENSORFLOW_CURVES=$(CURVES) $(JAX_VENV)/bin/python -m pytest tests/backends

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Debian ships Python without ensurepip, hence the outer pip installing into the
# environment instead of the environment's own.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip -e ".[recipes,tfmot,int8,dev]"
	touch $@

$(JAX_STAMP): pyproject.toml
	$(PYTHON) -m venv --without-pip $(JAX_VENV)
	$(PYTHON) -m pip --python $(JAX_VENV)/bin/python install --quiet \
		jax "keras>=3.13" mlxtend pytest rich
	touch $@

clean:
	rm -rf $(VENV) $(JAX_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find recipes tests tfcompress benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
