# make help tells the targets. Only Python 3.11 or later and a package index are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
TEST_WORKERS ?= 2
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help install install-dev demo test test-all chaos check format matcher clean

help:  ## Say what each target does.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, $$($(PYTHON) --version 2>&1) was found; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python setup.cfg setup.py pyproject.toml constraints.txt $(wildcard native/*)
	@echo "Installing into $(VENV): about 2.5 GB to download, 6 GB on disk (the index has torch for Linux with CUDA only). This takes minutes."
	@$(PIP) -e ".[cpu,entities]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the tools for tests and checks: about 150 MB more."
	@$(PIP) -e ".[cpu,sentences,eccv,entities,dev]"
	@touch $@

install: $(VENV)/.demo  ## Make .venv and install the packages.

install-dev: $(VENV)/.dev  ## Install the tools for tests and checks too.

demo: $(VENV)/.demo  ## Give real sentences the real photos that fit them; ends with a page to open.
	@$(BIN)/python examples/demo.py

test: $(VENV)/.dev  ## Run the fast tests.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile

test-all: $(VENV)/.dev  ## Run all tests.
	@$(BIN)/python -m pytest

chaos: $(VENV)/.dev  ## Kill, freeze, cut and refuse while a corpus is vokenized on a local cluster; writes docs/chaos.md.
	@PYTHONPATH=tests/helpers:. $(BIN)/python tests/chaos.py --kills 30 --table docs/chaos.md

check: $(VENV)/.dev  ## Format, lint and types are in order, and the fast tests pass.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile

format: $(VENV)/.dev  ## Format the code.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

matcher: $(VENV)/.demo  ## Train the example matcher anew: make matcher DATA=... WEIGHTS=... (see docs/recipes.md).
	@test -n "$(DATA)" -a -n "$(WEIGHTS)" || { echo "give DATA=folder of Flickr8k, WEIGHTS=file of EfficientNet-Lite0"; exit 2; }
	@$(BIN)/python jobs/train_xmatch.py --config jobs/configs/example_matcher.yaml --model.image.weights $(WEIGHTS) \
	  --train.captions $(DATA)/dataset_flickr8k.json --train.images $(DATA)/images --train.split train \
	  --valid.captions $(DATA)/dataset_flickr8k.json --valid.images $(DATA)/images --valid.split val \
	  --output $(CURDIR)/demo-output/matcher
	@$(BIN)/python jobs/eval_retrieval.py --model $(CURDIR)/demo-output/matcher/model --output $(CURDIR)/demo-output/matcher-eval \
	  --data.captions $(DATA)/dataset_flickr8k.json --data.images $(DATA)/images --data.split test

clean:  ## Remove what the demo made; .venv stays.
	@rm -rf demo-output
