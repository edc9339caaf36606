# The commands of the project. `make up` is the main job, `make test` is all tests, `make check` the part without daemons.
SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
PROFILE ?= dev
# Where nothing was built yet, what makes the next build quick makes this one slow. Said once for all scripts: with another
# answer in between, all would be built again.
ifeq ($(wildcard target/debug/incremental/*),)
export CARGO_INCREMENTAL := 0
endif
BIN := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/reeve

.PHONY: help build up down check test soak bench schemas clean

help: ## What can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: ## Build the `reeve` binary
	@scripts/setup.sh build
	cargo build --profile $(PROFILE) -p cli

up: ## The main job: a one-node cluster here, with the hello service running in it
	@scripts/setup.sh run
	cargo build --profile $(PROFILE) -p cli
	@scripts/up.sh $(BIN)

down: ## Take away all that `make up` made
	@scripts/down.sh $(BIN)

check: ## The fast part: formatting, lints, unit and property tests; no daemon
	@scripts/setup.sh build
	@scripts/check.sh

test: ## Every test, on real etcd and real Docker engines
	@scripts/setup.sh test
	@scripts/check.sh
	@scripts/test.sh

soak: ## For HOURS: histories of the whole system, the planner's laws and the stores on new seeds; goes on where it stopped
	@scripts/setup.sh test
	@scripts/soak.sh

bench: ## The speeds that the design asks for, beside what is reached
	@scripts/setup.sh test
	@scripts/bench.sh

schemas: ## Generate manifests/schema/ again
	REEVE_UPDATE=1 cargo test -q -p schemas --test published

clean: down ## Also remove what was built
	cargo clean
