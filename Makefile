# Everything a newcomer needs: `make run` serves, `make test` tests. Each sets the checkout up by itself.

PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help run test test-slow test-page test-originals test-kserve fuzz audit check format clean verify-deploy
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# PIP_ARGS is for what a site needs, such as --index-url with torch's CPU-only builds.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	touch $@

run: $(STAMP)  ## serve on http://127.0.0.1:8000 with the page at /
	$(BIN)/imagenet-serve serve --weights demo --port $(PORT)

test: $(STAMP)  ## the default test run
	$(BIN)/python -m pytest

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

# Two environments: KerasCV, and the heads of KerasHub before 0.27, want a Keras of 2024.
ORIGINALS := build/originals build/originals-2024

test-originals: $(ORIGINALS:=/.installed)  ## checkpoints against the libraries they come from
	for place in $(ORIGINALS); do $$place/bin/python -m pytest -m originals || exit; done

test-kserve: build/kserve/.installed  ## /v2 through KServe's own client
	build/kserve/bin/python -m pytest -m kserve

build/%/.installed: pyproject.toml tests/requirements/%.txt
	$(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]' -r tests/requirements/$*.txt
	touch $@

fuzz: build/fuzz/.installed  ## damaged images, hostile requests, coverage-guided (FUZZ_SECONDS=60 a target)
	tests/fuzz/run.sh

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
