# Two commands do all of their own set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup test check lint types format demo cost forms coverage-report contract dist clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the virtual environment with everything that development needs

# torch first: pinned, it comes as a CPU build where a bare `torch` may pull gigabytes of CUDA.
# torchvision and timm without their dependencies: the registry's torchvision wants a CUDA build of torch.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convbn needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps torchvision timm
	$(BIN)/pip install --quiet pillow pyyaml huggingface_hub
	touch $@

test: check  ## lint, types and every test that runs on this machine
	$(BIN)/python -m pytest

check: lint types

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

format: $(STAMP)  ## put every file into the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(STAMP)  ## the whole road: train, fold, prove, export, build an engine, measure, report
	$(BIN)/python examples/digits/road.py $(BUILD)/demo

cost: $(STAMP)  ## CPU and memory of `convbn fuse` against onnx.save(onnx.load(f)), interleaved
	$(BIN)/python tests/performance/fuse_cost.py

forms: $(STAMP)  ## exact rewrites that are not made, timed against what is left in their place
	$(BIN)/python tests/performance/forms.py

# Peers without their dependencies, which are here already or would change what is.
coverage-report: $(STAMP)  ## BatchNorms left and latency, convbn and its peers on timm and torchvision networks
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps onnxslim onnxoptimizer onnxsim
	$(BIN)/python tests/field/report.py --cache $(BUILD)/field --out docs/coverage.md --json docs/coverage.json --latency

contract: $(STAMP)  ## hold every call of TensorRT against its bindings, 10.12 to 11.4 (downloads small wheels)
	$(BIN)/python tests/contract/run.py $(BUILD)/contract

dist: $(STAMP)  ## source distribution, and the wheel built from it
	$(BIN)/python -m build --quiet --outdir $(BUILD)/dist

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(BUILD) src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
