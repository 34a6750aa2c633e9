PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# tests/ holds what lets a CUDA build of torchvision stand beside a CPU build of torch.
JOBS ?= 2
PYTEST := PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
DEMO_CLASSES := zero one two three four five six seven eight nine

.DEFAULT_GOAL := help
.PHONY: help demo demo-steps demo-text demo-text-steps test test-all lint gpu test-slurm clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev,pretrained,wandb,data,zero,text,evaluation]'
	@touch $@

demo:  ## Install, train on handwritten digits for a few minutes, draw all ten
	@start=$$(date +%s); $(MAKE) --no-print-directory demo-steps \
	  && echo "make demo took $$(($$(date +%s) - start)) s."

demo-steps: $(VENV)/installed
	$(BIN)/python -m regscale.train configs/digits.yaml name=demo
	$(BIN)/python -m regscale.sample --checkpoint runs/demo --class $(DEMO_CLASSES) --num-images 10
	@echo "The pictures are in runs/demo/samples; look at runs/demo/samples/drawn/grid.png first."

demo-text:  ## Install, train on captions for a few minutes, draw prompts and score them
	@start=$$(date +%s); $(MAKE) --no-print-directory demo-text-steps \
	  && echo "make demo-text took $$(($$(date +%s) - start)) s."

demo-text-steps: $(VENV)/installed
	$(BIN)/python -m regscale.train configs/shapecaps.yaml name=demo-text
	$(BIN)/python -m regscale.evaluate runs/demo-text --suite shapecaps --out runs/demo-text/prompts \
	  'kinds=[single_object, colors]' num_prompts=400
	@echo "The pictures are in runs/demo-text/prompts; look at prompts.png first, wrong ones are red."

lint: $(VENV)/installed-dev  ## ruff, mypy --strict, the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## Everything that CI checks
	$(PYTEST) -m "not slow and not gpu"

test-all: lint  ## Also what takes minutes, an hour at most; writes docs/benchmarks/test-all.md
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m tests.report -n $(JOBS)

# One process: scenarios share a lab, and each starts four tasks on few cores.
test-slurm: lint  ## All scenarios on a real Slurm, 15 minutes; writes docs/benchmarks/slurm.md
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m tests.slurm.report

# GPU_PYTHON=python3 takes an interpreter that has the packages already: nothing is installed.
gpu: $(if $(GPU_PYTHON),,$(VENV)/installed-dev)  ## GPU tests and benchmarks; writes docs/benchmarks
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest -m gpu tests/gpu
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu

clean:  ## Remove the virtual environment and caches, not the runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
