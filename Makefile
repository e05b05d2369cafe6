# NVFP4 pretraining playbook. `make` says what there is to do; scripts/playbook/cli/make/targets.py says what each target
# is, and options.py beside it what it takes.

# What was typed goes to scripts/make.py as it was typed, NAME=value@1 with every @ of its own as @0: neither make nor a
# shell may read it. So no variable of the command line is expanded or exported here.
override typed := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
unexport $(typed)
override export PLAYBOOK_TYPED := $(foreach name,$(typed),$(subst @,@0,$(name)=$(value $(name)))@1)
override export PLAYBOOK_GOALS := $(MAKECMDGOALS)
override export PLAYBOOK_PYTHON := $(or $(value PYTHON),python3)
override export PLAYBOOK_TARGET = $@
override SHELL := /bin/sh
override .SHELLFLAGS := -c

.DEFAULT_GOAL := help
.NOTPARALLEL:

override TARGETS := help help-all \
  doctor models precisions estimate show-config selfcheck \
  compare nvfp4 bf16 train ablate \
  profile sensitivity history gate results \
  data sft lora eval export \
  submit jobs logs cancel \
  attach stop clean shell image \
  test test-gpu test-readme test-versions test-engine test-shapes test-report test-parallel test-slurm lint bench
.PHONY: $(TARGETS)

$(TARGETS) .DEFAULT:
	@command -v "$$PLAYBOOK_PYTHON" >/dev/null || { echo "make: $$PLAYBOOK_PYTHON is not installed; install Python 3.11 or 3.12 or name it: make PYTHON=..." >&2; exit 2; }; \
	exec "$$PLAYBOOK_PYTHON" scripts/make.py
