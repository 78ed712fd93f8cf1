# Jubal. `make help` lists the targets. Needs Python 3.11 or newer, pip and make; nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
ARGS   ?=
# Tests at a time: one more than there are cores, as many of them wait for other processes.
JOBS    = $(shell $(BIN)/python -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')

.DEFAULT_GOAL := help
.PHONY: help setup serve chat fmt lint type test clients live-vllm bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Jubal needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian, apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Jubal into $(VENV) …"
	@$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Jubal and its test tools into $(VENV) …"
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

setup: $(VENV)/.dev ## the virtual environment with everything for development

serve: $(VENV)/.run ## install, fetch the embedded model, serve http://127.0.0.1:8000/v1 (ARGS="--port 8001")
	@exec $(BIN)/jubal serve $(ARGS)

chat: $(VENV)/.run ## talk to the running server in the terminal
	@exec $(BIN)/jubal chat $(ARGS)

fmt: $(VENV)/.dev ## format the sources
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

lint: $(VENV)/.dev ## ruff, and that everything is formatted
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

type: $(VENV)/.dev ## mypy --strict on src
	$(BIN)/mypy

test: $(VENV)/.dev ## the whole suite, the real model included (ARGS="-k chat" for a part, ARGS="-n 0" one after the other)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

clients: $(VENV)/.dev ## only the official SDKs against a started server
	$(BIN)/python -m pytest tests/clients $(ARGS)

live-vllm: $(VENV)/.dev ## Jubal in front of a real vLLM on this CPU; installs 3.5 GB into .cache/live-vllm once
	$(BIN)/python -m tests.live.vllm_server
	$(BIN)/python -m pytest -m live -s tests/live/test_vllm.py $(ARGS)

bench: $(VENV)/.dev ## measure gateway and embedded engine, write bench/results.md (ARGS=--quick)
	$(BIN)/python bench/run.py $(ARGS)

clean: ## remove the environment and caches, not your JUBAL_HOME folder
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/bin build dist
