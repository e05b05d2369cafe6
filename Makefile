# NVFP4 pretraining playbook. `make` lists the targets; the README says what each is for.

PYTHON ?= python3
HOST   := .venv/host/bin/python
TEST   := .venv/cpu/bin/python

RUNTIME ?= auto
NPROC ?= 1
NODES ?= 1
export TORCH_INDEX

# What the training takes, wherever it runs; and where and how to run it.
TRAINING = $(if $(MODEL),--model '$(MODEL)') $(if $(ITERS),--train-iters '$(ITERS)') \
          $(if $(WARMUP),--warmup-iters '$(WARMUP)') $(if $(GBS),--global-batch-size '$(GBS)') \
          $(if $(MBS),--micro-batch-size '$(MBS)') $(if $(SEQ),--seq-length '$(SEQ)') \
          $(if $(DATA),--data '$(DATA)') $(if $(PRECISION),--precision '$(PRECISION)') \
          $(if $(EMULATE),--emulate $(filter-out 1,$(EMULATE))) \
          $(if $(BF16_TAIL),--bf16-tail-layers '$(BF16_TAIL)') $(if $(BF16_HEAD),--bf16-head-layers '$(BF16_HEAD)') \
          $(if $(filter-out auto,$(TP)),--tensor-parallel '$(TP)') $(if $(PP),--pipeline-parallel '$(PP)') \
          $(if $(CP),--context-parallel '$(CP)') $(if $(TUNED),--tuned) \
          $(if $(CONFIG),--config '$(CONFIG)') $(if $(PLUGIN),--plugin '$(PLUGIN)') \
          $(if $(SAVE),--save '$(SAVE)') $(if $(RESUME),--resume '$(RESUME)') $(if $(FROM),--from '$(FROM)') \
          $(if $(TENSORBOARD),--tensorboard) $(if $(WANDB),--wandb-project '$(WANDB)') \
          $(if $(MLFLOW),--mlflow-experiment '$(MLFLOW)') $(ARGS)
OPTIONS = --runtime $(RUNTIME) --nproc $(NPROC) $(if $(FRESH),--fresh) $(if $(TAG),--tag '$(TAG)') \
          $(if $(GPU),--gpu '$(GPU)') $(if $(filter auto,$(TP)),--auto-split) $(if $(DRY_RUN),--dry-run) $(TRAINING)
# What the user said of a comparison, to tell how to make it again: these and nothing else, which may be a secret.
SAID = MODEL ITERS WARMUP GBS MBS SEQ DATA PRECISION EMULATE BF16_TAIL BF16_HEAD TP PP CP TUNED CONFIG PLUGIN FROM \
       ARGS RUNTIME NPROC GPU TAG A B REPEAT BASE RUNS SEEDS
TYPED = $(foreach name,$(SAID),$(if $(filter command environment,$(firstword $(origin $(name)))),$(name)='$($(name))'))
CLUSTER_FILE = $(if $(CLUSTER),--cluster '$(CLUSTER)')

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' Makefile)

help: ## this list
	@echo "make compare    is the whole job; on a machine without a GPU it trains a tiny Llama on the CPU"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@sed -n 's/^#> //p' Makefile

nvfp4: host-setup ## pretrain in NVFP4 (last eighth of the layers in BF16)
	@$(HOST) scripts/run.py nvfp4 $(OPTIONS)

bf16: host-setup ## pretrain in BF16
	@$(HOST) scripts/run.py bf16 $(OPTIONS)

compare: host-setup ## both, reusing finished runs of the same work, then the comparison; RUNS="a b c": these
	@$(HOST) $(if $(RUNS),scripts/compare.py --save $(RUNS),scripts/run.py compare $(OPTIONS) $(if $(A),--a '$(A)') \
	  $(if $(B),--b '$(B)') $(if $(REPEAT),--repeat '$(REPEAT)')) $(if $(BASE),--base '$(BASE)') \
	  --typed "$(strip make compare $(TYPED))"

profile: host-setup ## where the time of a step goes, with a trace for a viewer: PRECISION= (nvfp4); RUN=: of that run
	@$(HOST) scripts/run.py profile $(if $(RUN),--run '$(RUN)') $(OPTIONS)

ablate: host-setup ## NVFP4 whole, without each ingredient, with other BF16 layers: loss gaps over seeds; SEEDS=
	@$(HOST) scripts/run.py ablate $(OPTIONS) $(if $(SEEDS),--seeds '$(SEEDS)') --typed "$(strip make ablate $(TYPED))"

history: host-setup ## all runs, newest first, with how each ended; JSON=1
	@$(HOST) scripts/history.py $(if $(JSON),--json)

gate: host-setup ## fail where the newest comparison left an earlier one's figures: BASELINE=its folder
	@$(HOST) scripts/gate.py '$(BASELINE)' $(if $(CURRENT),--current '$(CURRENT)') --tolerance '$(TOLERANCE)'

results: host-setup ## rebuild the published tables and pictures from their records; ADD="runs" TO=name: publish runs
	@$(HOST) scripts/results.py $(if $(ADD),--add $(ADD)) $(if $(TO),--to '$(TO)')

models: host-setup ## what can be trained: parameters, FLOPs, memory; MODEL= for one in detail
	@$(HOST) scripts/run.py models $(OPTIONS)

precisions: host-setup ## what it can be trained in: preset, GPUs, BF16 layers
	@$(HOST) scripts/run.py precisions $(OPTIONS)

show-config: host-setup ## the config that `make nvfp4`, or PRECISION=, would train with, as YAML for CONFIG=
	@$(HOST) scripts/run.py show-config $(OPTIONS)

eval: host-setup ## the validation loss of a checkpoint: RUN=... [PRECISION=bf16]
	@$(HOST) scripts/run.py eval $(if $(RUN),--run '$(RUN)') $(OPTIONS)

export: host-setup ## a checkpoint as a Hugging Face folder: RUN=... OUT=...
	@$(HOST) scripts/run.py export $(if $(RUN),--run '$(RUN)') $(if $(OUT),--export '$(OUT)') $(OPTIONS)

sft: host-setup ## fine-tune weights on instructions: FROM=... DATA=file.jsonl [PRECISION=nvfp4]
	@$(HOST) scripts/run.py sft $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') $(OPTIONS)

lora: host-setup ## the same through adapters (ARGS="--finetune dora": DoRA)
	@$(HOST) scripts/run.py lora $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') $(OPTIONS)

data: host-setup ## tokenize your own text: INPUT="corpus/*.jsonl" TOKENIZER=... [OUT=prefix]
	@$(HOST) scripts/data.py --runtime $(RUNTIME) $(if $(TAG),--tag '$(TAG)') $(if $(INPUT),--input '$(INPUT)') \
	  $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') $(if $(OUT),--out '$(OUT)') $(if $(FIELD),--field '$(FIELD)') \
	  $(if $(SKIP_BAD),--skip-bad) $(ARGS)

shell: host-setup ## a shell in the container that a training would get
	@$(HOST) scripts/run.py shell $(OPTIONS)

attach: host-setup ## follow a run whose launcher was killed; Ctrl-C stops it
	@$(HOST) scripts/run.py attach $(if $(RUN),--run '$(RUN)')

stop: host-setup ## end a run in a container, watched or not
	@$(HOST) scripts/run.py stop $(if $(RUN),--run '$(RUN)')

doctor: host-setup ## whether `make nvfp4` would work here, and what to do where not; JSON=1
	@$(HOST) scripts/doctor.py $(if $(JSON),--json) $(OPTIONS)

selfcheck: host-setup ## native NVFP4 against this project's, bit by bit, on a GPU with FP4 tensor cores; a file to send
	@$(HOST) scripts/run.py selfcheck $(OPTIONS)

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

test: test-setup ## the tests, but for the slow suites below
	@$(TEST) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: ## the tests that need a GPU, with the Python that has PyTorch and Transformer Engine
	@mkdir -p assets/results && TRITON_INTERPRET=0 $(PYTHON) -m pytest -v -rA --durations=5 -W ignore -p no:cacheprovider \
	  tests/gpu tests/pretraining/numerics/test_nvfp4_triton.py > assets/results/test-gpu.txt 2>&1; \
	  code=$$?; tail -n 15 assets/results/test-gpu.txt; exit $$code

test-readme: test-setup ## every command of the README in a clean clone
	@$(TEST) -m pytest -m readme -s tests/test_readme.py

test-versions: test-setup ## every model and precision with each Megatron-Bridge from 0.3 to 0.6; wants Python 3.12
	@$(TEST) -m pytest -m versions -rs -s tests/versions

test-engine: test-setup ## the container path on a real Docker engine: a private one where root, else one that answers
	@INSTALL_ENGINE=1 $(TEST) -m pytest tests/engine

test-report: test-setup ## the report of a comparison in a headless Chromium, installed on Debian where root
	@INSTALL_BROWSER=1 $(TEST) -m pytest tests/playbook/report

test-parallel: test-setup ## one training over two processes, each way of sharing the work, on the CPU
	@$(TEST) -m pytest -m parallel tests/pretraining/test_parallel_training.py

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
#>   MODEL    what to train (make ablate on a GPU: llama-120m)   llama31-8b on a GPU, tiny without one
#>   ITERS    iterations             50; tiny 120
#>   WARMUP   warm-up iterations     2; tiny 20
#>   GBS MBS  global, micro batch    64 and 4; tiny 32 and 32
#>   SEQ      sequence length        4096; tiny 128
#>   DATA     mock, python-stdlib or .bin/.idx prefixes: a, '0.7 a 0.3 b', 'train=a valid=b'   mock; tiny python-stdlib
#>   INPUT    of make data: files or patterns of JSONL, text, Parquet, .gz, .zst
#>   TOKENIZER  of make data (bytes, or Hugging Face's by name or folder), of sft and lora (FROM's)
#>   OUT      prefix that make data writes, folder that make export writes   data/NAME-TOKENIZER
#>   FIELD    of the text in JSON or Parquet   text
#>   SKIP_BAD=1  leave out lines that cannot be read, instead of failing
#>   RUNTIME  auto, container, local or cpu   auto: a container where a GPU is, else cpu
#>   GPU      index or UUID          the largest that trains in the precision
#>   PRECISION  in place of nvfp4: fp8, fp8_blockwise or mxfp8
#>   EMULATE=1  NVFP4's arithmetic on a GPU without its tensor cores; EMULATE=reference: Transformer Engine's own, slow
#>   TAG      of the NeMo image, or a whole image name   26.04
#>   TENSORBOARD=1  WANDB=project  MLFLOW=experiment   log there too, into the run folder
#>   DRY_RUN=1  print the commands that would train, start nothing
#>   RUN      the run that eval, export, profile, logs and cancel mean; and attach and stop, where several run
#>   SAVE     a checkpoint every so many iterations and at the end   none; own data on a GPU at the end
#>   RESUME   the run to continue from its last checkpoint, in a new folder
#>   FROM     weights to begin with: hf:NAME of Hugging Face, or a local folder   random
#>   NPROC    processes, one a GPU (submit: a machine)   1
#>   NODES    machines of a submitted run   1
#>   CLUSTER  the file that says where to submit   cluster.yaml
#>   WAIT=1   submit follows the run to its end, and fails where the run does
#>   GPUS GPU_KIND TOKENS   what make estimate is about   512, gb300, 15.6e12
#>   TP PP CP tensor, pipeline, context parallel sizes; TP=auto: the smallest that fit   the recipe's; context 1
#>   BF16_TAIL BF16_HEAD  last and first layers kept in BF16   nvfp4: an eighth, at least 1, and 0
#>   NVFP4_RHT=0  NVFP4_STOCHASTIC=0  NVFP4_2D=0   that ingredient of the NVFP4 recipe off
#>   TUNED=1  CUDA graphs and fewer checks, on a GPU; compares with tuned runs only
#>   CONFIG   a YAML file of config fields, such as a run's config.yaml
#>   PLUGIN   a Python file with configure(config), callbacks, forward_step or loss
#>   ARGS     flags for assets/pretrain_llama.py as they are, and section.field=value of the config
#>   FRESH=1  train again            compare reuses finished runs
#>   REPEAT   runs of each precision that compare takes turns with   1; 3 show how runs differ
#>   SEEDS    of make ablate         "1234 1235"
#>   A B      what to compare        bf16 and nvfp4; the same twice is the control
#>   BASE     the baseline of a comparison: A, B, a precision or a run   bf16
#>   RUNS     run folders, their names or logs to compare, instead of training
#>   BASELINE CURRENT   comparisons that gate holds against each other   CURRENT: the newest
#>   TOLERANCE  of gate, per cent    "speed=3 memory=2 loss=1"
#>   ADD TO   runs, or the folder of a comparison, to publish, and the folder in assets/results that they go to
#>   TORCH_INDEX  a package index for torch alone, such as PyTorch's CPU index
#>   PYTHON   the Python to set up with   python3
