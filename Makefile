# Everything a newcomer needs: `make run` serves, `make test` tests. Each installs what it needs by itself.

PYTHON ?= python3
VENV   ?= .venv
PORT   ?= $(or $(IMAGENET_PORT),8000)
BIN    := $(VENV)/bin
# What serving needs, and what developing adds to it, in the same environment.
RUN_STAMP := $(VENV)/.installed-run
STAMP     := $(VENV)/.installed

.PHONY: help run test test-times test-oldest verify-gpu test-slow alert-series drill-rollouts drill soak test-page test-originals test-kserve test-ray test-mutations fuzz release audit check format clean verify-deploy
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# PIP_ARGS is for what a site needs, such as --extra-index-url with torch's CPU builds.
$(RUN_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another: make run PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing what serving needs into $(VENV) (the first time takes a minute or more)"
	@$(BIN)/python deploy/install cpu -- $(PIP_ARGS)
	@touch $@

$(STAMP): $(RUN_STAMP)
	@echo "Installing what the tests need into $(VENV)"
	@$(BIN)/python deploy/install dev -- $(PIP_ARGS)
	@touch $@

# `make run MODEL=densenet121`, `make run WEIGHTS=my.pth`; without either, and without a setting in the environment, the demo model.
CHOSEN := $(strip $(if $(MODEL),--model $(MODEL)) $(if $(WEIGHTS),--weights '$(WEIGHTS)'))
ADVICE := This is the demo model: it knows 200 classes and gives one of them to every picture. \
	For a real model with 1000 classes: make run MODEL=densenet121 (one download, 31 MiB)
DEMO   := $(if $(CHOSEN)$(IMAGENET_MODEL)$(IMAGENET_WEIGHTS),,--weights demo)

run: $(RUN_STAMP)  ## serve on http://127.0.0.1:8000 with the page at /; MODEL=densenet121 for a real model
	@$(if $(DEMO),echo "$(ADVICE)")
	@$(BIN)/imagenet-serve serve $(CHOSEN) $(DEMO) --port $(PORT)

# A file's tests stay together, so that they share what they start. Two processes more than there are cores: many tests
# wait for a program that they have started.
WORKERS := $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)
PARALLEL := -n $(WORKERS) --dist loadfile

test: $(STAMP)  ## the default test run
	$(BIN)/python -m pytest $(PARALLEL)

# The aim is at most four minutes on two cores; a run on a busy machine says nothing about it.
test-times: $(STAMP)  ## the same, and what takes long: build/test-times.txt
	$(BIN)/python -m pytest $(PARALLEL) -p tests.times --times build/test-times.txt

# The oldest torch that pyproject.toml allows, which hosts with GPUs have; PYTHON=python3.11 and python3.12 are both meant.
OLDEST := build/oldest-$(notdir $(PYTHON))

test-oldest: $(OLDEST)/.installed  ## the default tests, and those of hubs, on the oldest libraries that read weights
	$(OLDEST)/bin/python -m pytest $(PARALLEL)
	$(OLDEST)/bin/python -m pytest -m slow tests/end_to_end/test_remote_sources.py

$(OLDEST)/.installed: pyproject.toml tests/requirements/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]' -r tests/requirements/oldest.txt
	touch $@

# Needs no GPU: Triton compiles for GPUs that are not here, and fake tensors run the networks on one.
verify-gpu:  ## the GPU path without a GPU: kernels compiled, networks traced, bytes and launches counted
	@$(MAKE) --no-print-directory build/gpu/.installed || { echo "verify-gpu: SKIPPED, torch's CUDA build and Triton cannot be installed here"; exit 0; }; \
	test ! -f build/gpu/.installed || { build/gpu/bin/python -m benchmarks.paper --arithmetic \
		&& build/gpu/bin/python -m pytest -m 'slow or not slow' tests/models/cuda tests/models/fused; }

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

# SHORT=1 for two minutes that show that all of it works, in place of half an hour.
drill: $(STAMP)  ## overload, kills, faults: what was tried and what was lost
	$(BIN)/python -m tests.drills $(if $(SHORT),--short)

drill-rollouts: $(STAMP)  ## two services behind nginx and HAProxy, replaced and killed under load
	$(BIN)/python -m tests.drills --only rollouts $(if $(SHORT),--short)

alert-series: $(STAMP)  ## the real service in every state that an alert is for, as series for promtool
	$(BIN)/python -m tests.drills.states

DURATION ?= 1800

soak: $(STAMP)  ## mixed traffic with random kills for DURATION=1800 seconds
	$(BIN)/python -m tests.drills.soak --seconds $(DURATION)

# Two environments: KerasCV, and the heads of KerasHub before 0.27, want a Keras of 2024.
ORIGINALS := build/originals build/originals-2024

test-originals: $(ORIGINALS:=/.installed)  ## checkpoints against the libraries they come from
	for place in $(ORIGINALS); do $$place/bin/python -m pytest -m originals tests/models/test_originals.py || exit; done

# pip finds no versions that suit both TensorFlow, which KerasHub of 2024 brings along, and all that the other tests need.
build/originals-2024/.installed: EXTRA :=

test-kserve: build/kserve/.installed  ## /v2 through KServe's own client
	build/kserve/bin/python -m pytest -m kserve

test-ray: build/ray/.installed  ## service.batch through a local Ray
	build/ray/bin/python -m pytest -m ray tests/end_to_end/test_ray.py

# SAMPLE=150 SEED=1: which faults. FILES="service/engine/batcher.py" for some modules only.
SAMPLE ?= 150
SEED ?= 1

test-mutations: build/mutation/.installed  ## SAMPLE=150 faults in the engine and in /predict, one at a time: do the tests find them?
	build/mutation/bin/python -m tests.mutation --sample $(SAMPLE) --seed $(SEED) $(if $(FILES),--files $(FILES))

EXTRA := dev

# deploy/install takes torch's CPU build where there is one.
build/gpu/.installed: pyproject.toml
	$(PYTHON) -m venv build/gpu
	build/gpu/bin/python deploy/install dev gpu -- $(PIP_ARGS)
	touch $@

build/%/.installed: pyproject.toml tests/requirements/%.txt
	$(PYTHON) -m venv build/$*
	build/$*/bin/python deploy/install $(EXTRA) tests/requirements/$*.txt -- $(PIP_ARGS)
	touch $@

fuzz: build/fuzz/.installed  ## damaged images, hostile requests, coverage-guided (FUZZ_SECONDS=60 a target)
	tests/fuzz/run.sh

release: $(STAMP)  ## VERSION=0.2.0: write, test, build and tag a version; nothing leaves this machine
	$(BIN)/python deploy/release $(VERSION)

audit: $(STAMP)  ## known vulnerabilities, suspicious code, and an SBOM in build/audit
	$(BIN)/python deploy/audit

test-page: $(STAMP)  ## the page in headless Chromium
	tests/page/run.sh

check: $(STAMP)  ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

verify-deploy:  ## container, manifests, rules and dashboard, with the real tools
	deploy/verify
