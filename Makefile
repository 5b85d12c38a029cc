# `make` alone prints the targets. Everything works from a fresh clone with Python alone.
.DEFAULT_GOAL := help
SHELL := /usr/bin/env bash
PYTHON ?= python3
export UV_PROJECT_ENVIRONMENT := .venv
RUN := .venv/bin

.PHONY: help setup demo test check slow bench docs format

help:  ## print the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:  ## make .venv and the network process
	@command -v uv >/dev/null || [ -x .boot/bin/uv ] || { $(PYTHON) -m venv .boot && .boot/bin/pip install -q uv; }
	@PATH="$$PWD/.boot/bin:$$PATH" uv sync --quiet --inexact
	@PATH="$$PWD/.boot/bin:$$PATH" netd/build.sh
	@# Debian's iproute2 and nftables make the hosts and NATs of the network tests; its diod, and its Linux in QEMU, are the other ends of the 9P tests; its zsh and fish try the completion
	@{ command -v ip && command -v zsh && command -v fish && PATH="$$PATH:/usr/sbin" command -v diodcat && PATH="$$PATH:/usr/sbin" command -v nft; } >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update -q && apt-get install -qy iproute2 nftables diod zsh fish; } >/dev/null
	@{ command -v qemu-system-x86_64 && command -v busybox; } >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update -q && apt-get install -qy --no-install-recommends qemu-system-x86 busybox-static; } >/dev/null
	@$(RUN)/python tests/tree/guest.py || echo "without it tests/tree/test_linux.py fails"

demo: setup  ## three nodes on this machine: a real batch, a kill -9, a restart
	@$(RUN)/python examples/demo.py

test: setup  ## all tests but the slow ones
	@$(RUN)/pytest -m "not slow" -n 2 --dist worksteal

check: setup  ## format, lint, types, layers, drawings, links, vectors
	@$(RUN)/ruff format --check --quiet .
	@$(RUN)/ruff check --quiet .
	@$(RUN)/basedpyright --level error
	@$(RUN)/lint-imports > /tmp/ipos-lint.$$$$ || { cat /tmp/ipos-lint.$$$$; exit 1; }; rm -f /tmp/ipos-lint.$$$$
	@$(RUN)/python docs/make.py --check
	@$(RUN)/python instrument/build.py --check
	@$(RUN)/python vectors/make.py --check
	@cd netd && test -z "$$(gofmt -l . 2>/dev/null)" || { echo "gofmt: $$(gofmt -l .)"; exit 1; }

format:  ## format and mend what can be mended
	@$(RUN)/ruff format --quiet . && $(RUN)/ruff check --fix --quiet .

slow: setup  ## soaks and long fuzzing
	@$(RUN)/pytest -m slow -n 2

bench: setup  ## the numbers of docs/performance.md
	@$(RUN)/python bench/streams.py
	@$(RUN)/python bench/batch.py
	@$(RUN)/python bench/estimate.py
	@$(RUN)/python bench/worker.py
	@$(RUN)/python bench/store.py
	@$(RUN)/python bench/keys.py
	@$(RUN)/python -m bench.engine
	@$(RUN)/python bench/image.py
	@$(RUN)/python bench/ninep.py
	@$(RUN)/python bench/namespace.py
	@$(RUN)/python bench/node.py
	@$(RUN)/python bench/loop.py
	@$(RUN)/python bench/cli.py

docs: setup  ## make the drawings from the machines' tables
	@$(RUN)/python docs/make.py
