# One command for each need; `make` alone lists them.
#
# The work is done by scripts under deploy/setup/ and tests/, which can be run
# without make as well. Caches lie under $(SUMUN_CACHE), outside the clone, so
# that a fresh clone does not compile the dependencies again.

SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The steps depend on the order they are named in; cargo is parallel by itself.
.NOTPARALLEL:

export SUMUN_CACHE ?= $(HOME)/.cache/sumun
export CARGO_TARGET_DIR ?= $(SUMUN_CACHE)/target
# Where tests, demo and benchmarks find the three programs.
export SUMUN_BIN := $(CURDIR)/target/release

.PHONY: help setup setup-test setup-bench build packages demo lint test test-kernels test-aarch64 test-faults bench clean

help:
	@echo 'make demo         set up, build, and watch an attack being recorded'
	@echo 'make build        the programs, in target/release/'
	@echo 'make test         everything: lint, unit tests, the real kernel, virtual machines'
	@echo 'make test-kernels the kernel side on 5.10, 6.1, 6.12 and the newest kernel'
	@echo 'make test-aarch64 the agent for aarch64, its tests under emulation'
	@echo 'make test-faults  the fault tests in their long form, 1,000 pods, 10,000 cgroups'
	@echo 'make packages     .deb, .rpm and a tarball, in target/packages/'
	@echo 'make lint         format, clippy (both sides), dependencies'
	@echo 'make bench        the figures, on the screen and under target/bench/'
	@echo 'make setup        install what building needs (Debian 12)'
	@echo 'make setup-test   install what testing needs as well'
	@echo 'make setup-bench  and auditd, bpftrace and nginx, which it is measured beside and with'
	@echo 'make clean        remove target/ and the caches under $(SUMUN_CACHE)'

setup:
	@deploy/setup/setup

setup-test:
	@deploy/setup/setup --test
	tests/vm/fetch-kernels
	tests/nspawn/fetch-root
	tests/aarch64/fetch-std

setup-bench:
	@deploy/setup/setup --bench

build: setup
	@deploy/setup/build

packages: build
	@deploy/packages/static
	deploy/packages/build

demo: build
	@deploy/demo/run

lint: setup
	@deploy/setup/lint

# In this order: a formatting slip is told before anything long has run.
test: lint setup-test build
	@tests/run

# A part of `make test`, alone.
test-kernels: setup-test build
	@export SUMUN_GUESTS=alone
	tests/run --test kernels

test-aarch64: setup-test
	@tests/aarch64/run

test-faults: setup-test build
	@export SUMUN_FAULTS=long
	tests/run --test '*fault*' --test pods --test identity -- --nocapture --test-threads=1

bench: setup-bench build
	@tests/bench/run

clean:
	@for path in target agent-ebpf/target "$(SUMUN_CACHE)"/{target,tools,kernels,nspawn,aarch64,venv,apt}; do
		[ -e "$$path" ] || continue
		echo "removing $$path"
		rm -rf "$$path"
	done
