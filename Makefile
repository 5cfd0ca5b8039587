# Type `make` for the targets. Every one of them sets up what it needs, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3       # the interpreter that makes the environment; 3.11 or newer
PYTHON := $(strip $(PYTHON))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLUSTER := $(VENV)/.cluster
LORA := $(VENV)/.lora

SWEEP ?= default
EXECUTOR ?=
DATA_DIR ?=
ARGS ?=
RUN ?=
NAME ?=
SEEDS ?= 0 1 2
SPLIT ?= test
PORT ?= 5000
ifneq ($(strip $(DATA_DIR)),)
export DATA_DIR
endif

.PHONY: help setup setup-cluster setup-lora lock sweep train cross-validate speedrun experiment evaluate finalize ensemble replicate rerun ui compare export data doctor bench scale \
	test test-slow test-integration check clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | expand -t 12
	@echo
	@echo 'variables: SWEEP=default  EXECUTOR=local  DATA_DIR=data  ARGS="optim.lr=3e-4"  RUN=<run id>  SEEDS="0 1 2"  SPLIT=test  PORT=5000  PYTHON=python3'

setup: $(READY) ## make .venv and install the locked requirements (every target does, once)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11: name another with PYTHON=python3.11"; exit 2; }
	@echo "setting up $(VENV), once: it installs the locked requirements (6.7 GB; two minutes or more, as fast as" \
		"the package index answers) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "$(VENV) is ready"

setup-cluster: $(CLUSTER) ## also what EXECUTOR=ray and EXECUTOR=slurm need

setup-lora: $(LORA) ## also what finetune=lora needs

$(CLUSTER) $(LORA): $(VENV)/.%: requirements-%.lock $(READY)
	@echo "adding $(if $(filter cluster,$*),Ray and submitit,peft) to $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

RESOLVE := uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command 'make lock'
define PRINT_EXTRAS
import sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print(*(line for name in sys.argv[1:] for line in extras[name]), sep="\n")
endef
export PRINT_EXTRAS

lock: ## resolve requirements.lock, requirements-cluster.lock and requirements-lora.lock anew (needs uv)
	$(RESOLVE) --extra dev pyproject.toml -o requirements.lock
	$(PYTHON) -c "$$PRINT_EXTRAS" ray slurm | $(RESOLVE) -c requirements.lock - -o requirements-cluster.lock
	$(PYTHON) -c "$$PRINT_EXTRAS" lora | $(RESOLVE) -c requirements.lock - -o requirements-lora.lock

sweep: $(READY) $(if $(filter ray slurm,$(EXECUTOR)),$(CLUSTER)) ## search learning rate, batch size and freezing; repeat it to go on
	@$(BIN)/python -m harness sweep sweep=$(SWEEP) $(if $(strip $(EXECUTOR)),sweep.executor.kind=$(EXECUTOR)) $(ARGS)

train: $(READY) ## train one configuration: make train ARGS="model=wide_cnn"
	@$(BIN)/python -m harness train $(ARGS)

speedrun: $(READY) ## 94 % on CIFAR-10 from scratch, once for each of SEEDS
	@$(BIN)/python -m experiments.performance.speedrun --seeds $(SEEDS) -- $(ARGS)

experiment: $(READY) ## a published training repeated and improved, or a study: make experiment NAME=keras_cnn_5 (hours; repeat it to go on)
	@$(BIN)/python -m experiments $(NAME) $(ARGS)

cross-validate: $(READY) ## train one configuration once for each fold: make cross-validate ARGS="model=wide_cnn data.folds=5"
	@$(BIN)/python -m harness cross-validate $(ARGS)

evaluate: $(READY) ## score a run's best checkpoint on SPLIT (test or val)
	@$(BIN)/python -m harness evaluate --split $(SPLIT) $(if $(RUN),--run $(RUN)) $(ARGS)

finalize: $(READY) ## the winner of the sweep that ran last, on the test split, once
	@$(BIN)/python -m harness finalize $(ARGS)

ensemble: $(READY) ## several trained models as one: make ensemble ARGS="SWEEP --top 5 --greedy --test"
	@$(BIN)/python -m harness ensemble $(ARGS)

replicate: $(READY) ## train the best of the sweep that ran last again, with fresh seeds
	@$(BIN)/python -m harness replicate $(ARGS)

rerun: $(READY) ## train a recorded run again as it was, its code included: make rerun RUN=<run id>
	@$(BIN)/python -m harness rerun $(RUN) $(ARGS)

ui: $(READY) ## browse the runs in MLflow on http://127.0.0.1:PORT
	@$(BIN)/python -m harness ui --port $(PORT) $(ARGS)

compare: $(READY) ## a table of the runs of the sweep that ran last
	@$(BIN)/python -m harness compare $(RUN) $(ARGS)

export: $(READY) ## write the best checkpoint as a verified bundle
	@$(BIN)/python -m harness export $(if $(RUN),--run $(RUN)) $(ARGS)

data: $(READY) ## what the data set holds, with pictures
	@$(BIN)/python -m harness data $(ARGS)

doctor: $(READY) ## what this machine has
	@$(BIN)/python -m harness doctor

bench: $(READY) ## measure the harness against public libraries (15 minutes)
	@$(BIN)/python -m experiments.performance.bench $(ARGS)

scale: $(READY) ## how many trials a second the database of sweeps bears (20 minutes)
	@$(BIN)/python -m experiments.scale $(ARGS)

# As many processes as there are cores, at most 8; one that has nothing left takes tests from another.
PYTEST := $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal

test: $(READY) ## the tests
	@$(PYTEST) $(ARGS)

test-slow: $(READY) ## the tests that take long
	@$(PYTEST) -m slow $(ARGS)

test-integration: $(CLUSTER) $(LORA) ## the tests with a real Ray, Slurm and PostgreSQL, where they are installed, and peft
	@$(BIN)/python -m pytest -m integration -rs $(ARGS)

check: $(READY) ## format, lint, types, import directions, every shipped config
	@$(BIN)/ruff format --check harness experiments tests
	@$(BIN)/ruff check harness experiments tests
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/config/test_shipped.py

clean: ## remove the environment and caches; data, runs and exports stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
