# Everything runs in .venv, which `make dev` makes; nothing here needs to be installed by hand.
# Without make: the commands in README.md and CONTRIBUTING.md do the same.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SHARED ?= ../shared
BENCH := .venv-benchmarks/bin
BENCHMARK ?= all
DATA = $(if $(wildcard $(SHARED)/data),--data $(SHARED)/data)
CHROMIUM ?= $(shell command -v chromium || command -v google-chrome)

.DEFAULT_GOAL := help
.PHONY: help dev test lint types docs nightly benchmarks reproduce regressions shared browser site frameworks ray openvino mlflow lightning example clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

dev: $(READY)  ## Make .venv with graphprune (editable) and the tools for working on it

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "graphprune needs Python 3.11 or newer; $(PYTHON) is older. Try: make dev PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

test: $(READY)  ## Run the default tests
	$(BIN)/pytest

lint: $(READY)  ## Check the style (ruff)
	$(BIN)/ruff check

types: $(READY)  ## Check the types (mypy, strict)
	$(BIN)/mypy

docs: $(READY)  ## Write the generated pages anew and check links and examples
	$(BIN)/python docs/generate_operators.py
	$(BIN)/python docs/generate_schemas.py
	$(BIN)/python docs/check_docs.py

nightly: $(READY) $(BENCH)/ready  ## Run the long property tests, and every benchmark on all models with all peers (hours)
	$(BIN)/pytest -m nightly
	$(BENCH)/pip install --quiet .
	$(BENCH)/python benchmarks/run.py all --full --resume --results nightly.results $(DATA)
	$(MAKE) regressions

benchmarks: $(BENCH)/ready  ## Measure beside the peers, write docs/benchmarks.md (35 minutes; BENCHMARK="latency --quick": a part)
	$(BENCH)/pip install --quiet .
	$(BENCH)/python benchmarks/run.py $(BENCHMARK)

reproduce: $(BENCH)/ready  ## Measure again, and compare with the figures of docs/benchmarks.md
	$(BENCH)/pip install --quiet .
	$(BENCH)/python benchmarks/run.py --results again.results $(BENCHMARK)
	$(BENCH)/python benchmarks/reproduce.py again.results

regressions: $(BENCH)/ready  ## Time the compiler's stages; fails where one takes 25 % longer than the last time here
	$(BENCH)/pip install --quiet .
	$(BENCH)/pytest benchmarks/regressions --benchmark-autosave \
		$(if $(wildcard .benchmarks/*/*.json),--benchmark-compare --benchmark-compare-fail=min:25%)

$(BENCH)/ready: benchmarks/requirements.txt benchmarks/requirements-no-deps.txt
	$(PYTHON) -m venv .venv-benchmarks
	$(BENCH)/pip install --quiet --requirement benchmarks/requirements.txt
	$(BENCH)/pip install --quiet --no-deps --requirement benchmarks/requirements-no-deps.txt
	@touch $@

shared: $(READY)  ## Run the tests on the trained models of $(SHARED)/data
	@test -d $(SHARED)/data || { echo "$(SHARED)/data is not there: these tests need its models" >&2; exit 1; }
	GRAPHPRUNE_SHARED="$(abspath $(SHARED))" $(BIN)/pytest -m shared

browser: $(READY)  ## Open reports in Chromium, that of the system ($$CHROMIUM) or one that playwright downloads
	$(BIN)/pip install --quiet --editable '.[dev,browser]'
	test -n "$(CHROMIUM)" || $(BIN)/playwright install chromium
	CHROMIUM="$(CHROMIUM)" $(BIN)/pytest -m browser

site: $(READY)  ## Build the documentation site into site/ (installs the extra docs)
	$(BIN)/pip install --quiet --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

frameworks:  ## Test importers and TVM, each framework in an environment of its own (gigabytes of downloads)
	for each in torch==2.13.0:torch tensorflow:keras jax:jax paddlepaddle:paddle scikit-learn:sklearn psutil:tvm; do \
		name=$${each##*:}; $(PYTHON) -m venv .venv-$$name && .venv-$$name/bin/pip install --quiet $${each%%:*} && \
		.venv-$$name/bin/pip install --quiet --editable ".[dev,$$name]" && .venv-$$name/bin/pytest -m $$name || exit 1; done

ray: $(READY)  ## Run the tests of batches on Ray (installs the extra ray)
	$(BIN)/pip install --quiet --editable '.[dev,ray]'
	$(BIN)/pytest -m ray

openvino: $(READY)  ## Run the tests of OpenVINO IR (installs the extra openvino)
	$(BIN)/pip install --quiet --editable '.[dev,openvino]'
	$(BIN)/pytest -m openvino

mlflow: $(READY)  ## Run the tests against a real MLflow server (installs all of mlflow)
	$(BIN)/pip install --quiet --editable '.[dev,mlflow]' mlflow
	$(BIN)/pytest -m mlflow

lightning: $(READY)  ## Run the example that prunes while it trains (installs the extra lightning)
	$(BIN)/pip install --quiet --editable '.[dev,lightning]'
	$(BIN)/pytest -m lightning

example: $(READY)  ## Prune the shipped example to half of its MACs
	$(BIN)/graphprune prune examples/fashion_mnist/model.onnx -o smaller.onnx --target macs=0.5 \
		--eval examples/fashion_mnist/eval.npz --measure --plan plan.json

clean:  ## Remove .venv, caches and build output
	rm -rf .venv .venv-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov smaller.onnx plan.json report.html \
		benchmarks/cache .benchmarks nightly.results again.results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
