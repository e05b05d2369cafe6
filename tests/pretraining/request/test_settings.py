"""The command line of a training: its defaults, and an error with cause and remedy for whatever cannot be."""

from argparse import Namespace

import pytest
from asking import refusal, resolve

from pretraining.errors import UsageError
from pretraining.request import flags as training_flags
from pretraining.request.models import MODELS

GPU_MODELS = [name for name, model in MODELS.items() if not model.on_cpu]


def test_defaults_without_a_gpu() -> None:
    chosen, tiny = resolve(), MODELS["tiny"]
    assert (chosen.model, chosen.precision.name) == (tiny, "nvfp4")
    assert (chosen.bf16_head_layers, chosen.bf16_tail_layers) == (0, 1)
    assert (chosen.train_iters, chosen.warmup_iters) == (tiny.train_iters, tiny.warmup_iters)
    assert (chosen.global_batch_size, chosen.micro_batch_size, chosen.sequence_length) == (32, 32, 128)
    assert (chosen.data, chosen.seed, chosen.save, chosen.resume, chosen.run_dir) == (
        "python-stdlib", 1234, None, None, None,
    )  # fmt: skip
    assert chosen.tokens_per_step == 32 * 128
    assert chosen.cache_dir == training_flags.PROJECT / ".cache"


def test_defaults_on_a_gpu() -> None:
    chosen = resolve(on_gpu=True)
    assert (chosen.model.name, chosen.precision.name, chosen.data) == ("llama31-8b", "nvfp4", "mock")
    assert (chosen.train_iters, chosen.warmup_iters, chosen.bf16_tail_layers) == (50, 2, 4)
    assert (chosen.global_batch_size, chosen.micro_batch_size, chosen.sequence_length) == (64, 4, 4096)


@pytest.mark.parametrize(
    ("flags", "head", "tail"),
    [
        (("--disable-fp4",), 0, 0),
        (("--precision", "bf16", "--bf16-tail-layers", "3"), 0, 0),  # all of them are
        (("--precision", "fp8"), 1, 1),
        (("--precision", "mxfp8"), 0, 0),
        (("--bf16-tail-layers", "0"), 0, 0),
        (("--bf16-head-layers", "2", "--bf16-tail-layers", "29"), 2, 29),
    ],
)
def test_layers_in_bf16(flags: tuple[str, ...], head: int, tail: int) -> None:
    chosen = resolve(*flags, on_gpu=True)
    assert (chosen.bf16_head_layers, chosen.bf16_tail_layers) == (head, tail)


def test_disable_fp4_is_bf16() -> None:
    assert resolve("--disable-fp4").precision.name == "bf16"
    assert resolve("--disable-fp4", "--precision", "bf16").precision.name == "bf16"
    said = refusal("--disable-fp4", "--precision", "nvfp4")
    assert "--disable-fp4" in said and "nvfp4" in said and "drop one" in said


@pytest.mark.parametrize(("iterations", "warmup"), [(1, 1), (2, 1), (10, 2), (30, 6), (100_000, None)])
def test_a_shortened_run_keeps_its_warmup_below_itself(iterations: int, warmup: int | None) -> None:
    expected = MODELS["tiny"].warmup_iters if warmup is None else warmup
    assert resolve("--train-iters", str(iterations)).warmup_iters == expected


@pytest.mark.parametrize(
    ("batch", "processes", "micro"),
    [(32, 1, 32), (31, 1, 31), (33, 1, 11), (64, 1, 32), (34, 1, 17), (37, 1, 1), (32, 2, 16), (1, 1, 1)],
)
def test_micro_batch_is_the_models_own_or_the_largest_that_divides(batch: int, processes: int, micro: int) -> None:
    assert resolve("--global-batch-size", str(batch), processes=processes).micro_batch_size == micro


@pytest.mark.parametrize(
    ("flags", "cause", "remedy"),
    [
        (("--model", "tinny"), "unknown model 'tinny'", "did you mean tiny?"),
        (("--precision", "fp4"), "unknown precision 'fp4'", "did you mean nvfp4?"),
        (("--train-iters", "0"), "--train-iters is 0", "at least 1"),
        (("--train-iters", "2147483648"), "--train-iters is 2147483648", "below 2147483648"),
        (("--train-iters", "-5"), "--train-iters is -5", "at least 1"),
        (("--warmup-iters", "-1"), "--warmup-iters is -1", "at least 0"),
        (("--global-batch-size", "0"), "--global-batch-size is 0", "at least 1"),
        (("--seq-length", "1"), "--seq-length is 1", "at least 2"),
        (("--seq-length", "4096"), "--seq-length 4096 is over tiny's", "lower it"),
        (("--warmup-iters", "10", "--train-iters", "10"), "--warmup-iters 10 is not below --train-iters 10", "lower"),
        (("--warmup-iters", "99999"), "--warmup-iters 99999 is not below --train-iters", "lower it"),
        (("--save", "-1"), "--save is -1", "0 for never"),
        (("--bf16-tail-layers", "4"), "leave none of tiny's 4 layers", "lower --bf16-head-layers"),
        (("--bf16-tail-layers", "2", "--bf16-head-layers", "2"), "leave none of tiny's 4 layers", "lower"),
        (("--bf16-head-layers", "-1"), "--bf16-head-layers -1", "neither can be negative"),
        (("--bf16-tail-layers", "-1"), "--bf16-tail-layers -1", "neither can be negative"),
        (
            ("--global-batch-size", "30", "--micro-batch-size", "7"),
            "--global-batch-size 30 is not divisible by --micro-batch-size 7",
            "--micro-batch-size 6 would be",
        ),
        (("--micro-batch-size", "0"), "--micro-batch-size 0", "--micro-batch-size 1 would be"),
        (("--micro-batch-size", "-4"), "--micro-batch-size -4", "--micro-batch-size 1 would be"),
        (("--train-iters", "ten"), "invalid int value: 'ten'", "--help"),
        (("--model",), "--model: expected one argument", "--help"),
        (("--trian-iters", "5"), "--trian-iters", "did you mean --train-iters"),
        (("--iters", "5"), "--iters", "--train-iters"),
        (("extra",), "extra", "--help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_bad_value_is_refused_with_cause_and_remedy(flags: tuple[str, ...], cause: str, remedy: str) -> None:
    said = refusal(*flags)
    assert cause in said
    assert remedy in said


def test_abbreviated_flags_are_not_guessed() -> None:
    assert "--train" in refusal("--train", "5")


@pytest.mark.parametrize("model", GPU_MODELS)
def test_a_gpu_model_without_a_gpu(model: str) -> None:
    said = refusal("--model", model)
    assert f"{model} needs a GPU and none was found" in said
    assert "--model tiny or small" in said


@pytest.mark.parametrize("precision", ["fp8", "fp8_blockwise", "mxfp8"])
def test_a_gpu_precision_without_a_gpu(precision: str) -> None:
    said = refusal("--precision", precision)
    assert f"{precision} needs" in said and "no GPU was found" in said
    assert "--precision bf16 or nvfp4" in said


def test_batches_over_processes() -> None:
    said = refusal("--global-batch-size", "9", processes=2)
    assert "--global-batch-size 9 does not divide over 2" in said and "multiple of 2" in said
    said = refusal("--global-batch-size", "32", "--micro-batch-size", "32", processes=2)
    assert "--micro-batch-size 32 x 2 model replicas; --micro-batch-size 16 would be" in said
    assert resolve("--global-batch-size", "32", "--micro-batch-size", "16", processes=2).micro_batch_size == 16


@pytest.mark.parametrize(("processes", "words"), [(1, "1 was"), (4, "4 were"), (8, "8 were"), (33, "33 were")])
def test_processes_that_hold_no_whole_copy_of_the_model(processes: int, words: str) -> None:
    said = refusal("--model", "llama31-70b", on_gpu=True, processes=processes)
    sizes = "tensor 4 x pipeline 4 x context 1 parallel"
    assert f"llama31-70b is split over 16 processes ({sizes}), and {words} started" in said
    assert "NPROC=16" in said


def test_nemotron_needs_its_tensor_and_expert_parallel_processes() -> None:
    said = refusal("--model", "nemotron3-nano", on_gpu=True, processes=4)
    assert "split over 8 processes (tensor 4 x pipeline 1 x context 1, expert 8 parallel), and 4 were started" in said
    assert resolve("--model", "nemotron3-nano", on_gpu=True, processes=8).tensor_parallel == 4


def test_nvfp4_is_not_split_by_context() -> None:
    said = refusal("--context-parallel", "2", on_gpu=True, processes=2)
    assert "NaN gradient norms (Megatron-Bridge issues 1865 and 2051)" in said and "--tensor-parallel" in said
    assert resolve(on_gpu=True, processes=2).context_parallel == 1  # whatever the recipe says
    assert resolve("--context-parallel", "2", "--disable-fp4", on_gpu=True, processes=2).context_parallel == 2


def test_the_tuned_preset_wants_a_gpu_and_static_shapes() -> None:
    assert resolve("--tuned", on_gpu=True).tuned and not resolve(on_gpu=True).tuned
    assert "the CPU runtime has no CUDA graphs" in refusal("--tuned")
    assert resolve("--tuned", "--emulate", on_gpu=True).tuned
    assert "has not been tried in a CUDA graph" in refusal("--tuned", "--emulate", "reference", on_gpu=True)
    assert "replays each iteration" in refusal("--tuned", "--emulate", "--nvfp4", "switch=0.5", on_gpu=True)
    assert "tells nothing" in refusal("--tuned", "--emulate", "--sensitivity", "1", on_gpu=True)
    assert "experts" in refusal("--tuned", "--model", "nemotron3-nano", on_gpu=True, processes=8)


def test_an_override_that_a_flag_also_sets_is_that_flag() -> None:
    chosen = resolve("train.train_iters=20", "model.seq_length=64", "optimizer.lr=1e-4", "model.num_layers=2")
    assert (chosen.train_iters, chosen.sequence_length, chosen.num_layers) == (20, 64, 2)
    assert chosen.overrides == {"optimizer.lr": "1e-4"}
    assert chosen.bf16_tail_layers == 1 and resolve(*chosen.as_flags()) == chosen
    assert resolve("--train-iters", "20", "train.train_iters=20").train_iters == 20
    said = refusal("--train-iters", "50", "train.train_iters=20")
    assert "--train-iters 50 and an override that says 20 are one setting with two values" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("optimizer.lr",), "unrecognized arguments: optimizer.lr; an override is section.field=value"),
        (("lr=3",), "'lr=3' is not an override: write section.field=value"),
        (("+model.x=3",), "without + or ~"),
        (("~model.x",), "'~model.x' is not an override"),
        (("train.train_iters=ten",), "train.train_iters=ten: 'ten' is not a whole number"),
        (("model.num_layers=0",), "--num-layers is 0; it must be at least 1"),
        (("model.seq_length=64", "dataset.seq_length=32"), "one setting with two values, --seq-length; drop one"),
        (("dataset.blend=x",), "dataset.blend cannot be overridden: use --data"),
        (("checkpoint.ckpt_step=3",), "use --resume RUN and --iteration N (ITERATION=)"),
        (("logger.log_interval=0",), "logger.log_interval=0: it is a number of iterations, at least 1"),
        (("logger.log_interval=0.5",), "is not a whole number"),
        (("logger.tensorboard_log_interval=-1",), "at least 1"),
        (("mixed_precision.fp4=null",), "--precision decides it"),
        (("--config", "nowhere.yaml"), "--config nowhere.yaml cannot be read: No such file"),
        (("--plugin", "nowhere.py"), "--plugin nowhere.py cannot be read: No such file"),
    ],
)
def test_wrong_changes(flags: tuple[str, ...], words: str) -> None:
    assert words in refusal(*flags)


@pytest.mark.parametrize(
    ("model", "processes", "batch", "micro"),
    [
        ("llama31-8b", 1, 64, 4),
        ("llama31-8b", 8, 64, 4),  # 4 copies, each split over 2
        ("llama31-70b", 32, 64, 4),
        ("llama31-70b", 64, 12, 3),
        ("llama31-405b", 256, 64, 4),
        ("llama32-1b", 8, 64, 4),
    ],
)
def test_batches_are_shared_among_copies_of_the_model(model: str, processes: int, batch: int, micro: int) -> None:
    chosen = resolve("--model", model, "--global-batch-size", str(batch), on_gpu=True, processes=processes)
    assert chosen.micro_batch_size == micro
    given = ("--global-batch-size", str(batch), "--micro-batch-size", str(micro))
    assert resolve("--model", model, *given, on_gpu=True, processes=processes) == chosen


def test_emulation_is_for_nvfp4_on_a_gpu() -> None:
    for given, emulator in ((), "triton"), (("reference",), "reference"):
        emulated = resolve("--emulate", *given, on_gpu=True)
        assert emulated.emulate == emulator and not resolve("--emulate", *given).emulate
        assert resolve(*emulated.as_flags(), on_gpu=True) == emulated
    assert resolve(on_gpu=True).emulate is None
    both = ("model.num_layers=2", "optimizer.lr=1e-4")
    assert resolve("--emulate", *both, on_gpu=True) == resolve(*both, "--emulate", on_gpu=True)
    assert "'+model.x=3' is not an override" in refusal("--emulate", "+model.x=3", on_gpu=True)
    assert "quote it, as 'model.x=[1, 2]'" in refusal("--emulate", "model.x=[1,", "2]", on_gpu=True)
    assert "invalid choice: 'fast' (choose from" in refusal("--emulate", "fast", on_gpu=True)
    assert "--emulate cannot train nemotron3-nano: Transformer Engine computes its experts' products" in refusal(
        "--emulate", "--model", "nemotron3-nano", on_gpu=True, processes=8
    )
    assert "--emulate is for nvfp4 and does nothing for bf16" in refusal("--emulate", "--disable-fp4", on_gpu=True)


def test_the_launcher_may_leave_flags_out() -> None:
    args: Namespace = training_flags.parser("x").parse_args([])
    left_out = {"disable_fp4", "emulate", "evaluate", "tuned", "cache_dir", "tensorboard", "no_probe"}
    assert all(value is None for name, value in vars(args).items() if name not in left_out)


def test_delayed_scaling_is_for_all_layers() -> None:
    whole = resolve("--precision", "fp8_delayed", on_gpu=True)
    assert (whole.bf16_head_layers, whole.bf16_tail_layers) == (0, 0)
    for end in ("--bf16-head-layers", "--bf16-tail-layers"):
        said = refusal("--precision", "fp8_delayed", end, "1", on_gpu=True)
        assert "keeps no layer in BF16 with delayed scaling" in said and "--precision fp8" in said
    said = refusal("--precision", "fp8_delayed", "--model", "nemotron3-nano", on_gpu=True)
    assert "does not recompute the experts' activations" in said and "take --precision fp8" in said


def test_a_model_can_be_cut() -> None:
    cut = resolve("--model", "llama3-8b", "--num-layers", "8", on_gpu=True)
    assert (cut.num_layers, cut.bf16_tail_layers) == (8, 1) and resolve(on_gpu=True).num_layers == 32
    assert resolve(*cut.as_flags(), on_gpu=True) == cut
    assert "--num-layers is 0" in refusal("--num-layers", "0")
    assert "leave none of tiny's 2 layers" in refusal("--num-layers", "2", "--bf16-tail-layers", "2")


def test_nvfp4_on_a_gpu_needs_whole_blocks_of_tokens() -> None:
    sizes = ("--seq-length", "100", "--micro-batch-size", "1", "--global-batch-size", "2")
    said = refusal(*sizes, on_gpu=True)
    assert "1 x 100 tokens" in said and "multiple of 16" in said and "--seq-length 112" in said
    assert resolve(*sizes, "--precision", "bf16", on_gpu=True) and resolve(*sizes)


@pytest.mark.parametrize(
    "words",
    [
        ("logger.mlflow_tracking_uri=https://me:hunter2@host/x",),
        ("logger.comet_api_key=hunter2",),
        ("--wandb-project", "hf_" + "hunter2" * 5),
        ("--tokenizer=glpat-hunter2hunter2hunter2",),
    ],
)
def test_a_secret_among_the_arguments_is_refused_and_not_repeated(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="holds a password or a token") as told:
        training_flags.parser("x").parse_args(list(words))
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("word", ["--from=hf:meta-llama/Llama-3.2-1B", "--run-dir=/data/hf_llama_checkpoints_of_2026"])
def test_a_name_is_no_secret(word: str) -> None:
    assert training_flags.parser("x").parse_args([word])
