# Everything is installed into this checkout: .venv/ and .bramble/. Outside it: the lab's image and builds in ~/.cache/bramble, a
# Python of uv's for this user where the system's is older than 3.12, and Debian packages, which are said first.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
LAB ?= lab
NODES ?= 3

.PHONY: help
help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install the tools of the controller into .venv
	@tools/bootstrap.sh controller
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "Set up. Next: '. $(BIN)/activate' and write your nodes into inventory/pi/hosts.yml. With no Pi: 'make demo'")

.PHONY: setup-dev
setup-dev: ## Install the tools for working on Bramble into .venv
	@tools/bootstrap.sh dev

.PHONY: demo
demo: setup ## A three-node cluster in containers, and an answer from it (needs root or sudo for podman)
	@$(BIN)/bramble demo --name $(LAB) --nodes $(NODES)

.PHONY: lab-up
lab-up: setup ## Boot the lab's nodes, no more
	@$(BIN)/bramble lab up --name $(LAB) --nodes $(NODES)

.PHONY: lab-down
lab-down: setup ## Remove the lab and all that it made
	@$(BIN)/bramble lab down --name $(LAB)

.PHONY: lint
lint: setup-dev ## ruff, mypy, ansible-lint, yamllint, shellcheck
	@tools/test.sh lint

.PHONY: check
check: setup-dev ## What needs no lab: lint, unit, contract and gateway tests
	@tools/test.sh lint fast

.PHONY: test
test: setup-dev ## Every check and test, on labs of its own (needs root or sudo for podman)
	@tools/test.sh lint fast roles cluster

.PHONY: lock
lock: setup-dev ## Write requirements/*.txt from pyproject.toml
	@tools/lock.sh

.PHONY: clean
clean: ## Remove what was installed into this checkout (not the lab: make lab-down)
	rm -rf .venv .bramble dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
