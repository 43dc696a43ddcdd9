# SPDX-License-Identifier: GPL-2.0-only
# Entry points only; the work is done by the scripts they call.

.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16
	@echo 'Variables, with examples: scripts/run --help'

run: ## build the patched kernel, boot it as an emulated host, run its selftests
	@scripts/run

shell: ## the same, but give a shell in the emulated host
	@scripts/run --shell

demo: ## perf stat --topdown in a Linux guest, beside the host, with and without the series
	@scripts/demo

test: ## every gate: series, emulator, scripts, lab (FULL=1: all cells)
	@scripts/check

probe: ## what tools/probe says on each kind of emulated CPU and each reading of the documents
	@scripts/check --readings probe

kit: ## one tarball for a real machine: patches, tests, and what runs them and reports
	@scripts/kit

report: ## one HTML page of what make demo and make test have found
	@scripts/page.py

refresh: ## write patches/ from the series checked out in KDIR=/path/to/linux
	@scripts/refresh-patches "$(KDIR)"

clean: ## delete the cache: downloads, trees, builds, logs
	@scripts/clean

.PHONY: help run shell demo test probe kit report refresh clean
