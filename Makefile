# Every target sets up what it needs: a virtual environment in .venv, once.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
RUN := .venv/bin/python
READY := .venv/.ready
# The value of a variable as one word of the shell, whatever is in it; nothing where it is empty.
quoted = $(if $(value $(1)),'$(subst ','\'',$(value $(1)))')

.DEFAULT_GOAL := help
.PHONY: help setup test test-avx2 test-all soak lint list experiment status sweep cost measure figures results gather verify claims report docs bench bench-kernels bench-by-hand bench-blocks bench-training bench-gpu clean

help: ## show this help
	@echo "What filter groups buy, and what they learn."
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make experiment NAME=quickstart                          the first thing to try"
	@echo '  make experiment NAME=quickstart ARGS="--recipe.lr=0.05"  override any key (ARGS=--help lists them)'
	@echo '  make cost MODEL=alexnet ARGS="--model.groups=2 --json"   what a network costs'

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "setting up .venv (once; a minute or two) …"
	@test -x $(RUN) || "$(PYTHON)" -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[suite,dev]"
	@touch $@

setup: $(READY) ## create the virtual environment (every other command does so if needed)

test: $(READY) ## run the tests (under 4 minutes on two cores)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow and not soak" --numprocesses=auto --dist=worksteal

test-avx2: $(READY) ## run the operator's tests as on a CPU without AVX-512 and without bf16 units (within a minute)
	@OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(RUN) -m pytest --numprocesses=auto \
		-m "not slow and not soak" tests/gconv/test_conv.py tests/gconv/operator/test_ops.py tests/gconv/test_block.py tests/gconv/kernels/test_choose.py

test-all: $(READY) ## run the slow tests too
	@$(RUN) -m pytest -m "not soak"

soak: $(READY) ## interrupt, damage and double studies many times (about 5 minutes)
	@$(RUN) -m pytest -m soak tests/soak $(ARGS)

lint: $(READY) ## check style, imports and types
	@.venv/bin/ruff check . && .venv/bin/ruff check --preview --select PLW1514 . && .venv/bin/ruff format --check . && .venv/bin/lint-imports --no-logo --no-cache && .venv/bin/pyright

list: $(READY) ## list the studies
	@$(RUN) -m experiments list $(ARGS)

experiment: $(READY) ## run a study: NAME=quickstart [PROFILE=cpu] [GPUS=4] [ARGS="--key=value …"]
	@$(RUN) -m experiments run $(call quoted,NAME) $(if $(PROFILE),--profile=$(call quoted,PROFILE)) $(if $(GPUS),--gpus=$(call quoted,GPUS)) $(ARGS)

status: $(READY) ## show what is done, running, failed and still to do: [NAME=quickstart] [ARGS="--json"]
	@$(RUN) -m experiments status $(call quoted,NAME) $(ARGS)

sweep: $(READY) ## search over a sweep file: NAME=photos-bayes [ARGS="--runs=12 --workers=2 --local"]
	@$(RUN) -m experiments sweep $(call quoted,NAME) $(ARGS)

cost: $(READY) ## count parameters, MACs and activations: MODEL=alexnet | torchvision:resnet50 [ARGS=…]
	@$(RUN) -m experiments cost $(call quoted,MODEL) $(ARGS)

measure: $(READY) ## measure a network trained elsewhere: MODEL=resnet18 CHECKPOINT=file DATA=folder [ARGS=…]
	@$(RUN) -m experiments measure $(if $(MODEL),--model=$(call quoted,MODEL)) $(if $(CHECKPOINT),--checkpoint=$(call quoted,CHECKPOINT)) $(if $(DATA),--data=$(call quoted,DATA)) $(ARGS)

figures: $(READY) ## draw figures again: NAME=quickstart; of all recorded studies without NAME; NAME=connections [ARGS="--model=…"]
	@$(RUN) -m experiments figures $(call quoted,NAME) $(ARGS)

results: $(READY) ## copy a study's tables, figures and packed runs to results/ and the docs: NAME=quickstart
	@$(RUN) -m experiments results $(call quoted,NAME) $(ARGS)

gather: $(READY) ## add runs of a study that were trained elsewhere: FROM=folder-or-archive NAME=quickstart [PROFILE=cpu]
	@$(RUN) -m experiments gather $(call quoted,NAME) $(if $(FROM),--from=$(call quoted,FROM)) $(if $(PROFILE),--profile=$(call quoted,PROFILE)) $(ARGS)

report: $(READY) ## one HTML page with verdicts, figures, tables, provenance: [NAME=quickstart], else of all results
	@$(RUN) -m experiments report $(call quoted,NAME) $(ARGS)

verify: $(READY) ## recompute what results/ and the README show from the packed runs: [NAME=quickstart] [ARGS="--retrain"]
	@$(RUN) -m experiments verify $(call quoted,NAME) $(ARGS)

claims: $(READY) ## print the verdict on every claim about filter groups [ARGS="--explain"]
	@$(RUN) -m experiments claims $(ARGS)

docs: $(READY) mkdocs.yml ## build the documentation: site/index.html
	@.venv/bin/python -c "import mkdocs, material, mkdocstrings, nbconvert" 2>/dev/null || .venv/bin/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet $(ARGS)
	@echo "site/index.html"

bench: $(READY) ## time every kernel, the operator against the best by hand, training steps, images per second
	@$(RUN) -m benchmarks.kernels $(ARGS)
	@$(if $(filter -h --help,$(ARGS)),,$(RUN) -m benchmarks.by_hand)
	@$(if $(filter -h --help,$(ARGS)),,$(RUN) -m benchmarks.steps)
	@$(if $(filter -h --help,$(ARGS)),,$(RUN) -m benchmarks.training --model=lognet)

bench-kernels: $(READY) ## measure this machine's kernels for the choice between them, in two minutes at most
	@$(RUN) -m benchmarks.learn $(ARGS)

bench-by-hand: $(READY) ## time the operator against the best that one would write by hand, and the ceiling [ARGS=--help]
	@$(RUN) -m benchmarks.by_hand $(ARGS)

bench-blocks: $(READY) ## time convolution, batch norm, ReLU and shuffle: separately, and as one block
	@$(RUN) -m benchmarks.blocks $(ARGS)

bench-training: $(READY) ## time the training of the suite and of a plain script
	@$(RUN) -m benchmarks.training $(ARGS)

bench-gpu: $(READY) ## on a machine with a GPU: PART=1 tests, 2 measures kernels, 3 trains; writes to TO=runs/gpu
	@PYTHON="$${PYTHON:-$(RUN)}" TO=$(call quoted,TO) PART=$(call quoted,PART) benchmarks/gpu.sh

clean: ## remove the virtual environment and all caches (runs/ and data/ stay)
	@rm -rf .venv site .pytest_cache .ruff_cache .hypothesis build dist *.egg-info *.whl
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Folders have these names, so that make would call them up to date.
MEANT_analysis := measure MODEL=… CHECKPOINT=… DATA=…
MEANT_benchmarks := bench
MEANT_configs := list
MEANT_experiments := experiment NAME=…
MEANT_gconv := cost MODEL=…
MEANT_runs := status
MEANT_tests := test
FOLDERS := $(patsubst MEANT_%,%,$(filter MEANT_%,$(.VARIABLES)))
.PHONY: $(FOLDERS)
$(FOLDERS):
	$(error make $@: no such command; did you mean `make $(MEANT_$@)`? `make help` lists them all)
