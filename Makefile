# Every target sets up what it needs: a .venv with the versions of requirements.txt.
# REQUIREMENTS=requirements-lowest.txt has a .venv-lowest; another PYTHON may have another
# VENV, such as .venv-3.13, and then both stay.

PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
VENV ?= $(REQUIREMENTS:requirements%.txt=.venv%)
BIN := $(VENV)/bin
COMPILED := .venv-compiled/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
NATIVE := $(addprefix adam_jax/native/,CMakeLists.txt *.cc *.h)

.PHONY: help train test crossings sanitize wheel compiled family optax-suite bench figures study pictures check format clean

help:  ## Show this list.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/ready  ## Train an MLP on real digits with Adam; ends with a table and a picture.
	$(BIN)/adam-jax train --config configs/digits_mlp.toml $(ARGS)

test: $(VENV)/ready  ## Run the tests, of many like ones a fifth, and the doctests (9 min).
	$(BIN)/python -m pytest -n auto $(ARGS)

crossings: $(VENV)/ready  ## Run all other tests, which cross everything with everything (30 min).
	$(BIN)/python -m pytest -n auto -m crossing $(ARGS)

sanitize: $(VENV)/ready  ## Test the native step under the address and undefined-behaviour sanitizers (1 min).
	$(BIN)/cmake -S adam_jax/native -B build/sanitize -DADAM_JAX_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --parallel 2
	build/sanitize/step_test $(ARGS)

# Built as pip builds it anywhere, away from $(VENV).
wheel:  ## Build a wheel in dist/, and test it in an empty environment (2 min).
	rm -rf build/wheel dist/adam_jax-*.whl
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
	  --config-settings=build-dir=build/wheel/native --wheel-dir dist .
	build/wheel/bin/python $(PIP_INSTALL) --constraint $(REQUIREMENTS) dist/adam_jax-*.whl
	build/wheel/bin/python tests/installed.py
	@ls dist/adam_jax-*.whl

compiled:  ## Test what XLA compiles for a TPU v5e and an H100, without either (4 min; 1 GB to install).
	@if $(MAKE) --no-print-directory .venv-compiled/ready; then \
	  $(COMPILED)/python -m pytest -n auto -rx --confcutdir tests/compiled tests/compiled $(ARGS) && \
	  for machine in v5e h100; do $(COMPILED)/adam-jax bench --compiled $$machine || exit; done; \
	else \
	  echo "=== NOTHING COMPILED FOR TPU AND GPU: the reason stands above." >&2; \
	fi

bench: $(VENV)/ready  ## Measure how true moments are, a sweep beside single runs, what breaks first at scale, and a step beside optax, torch and a bare loop (45 min and more).
	$(BIN)/python benchmarks/moment_accuracy.py
	$(BIN)/python benchmarks/sweep_speed.py
	$(BIN)/python benchmarks/at_scale.py
	$(BIN)/adam-jax bench $(ARGS)

# As a whole, beside other work: 62 min of CPU time, 20 of them for the figures. On idle
# cores kb4 took 6 min, sparse_rates 2 min 20 s, lh 1 min 30 s, the others up to 35 s each.
figures: $(VENV)/ready  ## Repeat the published figures in docs/, and train the transformer in every format (1 hour of CPU time).
	rm -rf runs/figures
	for name in kb4 kb1_dense_rates kb1_sparse_rates lh; do \
	  $(BIN)/adam-jax sweep --config configs/figure_$$name.toml --runs_dir runs/figures && \
	  cp runs/figures/figure_$$name/sweep.png docs/figure_$$name.png || exit; \
	done
	for name in kb1_dense kb1_sparse wilson; do \
	  $(BIN)/adam-jax compare --config configs/figure_$$name.toml --runs_dir runs/figures && \
	  cp runs/figures/figure_$$name/compare.png docs/figure_$$name.png || exit; \
	done
	$(BIN)/python benchmarks/training_loss.py

# Stopped, it goes on; rm -r runs/study makes all of it anew.
study: $(VENV)/ready  ## Train three small problems by every optimizer, and write docs/study.md (1 hour of CPU time, in parts).
	$(BIN)/python benchmarks/family_study.py $(ARGS)

pictures: $(VENV)/ready  ## Draw the pictures in docs/ anew, and print their figures (70 s).
	rm -rf runs/pictures
	for name in digits_mlp diagnose_healthy diagnose_large_lr diagnose_dead_layer \
	    diagnose_noisy_batch; do \
	  $(BIN)/adam-jax train --config configs/$$name.toml --runs_dir runs/pictures && \
	  $(BIN)/adam-jax inspect runs/pictures/$$name && \
	  cp runs/pictures/$$name/run.png docs/$$name.png || exit; \
	done
	for name in trace_rosenbrock trace_counterexample; do \
	  $(BIN)/adam-jax trace --config configs/$$name.toml --runs_dir runs/pictures && \
	  cp runs/pictures/$$name/trace.png docs/$$name.png && \
	  cp runs/pictures/$$name/trace.gif docs/$$name.gif || exit; \
	done
	$(BIN)/adam-jax report runs/pictures/diagnose_healthy
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1280,1356 \
	  --virtual-time-budget=20000 --screenshot=docs/report.png \
	  runs/pictures/diagnose_healthy/report.html

family: $(VENV)/ready  ## Hold every optimizer to its oracle and to others' code, and write docs/family.md (5 min).
	$(BIN)/python -W ignore benchmarks/family.py

optax-suite: $(VENV)/ready  ## Run Optax's own tests with our optimizers in place of its own (5 min).
	$(BIN)/python tests/optax_suite.py $(ARGS)

check: $(VENV)/ready  ## Lint, check the formatting and the types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/ready  ## Format the code, and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the virtual environments and the caches.
	rm -rf .venv .venv-* build .pytest_cache .ruff_cache .hypothesis

$(VENV)/ready: $(REQUIREMENTS) pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "adam_jax needs Python 3.11 or newer, and '$(PYTHON)' is older or missing:" \
	       "make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --no-deps -r $(REQUIREMENTS)
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation \
	  --config-settings=build-dir=build/$(VENV) --editable .
	@touch $@

# One that has libtpu and the CUDA plugin for the jax of requirements.txt. The native step
# is for this machine, so it is not built.
.venv-compiled/ready: requirements.txt pyproject.toml
	@rm -rf .venv-compiled; \
	if [ "$$(uname -sm)" != "Linux x86_64" ]; then \
	  echo "libtpu and the CUDA plugin are for Linux on x86_64"; exit 1; \
	fi; \
	for python in python3.12 python3.13 \
	    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[23].*/bin/python; do \
	  if "$$python" -m venv .venv-compiled 2>/dev/null; then exit; fi; \
	done; \
	echo "there is no Python 3.12 or 3.13"; exit 1
	@$(COMPILED)/python $(PIP_INSTALL) --no-deps -r requirements.txt
	@$(COMPILED)/python $(PIP_INSTALL) --no-deps --no-build-isolation \
	  --config-settings=wheel.cmake=false --editable .
	@$(COMPILED)/python $(PIP_INSTALL) --no-deps $$($(COMPILED)/python -c \
	  'from adam_jax.experiments.bench.compiled import packages as p; print(p("v5e"), p("h100"))')
	@touch $@
