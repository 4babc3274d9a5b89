# `make demo` and `make test` work on a fresh machine with Python 3.11+ and git: everything else is fetched or built, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := build/peers
UV := $(shell command -v uv 2>/dev/null || echo build/uv/bin/uv)
export OMP_NUM_THREADS ?= 1
# Two tests at a time: more than that would wait for each other on two cores. tests/conftest.py makes the groups.
SIDE_BY_SIDE := --numprocesses 2 --dist loadscope --no-loadscope-reorder
# Real processes and clocks on a machine that is used for other things, too: what failed is done once more, and listed as RERUN.
ONCE_MORE := --reruns 1 -rfER

.PHONY: help demo test test-unit lint format crds generate bench bench-planner lock env binaries clean peers fuzz chaos bench-data-plane bench-predictions bench-leak bench-model sweep-models kind-up kind-down kind-demo demo-table kind-chaos kind-test manifest bench-startup bench-peers

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: env binaries  ## Split a trained model between edge and cloud nodes, and watch it being re-planned (about 6 minutes)
	@PYTHONPATH=examples $(BIN)/python -m demo $(DEMO_ARGS)

test: env binaries peers  ## Run all tests: unit, integration on the embedded control plane, end to end
	@$(BIN)/python -m pytest tests/unit tests/integration $(SIDE_BY_SIDE) $(ONCE_MORE) $(PYTEST_ARGS)
	@$(BIN)/python -m pytest tests/timing tests/e2e $(ONCE_MORE) $(PYTEST_ARGS)

test-unit: env binaries peers  ## Run the tests that start no cluster
	@$(BIN)/python -m pytest tests/unit $(SIDE_BY_SIDE) $(PYTEST_ARGS)

fuzz: env  ## Send 20,000 malformed requests to both protocol fronts, and to a gateway with a stage (some minutes)
	@SPLITPLANE_FUZZ_REQUESTS=20000 $(BIN)/python -m pytest tests/unit/test_oip_malformed.py $(PYTEST_ARGS)

chaos: env binaries  ## Do every fault to a cluster under load and write what clients saw to docs/faults.md (about 20 minutes)
	@$(BIN)/python -m tests.chaos --write $(CHAOS_ARGS)

lint: env  ## Check format, lint, types, import layers, generated files and locks
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m splitplane.api.crds --check
	@$(BIN)/python -m splitplane.runtime.generate --check
	@UV="$(UV)" hack/lock --check
	@$(BIN)/hadolint images/*/Dockerfile hack/kind-node/node/Dockerfile
	@$(BIN)/shellcheck .ci/run hack/lock hack/kind-node/install-packages hack/kind-node/runc-bounded hack/kind-node/node/pod-network

format: env  ## Format the code and mend what can be mended by machine
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

crds: env  ## Generate crds/ and the chart's copy from the pydantic models
	@$(BIN)/python -m splitplane.api.crds

generate: env crds  ## Generate CRDs and protocol stubs
	@$(BIN)/python -m splitplane.runtime.generate

bench: env binaries  ## Measure hop overhead, planner speed and operator memory; writes build/bench/bench.json
	@$(BIN)/python -m benchmarks

bench-planner: env  ## Measure the planner alone: frontier, HiGHS, many pipelines; writes build/bench/bench-planner.json
	@$(BIN)/python -m benchmarks.planner

bench-model: env  ## Measure exports, partitions' memory, codecs and profiles; writes build/bench/bench-model.json
	@$(BIN)/python -m benchmarks.model

sweep-models: env  ## Cut every architecture at true size at every cut, and compare with the eager model (half an hour); MODELS="gpt2 ..." for some
	@$(BIN)/python -m benchmarks.equivalence $(MODELS)

bench-data-plane: env  ## Measure a hop, batching, a gateway's rate and one under overload; writes build/bench/bench-data-plane.json (5 minutes)
	@$(BIN)/python -m benchmarks.data_plane

bench-predictions: env binaries  ## Hold predicted p95 against what clients see, three plans at five rates on the embedded cluster (about 30 minutes)
	@PYTHONPATH=examples:. $(BIN)/python -m benchmarks.predictions

bench-startup: env binaries  ## Measure how long operator, gateway and a stage take to start, and with what; writes build/bench/startup.json
	@$(BIN)/python -m benchmarks.startup

bench-peers: env peers  ## Measure a split model behind Splitplane, FastAPI, KServe and Ray Serve; writes build/bench/bench-peers.json (6 minutes)
	@$(BIN)/python -m benchmarks.peers

bench-leak: env  ## Attack LeNet-5 on MNIST and six convolutions on photographs, beside published figures, and CRAFT (about 40 minutes)
	@$(BIN)/python -m benchmarks.leak
	@$(BIN)/python -m benchmarks.leak_photos
	@$(BIN)/python -m benchmarks.leak_detector

MANIFEST ?= build/install.yaml
manifest: env  ## Render one file for `kubectl apply`: needs PROMETHEUS_URL; more values by HELM_ARGS; writes build/install.yaml
	@test -n "$(PROMETHEUS_URL)" || { echo "Set PROMETHEUS_URL, such as http://prometheus.monitoring:9090"; exit 1; }
	@mkdir -p "$(dir $(MANIFEST))"
	@helm="$$($(BIN)/python -c 'from splitplane.local import binaries; print(binaries.ensure("helm"))')" && \
	  "$$helm" template splitplane charts/splitplane --namespace splitplane-system --set namespace.create=true \
	    --set prometheus.url="$(PROMETHEUS_URL)" $(HELM_ARGS) >"$(MANIFEST).part" && mv "$(MANIFEST).part" "$(MANIFEST)"

lock: $(UV)  ## Resolve the dependencies anew and write requirements/*.lock
	@UV="$(UV)" hack/lock

env: $(VENV)/.stamp

peers: $(PEERS)/.stamp  ## Install other model servers and clients, to test and measure against, into build/peers

# Clients and servers of others, with the libraries of our environment behind their own (torch, for one).
$(PEERS)/.stamp: requirements/peers.lock | $(VENV)/.stamp
	@test -x $(PEERS)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(PEERS)
	@$(UV) pip sync --quiet --python $(PEERS)/bin/python --require-hashes requirements/peers.lock
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  >"$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/splitplane-behind.pth"
	@touch $@

binaries: env
	@UV="$(abspath $(UV))" $(BIN)/splitplane local build

build/uv/bin/uv:
	@echo "uv is not on PATH: installing it into build/uv"
	@$(PYTHON) -m venv build/uv && build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.stamp: requirements/dev.lock pyproject.toml | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@echo "Installing the environment (torch alone is 5 GB unpacked; later runs take it from the cache)"
	@$(UV) pip sync --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

KIND = UV="$(abspath $(UV))" PYTHONPATH=hack/kind-node $(BIN)/python -m kindcluster

kind-up: env  ## Bring up a kind cluster with Prometheus and Splitplane in it; builds and loads the images (docs/kind.md)
	@$(KIND) up

kind-down: env  ## Delete the kind cluster; a Docker daemon that kind-up started ends, and the network is put back
	@$(KIND) down

kind-demo: env  ## The same demo on real containers, on a kind cluster (about 10 minutes); writes build/kind-demo/report.json
	@UV="$(abspath $(UV))" PYTHONPATH=examples:hack/kind-node $(BIN)/python -m demo --on kind --out build/kind-demo $(DEMO_ARGS)

demo-table: env  ## Both demos side by side, after both have run, as docs/kind.md has them
	@PYTHONPATH=examples $(BIN)/python -m demo.compare

kind-chaos: env  ## Do the faults that real kubelets may take another way to a kind cluster, and write docs/faults.md (about 15 minutes)
	@UV="$(abspath $(UV))" PYTHONPATH=hack/kind-node $(BIN)/python -m tests.chaos --on kind --write $(CHAOS_ARGS)

kind-test: env  ## Run the tests that need real kubelets, on a kind cluster
	@UV="$(abspath $(UV))" $(BIN)/python -m pytest tests/kind $(ONCE_MORE) $(PYTEST_ARGS)

clean:  ## Remove what make built in this folder (caches of the user stay)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
