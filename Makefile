# NVFP4 pretraining playbook. `make` lists the targets; the README says what each is for.

PYTHON ?= python3
HOST   := .venv/host/bin/python
TEST   := .venv/cpu/bin/python

# Options, empty for the default that `make help` names.
MODEL ?=
ITERS ?=
WARMUP ?=
GBS ?=
MBS ?=
SEQ ?=
RUNTIME ?= auto
NPROC ?= 1
NODES ?= 1
TP ?=
PP ?=
CP ?=
DATA ?=
TAG ?=
GPU ?=
PRECISION ?=
EMULATE ?=
DRY_RUN ?=
JSON ?=
RUN ?=
JSON ?=
CONFIG ?=
PLUGIN ?=
TUNED ?=
BF16_TAIL ?=
BF16_HEAD ?=
ARGS ?=
FRESH ?=
CLEAN ?=
CLUSTER ?=
WAIT ?=
GPUS ?=
GPU_KIND ?=
TOKENS ?=
export TORCH_INDEX

# What the training takes, wherever it runs; and where and how to run it.
TRAINING = $(if $(MODEL),--model '$(MODEL)') $(if $(ITERS),--train-iters '$(ITERS)') \
          $(if $(WARMUP),--warmup-iters '$(WARMUP)') $(if $(GBS),--global-batch-size '$(GBS)') \
          $(if $(MBS),--micro-batch-size '$(MBS)') $(if $(SEQ),--seq-length '$(SEQ)') \
          $(if $(DATA),--data '$(DATA)') $(if $(PRECISION),--precision '$(PRECISION)') $(if $(EMULATE),--emulate) \
          $(if $(BF16_TAIL),--bf16-tail-layers '$(BF16_TAIL)') $(if $(BF16_HEAD),--bf16-head-layers '$(BF16_HEAD)') \
          $(if $(filter-out auto,$(TP)),--tensor-parallel '$(TP)') $(if $(PP),--pipeline-parallel '$(PP)') \
          $(if $(CP),--context-parallel '$(CP)') \
          $(if $(TUNED),--tuned) $(if $(CONFIG),--config '$(CONFIG)') $(if $(PLUGIN),--plugin '$(PLUGIN)') $(ARGS)
OPTIONS = --runtime $(RUNTIME) --nproc $(NPROC) $(if $(FRESH),--fresh) $(if $(TAG),--tag '$(TAG)') \
          $(if $(GPU),--gpu '$(GPU)') $(if $(filter auto,$(TP)),--auto-split) $(if $(DRY_RUN),--dry-run) $(TRAINING)
CLUSTER_FILE = $(if $(CLUSTER),--cluster '$(CLUSTER)')

.DEFAULT_GOAL := help
.PHONY: help nvfp4 bf16 compare models precisions show-config shell attach stop doctor image submit jobs logs cancel estimate clean test-engine test-slurm test test-versions test-readme lint bench host-setup test-setup

help: ## this list
	@echo "make compare    is the whole job; on a machine without a GPU it trains a tiny Llama on the CPU"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'
	@echo
	@sed -n 's/^#> //p' Makefile

nvfp4: host-setup ## pretrain in NVFP4 (last eighth of the layers in BF16)
	@$(HOST) scripts/run.py nvfp4 $(OPTIONS)

bf16: host-setup ## pretrain in BF16
	@$(HOST) scripts/run.py bf16 $(OPTIONS)

compare: host-setup ## both, reusing finished runs of the same work, then the comparison
	@$(HOST) scripts/run.py compare $(OPTIONS)

models: host-setup ## what can be trained: parameters, FLOPs, memory; MODEL= for one in detail
	@$(HOST) scripts/run.py models $(OPTIONS)

precisions: host-setup ## what it can be trained in: preset, GPUs, BF16 layers
	@$(HOST) scripts/run.py precisions $(OPTIONS)

show-config: host-setup ## the config that `make nvfp4`, or PRECISION=, would train with, as YAML for CONFIG=
	@$(HOST) scripts/run.py show-config $(OPTIONS)

shell: host-setup ## a shell in the container that a training would get
	@$(HOST) scripts/run.py shell $(OPTIONS)

attach: host-setup ## follow a run whose launcher was killed; Ctrl-C stops it
	@$(HOST) scripts/run.py attach $(if $(RUN),--run '$(RUN)')

stop: host-setup ## end a run in a container, watched or not
	@$(HOST) scripts/run.py stop $(if $(RUN),--run '$(RUN)')

doctor: host-setup ## whether `make nvfp4` would work here, and what to do where not; JSON=1
	@$(HOST) scripts/doctor.py $(if $(JSON),--json) $(OPTIONS)

image: ## build docker/Dockerfile, a thin layer over NeMo; then train in it with TAG=nvfp4-playbook:26.04
	@docker build --build-arg NEMO_TAG='$(or $(TAG),26.04)' --tag 'nvfp4-playbook:$(or $(TAG),26.04)' docker

submit: host-setup ## the same training on a cluster, by NeMo-Run: NODES=, cluster.yaml; PRECISION= (nvfp4)
	@$(HOST) scripts/submit.py submit --nodes $(NODES) --nproc $(NPROC) $(CLUSTER_FILE) \
	  $(if $(WAIT),--wait) $(if $(DRY_RUN),--dry-run) $(TRAINING)

jobs: host-setup ## what was submitted, and how it stands
	@$(HOST) scripts/submit.py jobs $(CLUSTER_FILE)

logs: host-setup ## a submitted run's log to its end; fails where the run does; RUN=
	@$(HOST) scripts/submit.py logs $(CLUSTER_FILE) $(if $(RUN),--run '$(RUN)')

cancel: host-setup ## end a submitted run, waiting or running; RUN=
	@$(HOST) scripts/submit.py cancel $(CLUSTER_FILE) $(if $(RUN),--run '$(RUN)')

estimate: host-setup ## memory a GPU, step time and days: MODEL= GPUS= GPU_KIND= TOKENS= PRECISION= SEQ= GBS= MBS= TP= PP=
	@$(HOST) scripts/estimate.py $(if $(MODEL),--model '$(MODEL)') $(if $(PRECISION),--precision '$(PRECISION)') \
	  $(if $(GPUS),--gpus '$(GPUS)') $(if $(GPU_KIND),--gpu-kind '$(GPU_KIND)') $(if $(TOKENS),--tokens '$(TOKENS)') \
	  $(if $(SEQ),--seq-length '$(SEQ)') $(if $(GBS),--global-batch-size '$(GBS)') \
	  $(if $(MBS),--micro-batch-size '$(MBS)') $(if $(filter-out auto,$(TP)),--tensor-parallel '$(TP)') \
	  $(if $(PP),--pipeline-parallel '$(PP)')

clean: ## list and remove run folders and logs; CLEAN=all: also checkpoints of your own data
	@$(PYTHON) scripts/clean.py $(if $(filter all,$(CLEAN)),--all)

test: test-setup ## all tests
	@$(TEST) -m pytest

test-readme: test-setup ## every command of the README in a clean clone
	@$(TEST) -m pytest -m readme -s tests/test_readme.py

test-versions: test-setup ## every model and precision with each Megatron-Bridge from 0.3 to 0.6; wants Python 3.12
	@$(TEST) -m pytest -m versions -rs -s tests/versions

test-engine: test-setup ## the container path on a real, private Docker engine, installed on Debian where root
	@INSTALL_ENGINE=1 $(TEST) -m pytest tests/engine

test-slurm: test-setup ## make submit on a real, private Slurm of two nodes, installed on Debian where root
	@$(PYTHON) scripts/setup.py cluster
	@INSTALL_SLURM=1 $(TEST) -m pytest -m slurm tests/slurm

lint: test-setup ## ruff, check and format
	@$(TEST) -m ruff check . && $(TEST) -m ruff format --check .

bench: test-setup ## the benchmarks, each a ratio measured in one run
	@for bench in tests/benchmarks/bench_*.py; do echo "== $$bench"; PYTHONPATH=assets:scripts $(TEST) $$bench || exit 1; done

host-setup:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or 3.12 or name it: make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) scripts/setup.py host

test-setup:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or 3.12 or name it: make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) scripts/setup.py test

#> Options, as in `make compare MODEL=small ITERS=100`:
#>   MODEL    what to train          llama31-8b on a GPU, tiny without one
#>   ITERS    iterations             50; tiny 120
#>   WARMUP   warm-up iterations     2; tiny 20
#>   GBS MBS  global, micro batch    64 and 4; tiny 32 and 32
#>   SEQ      sequence length        4096; tiny 128
#>   DATA     mock, python-stdlib or a .bin/.idx prefix   mock; tiny python-stdlib
#>   RUNTIME  auto, container, local or cpu   auto: a container where a GPU is, else cpu
#>   GPU      index or UUID          the largest that trains in the precision
#>   PRECISION  in place of nvfp4: fp8, fp8_blockwise or mxfp8
#>   EMULATE=1  NVFP4's arithmetic on a GPU without its tensor cores
#>   TAG      of the NeMo image, or a whole image name   26.04
#>   DRY_RUN=1  print the commands that would train, start nothing
#>   RUN      the run that attach and stop mean, where several run
#>   NPROC    processes, one a GPU (submit: a machine)   1
#>   NODES    machines of a submitted run   1
#>   CLUSTER  the file that says where to submit   cluster.yaml
#>   WAIT=1   submit follows the run to its end, and fails where the run does
#>   GPUS GPU_KIND TOKENS   what make estimate is about   512, gb300, 15.6e12
#>   TP PP CP tensor, pipeline, context parallel sizes; TP=auto: the smallest that fit   the recipe's; context 1
#>   BF16_TAIL BF16_HEAD  last and first layers kept in BF16   nvfp4: an eighth, at least 1, and 0
#>   TUNED=1  CUDA graphs and fewer checks, on a GPU; compares with tuned runs only
#>   CONFIG   a YAML file of config fields, such as a run's config.yaml
#>   PLUGIN   a Python file with configure(config), callbacks, forward_step or loss
#>   ARGS     flags for assets/pretrain_llama.py as they are, and section.field=value of the config
#>   FRESH=1  train again            compare reuses finished runs
#>   TORCH_INDEX  a package index for torch alone, such as PyTorch's CPU index
#>   PYTHON   the Python to set up with   python3
