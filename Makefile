# The day of somebody who works on oncofed. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help demo test test-thorough test-fast check format docs bench bench-full bench-bundle bench-table gpu faults security wild hospital mlflow services constraints dist release version clean another-build

VENV := .venv
BIN := $(VENV)/bin
# Compiled modules are kept, whatever the environment says: each process of a federation would compile oncofed anew, and
# each of the tests' workers all tests.
unexport PYTHONDONTWRITEBYTECODE
CONSTRAINTS := provisioning/constraints.txt
REQUIREMENTS := provisioning/requirements.txt
TORCH := 2.13.0
# Processes that test: three for each core, as many tests wait for processes that they started.
WORKERS ?= $(shell expr 3 '*' $$(nproc 2>/dev/null || echo 2))
PYTEST := -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

# The first of these that runs and is of a version that oncofed supports. Another one: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

# With a CUDA GPU the CUDA build of torch is installed ("===" shuts out other builds of the same version); without one,
# whatever build the package index has. Another index decides by itself, is remembered, and replaces another build that
# is there: a small CPU build, make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu; for a driver before 580 the
# same with cu126 for cpu.
CUDA := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
TORCH_THERE := $(shell cat $(VENV)/torch.installed 2>/dev/null)
TORCH_INDEX ?= $(TORCH_THERE)
TORCH_SPEC := torch$(if $(TORCH_INDEX),==,$(if $(filter-out 0,$(CUDA)),===,==))$(TORCH)
TORCH_ARGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) --extra-index-url https://pypi.org/simple)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

help: ## list what can be done
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo.installed ## four hospitals train one model, on this machine (about 3 minutes); TARGET=survival for outcomes
	@$(BIN)/oncofed demo $(if $(TARGET),--target $(TARGET))

test: $(VENV)/dev.installed ## the tests, real federations among them (about 12 minutes on 2 cores)
	@$(BIN)/python $(PYTEST) -m 'not thorough'

test-thorough: $(VENV)/dev.installed ## the others: processes killed at every step, every job in FLARE's simulator (about 12 minutes)
	@$(BIN)/python $(PYTEST) -m thorough

test-fast: $(VENV)/dev.installed ## the quick tests next to what changed since the last commit, of at most 40 files (FROM=main: since main)
	@files=$$($(BIN)/python tests/changed.py $(FROM)) || exit; \
		test -z "$$files" || $(BIN)/python $(PYTEST) -m 'not slow and not federation' $$files

check: $(VENV)/dev.installed ## style, format, types, spelling, who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/typos

format: $(VENV)/dev.installed ## put the code into the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/dev.installed ## every benchmark with little work: that it runs (BENCH_ARGS=--repeats=1 for less)
	@$(BIN)/oncofed bench run all --quick $(BENCH_ARGS)

bench-full: $(VENV)/dev.installed ## every benchmark, figures that count (about 2 hours on 2 cores; be alone on the machine)
	@$(BIN)/oncofed bench run all

bench-bundle: $(VENV)/dev.installed ## one archive to measure on a GPU machine without a network (PYTHON_THERE=3.12)
	@$(BIN)/python benchmarks/lab/bundle.py workspace/oncofed-bench.tar.xz $(if $(PYTHON_THERE),--python $(PYTHON_THERE))

bench-table: $(VENV)/dev.installed ## write the last figures into benchmarks/README.md
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/lab/table.py

gpu: $(VENV)/dev.installed ## on a GPU: is what is said of GPUs true? Ten minutes (DEVICE=cpu walks it; ONLY=NAME,... SECONDS=120)
	@PYTHONPATH=benchmarks:benchmarks/lab:tests $(BIN)/python -m gpu_checks $(if $(DEVICE),--device $(DEVICE)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(OUT),--out $(OUT))

faults: $(VENV)/dev.installed ## federations with one fault each: what happens, and the time that it costs (about 20 minutes)
	@$(BIN)/oncofed bench run recovery

security: $(VENV)/security.installed ## every attack of the tests, with what stopped it; bill of materials; known vulnerabilities
	@$(BIN)/python $(PYTEST) -q -m attack
	@$(BIN)/python provisioning/supply_chain.py

wild: $(VENV)/dev.installed ## every file of this field that users stumbled over, and whether it is read right
	@$(BIN)/python $(PYTEST) -q -m wild

hospital: ## where root may install Debian packages: an Orthanc, dcmtk and PostgreSQL, for tests and benchmarks
	@command -v Orthanc >/dev/null && test -f /usr/share/orthanc/plugins/libOrthancDicomWeb.so && command -v getscu >/dev/null \
		&& ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
			|| { echo "needs root and apt-get; else install orthanc, orthanc-dicomweb, dcmtk and postgresql yourself"; exit 2; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			orthanc orthanc-dicomweb dcmtk postgresql >/dev/null; }

services: hospital mlflow ## the same for all servers of the tests: also MLflow, Prometheus and Slurm
	@command -v promtool >/dev/null && command -v slurmctld >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			prometheus slurmctld slurmd slurm-client munge >/dev/null; }

mlflow: $(BIN)/python ## a real MLflow server for the tests of tracking, in an environment of its own (about 1 GB)
	@test -x workspace/.cache/mlflow/bin/mlflow || { $(BIN)/python -m venv workspace/.cache/mlflow && \
		workspace/.cache/mlflow/bin/python -m pip install --quiet --disable-pip-version-check 'mlflow>=3.1'; }

constraints: $(VENV)/dev.installed ## write provisioning/constraints.txt and requirements.txt anew
	@$(BIN)/python -m pip install --quiet uv
	@{ sed -n '/^#/p' $(CONSTRAINTS); $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
		--no-header --extra demo --extra pathology --extra encoders --extra radiology --extra dicom --extra hospital --extra onnx --extra jpeg12 \
		--extra privacy --extra tracking --extra metrics --extra tune --extra gpu --extra dev --extra docs --extra security --extra release pyproject.toml; \
		} > $(VENV)/constraints.txt && mv $(VENV)/constraints.txt $(CONSTRAINTS)
	@{ sed -n '/^#/p' $(REQUIREMENTS); $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
		--no-header --generate-hashes --default-index https://pypi.org/simple --constraint $(CONSTRAINTS) \
		--extra pathology --extra encoders --extra radiology --extra dicom --extra hospital --extra jpeg12 --extra privacy --extra metrics --extra gpu pyproject.toml; \
		} > $(VENV)/requirements.txt && mv $(VENV)/requirements.txt $(REQUIREMENTS)

docs: $(VENV)/docs.installed ## the documentation as a site, in workspace/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/site/build.py
	@echo "To read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory workspace/docs"

dist: $(VENV)/dev.installed ## wheel and source archive in workspace/dist, and the wheel tried outside the checkout
	@$(BIN)/python provisioning/release.py dist
	@$(BIN)/python tests/outside.py workspace/dist/*.whl

release: $(VENV)/release.installed ## both, bill of materials, provenance, digests; KEY=FILE signs with a key of ssh-keygen
	@$(BIN)/python provisioning/release.py release $(if $(KEY),--key $(KEY))

version: $(VENV)/release.installed ## set the version everywhere, and gather docs/changes: make version VERSION=0.2.0
	@$(BIN)/python provisioning/release.py version $(VERSION)

clean: ## remove the virtual environment and what runs left
	rm -rf $(VENV) workspace/runs workspace/.cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "oncofed needs Python 3.10, 3.11 or 3.12; found none. make demo PYTHON=/path/to/python"; exit 2; }
	@echo "creating $(VENV) with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/torch.installed: $(BIN)/python $(CONSTRAINTS) $(if $(filter-out $(TORCH_THERE),$(TORCH_INDEX)),another-build)
	@echo "installing $(TORCH_SPEC) …"
	@$(if $(TORCH_INDEX),$(BIN)/python -m pip uninstall --quiet --disable-pip-version-check --yes torch 2>/dev/null,:)
	@$(PIP) '$(TORCH_SPEC)' $(TORCH_ARGS)
	@echo '$(TORCH_INDEX)' > $@

another-build:

$(VENV)/demo.installed: $(VENV)/torch.installed pyproject.toml
	@echo "installing oncofed …"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev.installed: $(VENV)/demo.installed pyproject.toml
	@echo "installing the tests' tools …"
	@$(PIP) --editable '.[demo,pathology,encoders,radiology,dicom,hospital,onnx,privacy,dev]'
	@touch $@

$(VENV)/docs.installed: $(VENV)/dev.installed pyproject.toml
	@$(PIP) --editable '.[demo,pathology,encoders,radiology,dicom,hospital,onnx,privacy,dev,docs]'
	@touch $@

$(VENV)/release.installed: $(VENV)/dev.installed pyproject.toml
	@$(PIP) --editable '.[demo,pathology,encoders,radiology,dicom,hospital,onnx,privacy,dev,release]'
	@touch $@

$(VENV)/security.installed: $(VENV)/dev.installed pyproject.toml
	@$(PIP) --editable '.[demo,pathology,encoders,radiology,dicom,hospital,onnx,privacy,dev,security]'
	@touch $@
