"""Real logs of Megatron-Bridge 0.3.1 (CPU) and 0.4.0 (H200), whole and damaged as logs are."""

from pathlib import Path

import pytest

from playbook.record import megatron_log
from playbook.record.megatron_log import CHUNK, NotAMegatronLog, read_log
from pretraining.record.run_folder import Verdict

LOGS = Path(__file__).parents[2] / "logs"
FP8 = LOGS / "h200-fp8-0.4.0.log"
EMULATED = LOGS / "h200-nvfp4-emulated-0.4.0.log"
OUT_OF_MEMORY = LOGS / "h200-fp8-8b-out-of-memory-0.4.0.log"
CPU = LOGS / "cpu-fp32-0.3.1.log"


def step(iteration: int, loss: str | None = "2.000000E+00", total: int = 50, ms: float = 100.0, extra: str = "") -> str:
    return (
        f"Step Time : {ms / 1000:.2f}s GPU utilization: 571.5MODEL_TFLOP/s/GPU\n"
        f" [2026-11-22 06:58:39] iteration {iteration:8d}/{total:8d} | consumed samples: {16 * iteration:12d} |"
        f" elapsed time per iteration (ms): {ms:.1f} |{extra} learning rate: 1.500000E-04 | global batch size:    16 |"
        + (f" lm loss: {loss} |" if loss else "")
        + " loss scale: 1.0 | grad norm: 6.896 | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
    )


END = "[after training is done] datetime: 2026-11-22 06:58:53 \n"


START = "Starting training loop at iteration 0\n"


def test_a_real_log_gives_every_iteration() -> None:
    run = read_log(FP8)
    assert run.verdict is Verdict.SUCCEEDED
    assert [line["iteration"] for line in run.train] == list(range(1, 11))
    assert run.train[7] == {
        "iteration": 8,
        "loss": 0.187602,
        "step_time_s": pytest.approx(1.4409),
        "grad_norm": 1.273,
        "skipped": 0,
        "nan_iterations": 0,
        "model_tflops": 656.2,
        "global_batch_size": 16.0,
    }


@pytest.mark.parametrize(
    "field", ["mtp_1 loss: 1.5E+00 |", "memory [GB]: 12.5 |", "loss (2nd): -3 |", "note: as it was |"]
)
def test_what_comes_after_a_further_field_is_read(read, field: str) -> None:
    text = "".join(step(number, extra=f" {field}").replace("skipped iterations:   0", "skipped iterations:   3")
                   for number in range(1, 5))  # fmt: skip
    for line in read(START + text + END).train:
        assert (line["grad_norm"], line["skipped"], line["global_batch_size"]) == (6.896, 3, 16)


def test_a_real_log_gives_the_settings() -> None:
    assert read_log(FP8).parity == {
        "num_layers": 8,
        "hidden_size": 4096,
        "ffn_hidden_size": 14336,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 128256,
        "sequence_length": 4096,
        "global_batch_size": 16,
        "micro_batch_size": 4,
        "train_iters": 10,
        "warmup_iters": 2,
        "start_iteration": 0,
        "learning_rate": 0.0003,
        "min_learning_rate": 3e-05,
        "seed": 1234,
        "data": "mock",
        "parameters": 2795573248,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "context_parallel": 1,
        "world_size": 1,
    }


def test_flops_per_token_follow_from_what_is_printed() -> None:
    environment = read_log(FP8).environment
    assert environment["tokens_per_step"] == 65536
    # 6 x (parameters in products) + attention: 8 layers of 218.1 M and an output of 525.3 M, 12 x L x h x s for causal
    assert environment["flops_per_token"] == pytest.approx(6 * (8 * 218.1e6 + 525.3e6) + 6 * 8 * 4096 * 4096, rel=0.01)


def test_a_speed_of_one_decimal_gives_no_flops_and_says_so() -> None:
    environment = read_log(CPU).environment
    assert environment["flops_per_token"] is None
    assert any("FLOPs a token cannot be derived" in note for note in environment["notes"])


@pytest.mark.parametrize(
    ("log", "name", "arithmetic", "head", "tail"),
    [
        (FP8, "fp8", "native", 1, 1),
        (EMULATED, "nvfp4", "emulated", 0, 1),
        (CPU, "fp32", "native", 0, 0),
    ],
)
def test_precision(log: Path, name: str, arithmetic: str, head: int, tail: int) -> None:
    assert read_log(log).precision == {
        "name": name,
        "arithmetic": arithmetic,
        "bf16_head_layers": head,
        "bf16_tail_layers": tail,
    }


def test_native_nvfp4_and_bf16_by_their_settings(read) -> None:
    summary = "Configuration Summary (x)\n[model] Non-default values (vs Mcore TransformerConfig):\n"
    nvfp4 = summary + "  bf16: True\n  fp4: 'e2m1'  (Mcore default: None)\n  first_last_layers_bf16: True\n"
    nvfp4 += (
        "  num_layers_at_start_in_bf16: 0  (Mcore default: 1)\n  num_layers_at_end_in_bf16: 4  (Mcore default: 1)\n"
    )
    assert read(nvfp4).precision == {
        "name": "nvfp4", "arithmetic": "native", "bf16_head_layers": 0, "bf16_tail_layers": 4,
    }  # fmt: skip
    assert read(summary + "  bf16: True  (Mcore default: False)\n").precision["name"] == "bf16"


def test_memory_is_labelled_as_early_and_in_gb_of_1e9() -> None:
    run = read_log(FP8)
    assert run.outcome["peak_memory"] == {
        "bytes": 53_158_000_000,
        "kind": "torch allocated, printed after iteration 1",
    }
    assert any("before optimizer state exists" in note for note in run.environment["notes"])


def test_parameters_as_printed() -> None:
    assert read_log(FP8).environment["parameters_billions"] == 2.80


def test_a_run_out_of_memory_says_how_much_was_missing() -> None:
    run = read_log(OUT_OF_MEMORY)
    assert run.verdict is Verdict.OUT_OF_MEMORY
    assert run.outcome["cause"].startswith("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB.")
    assert not run.train


def test_cpu_log_of_0_3() -> None:
    run = read_log(CPU)
    assert len(run.train) == 20
    assert run.train[-1]["loss"] == 5.318415
    assert run.parity["sequence_length"] == 128
    assert run.parity["world_size"] == 1
    assert run.environment["mock_data"] is True


def test_a_missing_loss_leaves_the_rest(read) -> None:
    run = read(START + step(1) + step(2, loss=None) + step(3) + END)
    assert [line["loss"] for line in run.train] == [2.0, None, 2.0]
    assert run.train[1]["step_time_s"] == 0.1
    assert run.verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize("loss", ["NAN", "INF", "-INF", None])
def test_a_loss_that_is_not_finite_at_the_end_is_divergence(read, loss: str | None) -> None:
    run = read(START + step(1) + step(2, loss=loss) + END)
    assert run.train[1]["loss"] is None
    assert run.verdict is Verdict.DIVERGED


def test_a_log_without_any_loss_is_not_divergence(read) -> None:
    assert read(START + step(1, loss=None) + step(2, loss=None) + END).verdict is Verdict.SUCCEEDED


def test_further_fields_are_no_hindrance(read) -> None:
    extra = (
        " energy per GPU (J/iter/GPU): 1170.1 | power per GPU (W/GPU): 640.0 | throughput per GPU (TFLOP/s/GPU): 5.0 |"
    )
    plain, more = read(START + step(1) + END), read(START + step(1, extra=extra) + END)
    assert more.train == plain.train


def test_iterations_with_further_fields_are_read_many_at_once(read, monkeypatch) -> None:
    """Line by line a million of them took three minutes."""
    one_by_one = []
    monkeypatch.setattr(megatron_log._Reader, "_other", lambda self, line: one_by_one.append(line))
    extra = " throughput per GPU (TFLOP/s/GPU): 499.8 |"
    run = read("".join(step(number, extra=extra) for number in range(1, 9)) + step(9, loss=None) + step(10, loss="NAN"))
    assert (len(run.train), one_by_one) == (10, [])


def test_a_grad_norm_that_is_nan_is_none(read) -> None:
    assert read(step(1).replace("6.896", "nan")).train[0]["grad_norm"] is None


@pytest.mark.parametrize("cut", range(30, 330, 7))
def test_a_cut_last_line_never_gives_a_wrong_number(read, cut: int) -> None:
    log = START + step(1) + step(2, loss="1.234567E+00", ms=123.4)
    start = log.rindex(" [2026")
    run = read(log[: start + cut])
    assert run.verdict is Verdict.INCOMPLETE
    for line in run.train[1:]:
        assert line["loss"] in (None, 1.234567)
        assert line["step_time_s"] in (None, 123.4 / 1000)
        assert line["grad_norm"] in (None, 6.896)


def test_a_training_appended_to_the_log_replaces_the_first(read) -> None:
    first = START + step(1, loss="9.000000E+00") + step(2) + END
    run = read(first + "Starting training loop at iteration 2\n" + step(3) + step(4) + END)
    assert [line["iteration"] for line in run.train] == [3, 4]
    assert run.parity["start_iteration"] == 2
    assert any("2 trainings" in note for note in run.environment["notes"])


def test_going_back_is_another_training_even_without_its_start_line(read) -> None:
    run = read(START + step(1) + step(2) + END + step(1) + step(2) + step(3))
    assert [line["iteration"] for line in run.train] == [1, 2, 3]
    assert run.verdict is Verdict.INCOMPLETE
    assert "start_iteration" not in run.parity


def test_every_tenth_iteration(read) -> None:
    run = read(START + step(10) + step(20) + END)
    assert [line["iteration"] for line in run.train] == [10, 20]


@pytest.mark.parametrize("after", ["", "\n"])
def test_text_glued_to_an_iteration_is_read_too(read, after: str) -> None:
    start, end = START.rstrip("\n") + after, after + END
    validated = " validation loss at iteration 2 | lm loss value: 2.400000E+00 | lm loss PPL: 1.1E+01 | "
    run = read(start + step(1) + step(2).rstrip("\n") + after + validated + end)
    assert len(run.train) == 2
    assert run.parity["start_iteration"] == 0
    assert [line["loss"] for line in run.evaluations] == [2.4]
    assert run.verdict is Verdict.SUCCEEDED


def test_evaluations(read) -> None:
    run = read(
        step(1)
        + " validation loss at iteration 200 | lm loss value: 2.400000E+00 | lm loss PPL: 1.102318E+01 | \n"
        + "-----\n[rank0]: validation loss at iteration 400 on validation set | lm loss value: 2.3E+00 |\n"
        + "glued validation loss at iteration 400 on test set | lm loss value: 2.500000E+00 | lm loss PPL: 1.2E+01 | \n"
        + " validation loss at iteration 600 | lm loss value: NAN | lm loss PPL: NAN | \n"
    )
    assert [(line["iteration"], line["split"], line["loss"]) for line in run.evaluations] == [
        (200, "validation", 2.4),
        (400, "validation", 2.3),
        (400, "test", 2.5),
        (600, "validation", None),
    ]


TRACEBACK = "[rank{rank}]: Traceback (most recent call last):\n[rank{rank}]:   File 'x.py', line 1, in f\n"


CHILD = (
    "Traceback (most recent call last):\n  File 'run.py', line 1\n    raise ChildFailedError(\n"
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\nprobe.py FAILED\n"
)


@pytest.mark.parametrize(
    ("error", "verdict", "cause"),
    [
        ("AssertionError: Device compute capability 10.0 or higher required", Verdict.FAILED, "capability 10.0"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", Verdict.OUT_OF_MEMORY, "CUDA out of memory"),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: 5",
            Verdict.OUT_OF_MEMORY,
            "allocate",
        ),
        ("KeyboardInterrupt", Verdict.INTERRUPTED, "KeyboardInterrupt"),
        ("torch.SignalException: Process 7 got signal: 15", Verdict.INTERRUPTED, "signal: 15"),
        ("RuntimeError: Unexpected result nan (message='found NaN in local loss')", Verdict.DIVERGED, "NaN"),
        ("my.own.Trouble: with text", Verdict.FAILED, "with text"),
    ],
)
def test_what_ended_it(read, error: str, verdict: Verdict, cause: str) -> None:
    run = read(START + step(1) + TRACEBACK.format(rank=0) + f"[rank0]: {error}\n" + CHILD)
    assert run.verdict is verdict
    assert cause in run.outcome["cause"]


def test_the_first_rank_to_fail_is_the_cause_though_tracebacks_interleave(read) -> None:
    first, second = (TRACEBACK.format(rank=rank).splitlines(keepends=True) for rank in (1, 0))
    text = "".join(line for pair in zip(first, second, strict=True) for line in pair)
    run = read(START + text + "[rank1]: ValueError: the cause\n[rank0]: RuntimeError: connection closed\n" + CHILD)
    assert run.outcome["cause"] == "ValueError: the cause"


def test_the_last_exception_of_a_chain_is_the_cause(read) -> None:
    text = (
        "Traceback (most recent call last):\n  File 'x'\nKeyError: 'a'\n\nThe above exception was the direct cause of\n"
    )
    run = read(START + text + "\nTraceback (most recent call last):\n  File 'y'\nValueError: no model 'a'\n")
    assert run.outcome["cause"] == "ValueError: no model 'a'"


def test_a_traceback_that_training_survived_is_not_the_cause(read) -> None:
    survived = "Traceback (most recent call last):\n  File 'x'\nOSError: retrying\n"
    assert read(START + step(1) + survived + step(2) + step(3) + step(4)).verdict is Verdict.INCOMPLETE
    assert read(START + step(1) + survived + step(2) + CHILD).outcome["cause"] == "OSError: retrying"


def test_an_error_after_the_end_is_a_note(read) -> None:
    run = read(START + step(1) + END + "Traceback (most recent call last):\n  File 'x'\nValueError: no process group\n")
    assert run.verdict is Verdict.SUCCEEDED
    assert any("no process group" in note for note in run.environment["notes"])


def test_killed_and_stopped(read) -> None:
    killed = "E1122 api.py:986] failed (exitcode: -9) local_rank: 0 (pid: 691) of binary: python\n"
    assert read(START + step(1) + killed + CHILD).verdict is Verdict.KILLED
    stopped = "[exiting program after receiving SIGTERM.] datetime: 2026-11-22 07:00:04 \n"
    assert read(START + step(1) + stopped).verdict is Verdict.INTERRUPTED
    reached = "[exiting program at iteration 1] datetime: 2026-11-22 07:00:04 \n"
    assert read(START + step(1) + reached).verdict is Verdict.INCOMPLETE


def test_several_gpus_make_the_world(read) -> None:
    log = FP8.read_text().replace("data_parallel_size: 1", "data_parallel_size: 2")
    log = log.replace("tensor model parallel with size 1", "tensor model parallel with size 4")
    run = read(log)
    assert run.parity["world_size"] == 8
    assert "parameters" not in run.parity  # the number printed is one shard's
    assert run.environment["flops_per_token"] == pytest.approx(8 * read_log(FP8).environment["flops_per_token"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello\nworld\n", "not a Megatron-Bridge log"),
        (bytes(100_000), "not a Megatron-Bridge log"),
    ],
)
def test_what_is_no_log_is_refused(read, content: bytes, says: str) -> None:
    with pytest.raises(NotAMegatronLog, match=says):
        read(content)


def test_a_log_across_chunks_loses_nothing(read) -> None:
    count = CHUNK // len(step(1)) + 100
    run = read(START + "".join(step(number) for number in range(1, count + 1)) + END)
    assert [line["iteration"] for line in run.train] == list(range(1, count + 1))
    assert all(line["model_tflops"] == 571.5 for line in run.train)
