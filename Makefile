# Two commands do all of their own set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A process a core, none with threads of its own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4

.PHONY: help setup test slow coverage check lint types format lines architecture demo cost torch-cost bench-table fleet-plan claim gpu-bench gpu-page forms coverage-report proof-report field-torch contract precision-table engines-report report-picture robustness mutation fuzz environments demo-fleet many-cost integrations docs tour diagram release-check dist clean

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
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev,ray]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps torchvision timm
	$(BIN)/pip install --quiet pillow pyyaml huggingface_hub
	touch $@

test: check  ## lint, types and the tests of up to ten seconds; TESTS= chooses among them
	$(PYTEST) $(TESTS) -m 'not slow'

slow: $(STAMP)  ## the tests that take longer: many broken models, kills, large files, engines
	$(PYTEST) $(TESTS) -m slow

coverage: $(STAMP)  ## lines and branches of fuse/ that its own tests reach; fails below 95 % of either
	mkdir -p $(BUILD)
	$(PYTEST) tests/fuse -m 'not slow' --cov --cov-report=json:$(BUILD)/coverage.json
	$(BIN)/python tools/coverage_floor.py $(BUILD)/coverage.json

check: lint types

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

format: $(STAMP)  ## put every file into the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lines:  ## lines of code by folder, neither blank, comment nor docstring
	$(PYTHON) tools/structure/count_lines.py

architecture: $(STAMP)  ## examples and every function that a model passes, into docs/architecture.md
	$(BIN)/python tools/structure/examples.py docs/architecture.md
	$(BIN)/python tools/structure/data_path.py --write docs/architecture.md

demo: $(STAMP)  ## the whole pipeline: train, fold, prove, export, build an engine, measure, report
	$(BIN)/python examples/digits/road.py $(BUILD)/demo

demo-fleet: $(STAMP)  ## a plan over eight networks, on this machine and again through a local Ray cluster
	$(BIN)/python examples/many/demo.py $(BUILD)/many

many-cost: $(STAMP)  ## 200 small files by `convbn run` against a shell loop over `convbn fuse`, interleaved
	$(BIN)/python tools/performance/many.py

cost: $(STAMP)  ## CPU and memory of `convbn fuse` against onnx.save(onnx.load(f)), interleaved
	$(BIN)/python tools/performance/fuse_cost.py

torch-cost: $(STAMP)  ## CPU of folds and captures of modules against torch.fx, torch.export and a run, interleaved; memory
	$(BIN)/python tools/performance/torch_cost.py

bench-table: $(STAMP)  ## twelve networks on the CPU, unfused, fused by the runtime, fused by convbn, into docs/bench
	$(BIN)/python tools/performance/bench_table.py docs/bench

fleet-plan: $(STAMP)  ## planning of 10,000 models for 12 targets, a dry run: seconds and memory
	$(BIN)/python tools/performance/fleet_plan.py

claim: $(STAMP)  ## a ResNet and a VGG in eager PyTorch, unfused against folded, into docs/claim.md
	$(BIN)/python tools/performance/claim.py docs/claim.md docs/bench/claim.json

gpu-bench: $(STAMP)  ## unfused against folded on a GPU, in order of worth, SECONDS=600 (again to go on)
	$(BIN)/python tools/gpu/measure.py $(BUILD)/gpu --seconds $(or $(SECONDS),600)

gpu-page: $(STAMP)  ## docs/gpu.md, its picture and the README's sentence from docs/bench/gpu-*.json
	$(BIN)/python tools/gpu/page.py

forms: $(STAMP)  ## exact rewrites that are not made, timed against what is left in their place
	$(BIN)/python tools/performance/forms.py

# Peers without their dependencies, which are here already or would change what is.
coverage-report: $(STAMP)  ## BatchNorms left and latency, convbn and its peers on timm and torchvision networks
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps onnxslim onnxoptimizer onnxsim
	$(BIN)/python tools/coverage_report/report.py --cache $(BUILD)/field --out docs/coverage.md --json docs/coverage.json --field docs/field-torch.json --latency --openvino
	$(BIN)/python tools/coverage_report/report.py --domains --cache $(BUILD)/field --out docs/coverage-domains.md --peers convbn --no-torch

proof-report: $(STAMP)  ## those networks in three exports, proven, and with one fold off by 1 %, into docs/proof-networks.md
	$(BIN)/python tools/proof_report/report.py --cache $(BUILD)/field --out docs/proof-networks.md --json docs/proof-networks.json

# In an environment of its own, which sees the one of the project: none of these brings another torch along.
FIELD := $(BUILD)/field-torch
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
field-torch: $(STAMP)  ## networks of ultralytics, transformers, segmentation_models_pytorch and torchvision in every form
	$(BIN)/python -m venv $(FIELD)
	$(BIN)/python $(PURELIB) > $$($(FIELD)/bin/python $(PURELIB))/base.pth
	$(FIELD)/bin/pip install --quiet --no-deps --requirement tools/field_torch/requirements.txt
	OMP_NUM_THREADS=1 PYTHONPATH=src:tools:tests $(FIELD)/bin/python -m field_torch.report --out docs/field-torch.md --json docs/field-torch.json

contract: $(STAMP)  ## hold every call of TensorRT against its bindings, 10.12 to 11.4 (downloads small wheels)
	$(BIN)/python tools/tensorrt_contract.py $(BUILD)/contract

precision-table: $(STAMP)  ## accuracy of three trained networks in fp32, fp16, bf16 and int8, ours and other tools, into docs/precision.md
	$(BIN)/python examples/digits/precisions.py docs/precision.md

engines-report: $(STAMP)  ## Scale layers, sizes and build times of three networks in three precisions
	$(BIN)/python tools/performance/engines.py docs/engines.md docs/engines.json

report-picture: $(STAMP)  ## docs/img/report.png, the picture of docs/bench/table.json as a page, light and dark
	$(BIN)/python tools/performance/report_picture.py docs/bench/table.json docs/img/report.png

robustness: $(STAMP)  ## broken models and every test of a fault, into docs/robustness.md
	$(BIN)/python tools/robustness/report.py docs/robustness.md docs/robustness.json

mutation: $(STAMP)  ## one changed expression after the other in the fold and the proof (ONLY=fold|proof, SAMPLE=7 for a tenth, WITHIN=fuse/algebra for all in it), into docs/mutation.md
	$(BIN)/python tools/mutation/run.py $(BUILD)/mutation docs/mutation.md docs/mutation.json $(addprefix --only ,$(ONLY)) $(addprefix --sample ,$(SAMPLE)) $(addprefix --within ,$(WITHIN))

fuzz: $(STAMP)  ## broken models and random graphs of other seeds, then coverage-guided bytes (atheris), MINUTES=5 each
	$(BIN)/python tools/robustness/fuzz.py seeds --minutes $(or $(MINUTES),5)
	$(BIN)/python tools/robustness/fuzz.py graphs --minutes $(or $(MINUTES),5) --crashes $(BUILD)/fuzz
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python tools/robustness/fuzz.py bytes --minutes $(or $(MINUTES),5) --crashes $(BUILD)/fuzz --corpus $(BUILD)/fuzz-corpus

environments: $(STAMP)  ## the lowest supported versions, the newest, the core alone: fresh environments (12 GB) and a smoke test
	$(BIN)/python tools/robustness/environments.py $(BUILD)/environments --markdown docs/environments.md

# An environment of their own: Olive brings transformers, which the stand-in for torchvision's operators would break.
integrations:  ## the adapters in convbn.integrations, each in the real package's hands (its own environment, 2 GB)
	$(PYTHON) -m venv $(BUILD)/integrations
	$(BUILD)/integrations/bin/pip install --quiet --constraint constraints.txt torch
	$(BUILD)/integrations/bin/pip install --quiet --constraint constraints.txt --editable '.[integrations]' pytest hypothesis
	$(BUILD)/integrations/bin/python -m pytest tests/integrations

docs: $(BUILD)/docs/.installed  ## the static site in build/site: documents, API reference, gallery, tour; strict, fetches nothing
	$(BUILD)/docs/bin/python tools/docs_site/build.py $(BUILD)/site

# Without PyTorch: the reference is read from the source.
$(BUILD)/docs/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BUILD)/docs
	$(BUILD)/docs/bin/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

tour: $(STAMP)  ## measure what docs/tour.md says, on the digits, and write its tables and figures in both languages
	$(BIN)/pip install --quiet matplotlib
	OMP_NUM_THREADS=1 $(BIN)/python examples/tour/measure.py docs/tour.json
	$(BIN)/python examples/tour/write.py docs/tour.json docs

diagram: $(STAMP)  ## docs/img/architecture.svg from the text in docs/architecture.md (npm, Chromium)
	mkdir -p $(BUILD)/mermaid && cd $(BUILD)/mermaid && npm pack --silent mermaid@11 && tar xzf mermaid-*.tgz
	$(BIN)/python tools/docs_site/diagram.py $(BUILD)/mermaid/package/dist/mermaid.min.js

release-check: dist  ## what is released: metadata, an install of the wheel alone in an empty environment, doctor
	$(BIN)/pip install --quiet twine
	$(BIN)/python -m twine check --strict $(BUILD)/dist/*
	rm -rf $(BUILD)/release && $(PYTHON) -m venv $(BUILD)/release
	$(BUILD)/release/bin/pip install --quiet $(BUILD)/dist/*.whl
	cd $(BUILD) && release/bin/convbn --version && release/bin/convbn doctor

dist: $(STAMP)  ## source distribution, and the wheel built from it
	$(BIN)/python -m build --quiet --outdir $(BUILD)/dist

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(BUILD) src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
