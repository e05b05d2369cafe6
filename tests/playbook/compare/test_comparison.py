import dataclasses
import io
import json
from pathlib import Path

import pytest

from playbook.compare import comparison, model, saved
from playbook.compare.comparison import NotComparable
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.report import terminal, wording
from pretraining.errors import UsageError

LOGS = Path(__file__).parents[2] / "logs"
FP8 = LOGS / "h200-fp8-0.4.0.log"


def compare(a: Path, b: Path, force: bool = False) -> Comparison:
    return comparison.compare([[loading.load(a)], [loading.load(b)]], force=force)


def warnings(result: Comparison) -> list[str]:
    return [*wording.run_warnings(result.arms), *result.warnings]


def refused(a: Path, b: Path) -> dict[str, tuple]:
    with pytest.raises(NotComparable) as refusal:
        compare(a, b)
    return {found.name: (found.a, found.b) for found in refusal.value.differences}


def printed(result: Comparison) -> str:
    out = io.StringIO()
    terminal.print_comparison(result, out)
    return out.getvalue()


def test_two_native_runs_give_a_speed_up_over_bf16(make_run) -> None:
    result = compare(make_run("bf16", step=0.2), make_run("nvfp4", step=0.1, loss=1.01))
    (contrast,) = result.contrasts
    assert (result.baseline, contrast.candidate) == ("A", "B")
    assert contrast.step_time.what == "speed-up"
    assert contrast.step_time.figure.value == pytest.approx(2.0)
    assert contrast.step_time.sentence == "2.00x, nvfp4 over bf16"
    assert contrast.step_time.differs
    assert contrast.training_loss_gap.value == pytest.approx(1.0)
    assert not result.forced
    assert not warnings(result)


def test_bf16_is_the_baseline_in_either_place(make_run) -> None:
    bf16, nvfp4 = make_run("bf16", step=0.2), make_run("nvfp4", step=0.1, loss=1.01)
    one, other = compare(bf16, nvfp4), compare(nvfp4, bf16)
    assert other.baseline == "B"
    assert one.contrasts[0].step_time.sentence == other.contrasts[0].step_time.sentence
    assert one.contrasts[0].training_loss_gap == other.contrasts[0].training_loss_gap


def test_nvfp4_is_measured_against_fp8_in_either_place(make_run) -> None:
    fp8, new = make_run("fp8", step=0.2), make_run("nvfp4", step=0.1)
    assert (compare(fp8, new).baseline, compare(new, fp8).baseline) == ("A", "B")


def test_figures_carry_unit_and_spread(make_run) -> None:
    side = compare(make_run("bf16", step=0.2), make_run("nvfp4")).arm("A")
    (run,) = side.runs
    assert (run.timed.first, run.timed.last) == (20, 60)
    step = side.step_time
    assert (step.value, step.unit, step.spread) == (pytest.approx(0.2), "s", "interquartile range")
    assert (step.low, step.high) == (pytest.approx(0.198), pytest.approx(0.202))
    rate = side.tokens_per_second
    assert (rate.value, rate.low, rate.high) == pytest.approx((4096 / 0.2, 4096 / 0.202, 4096 / 0.198))
    assert side.model_tflops_per_gpu.value == pytest.approx(4096 / 0.2 * 5309184 / 1e12)
    assert side.training_loss.count == 6
    assert side.peak_memory.value == 2.0


def test_several_gpus_share_the_work(make_run) -> None:
    parity = {"world_size": 4}
    result = compare(make_run("bf16", parity=parity, step=0.2), make_run("nvfp4", parity=parity))
    assert result.arm("A").tokens_per_second.value == pytest.approx(4096 / 0.2)
    assert result.arm("A").tokens_per_second_per_gpu.value == pytest.approx(1024 / 0.2)
    assert result.arm("A").model_tflops_per_gpu.value == pytest.approx(1024 / 0.2 * 5309184 / 1e12)
    assert "tokens/s/GPU" in printed(result)


@pytest.mark.parametrize("bf16_arithmetic", ["native", "emulated"])
@pytest.mark.parametrize("step", [0.05, 0.5])
def test_an_emulation_is_never_a_speed_up(make_run, bf16_arithmetic: str, step: float) -> None:
    bf16 = make_run("bf16", arithmetic=bf16_arithmetic, step=0.2)
    result = compare(make_run("nvfp4", arithmetic="emulated", step=step), bf16)
    assert result.contrasts[0].step_time.what == "cost of emulation"
    assert result.contrasts[0].step_time.sentence.startswith(f"{step / 0.2:.2f} times the BF16 step")
    text = printed(result).lower()
    assert "nvfp4, emulated" in text
    assert "speed-up" not in text


def test_emulated_against_native_of_one_precision(make_run) -> None:
    native = make_run("nvfp4", step=0.1)
    result = compare(make_run("nvfp4", name="emulated", arithmetic="emulated", step=0.3), native)
    assert result.baseline == "B"
    assert "3.00 times the native NVFP4 step" in result.contrasts[0].step_time.sentence


def emulated(emulator: str | None) -> dict:
    """What `environment.json` says of an emulated NVFP4 run."""
    facts = {"name": "nvfp4", "arithmetic": "emulated", "bf16_head_layers": 0, "bf16_tail_layers": 1}
    return {"precision": facts | ({"emulator": emulator} if emulator else {})}


def test_two_emulators_are_told_apart(make_run) -> None:
    triton = make_run("nvfp4", name="triton", environment=emulated("triton"), step=0.1)
    reference = make_run("nvfp4", name="reference", environment=emulated("reference"), step=3.0)
    result = compare(reference, triton)
    assert [arm.emulator for arm in result.arms] == ["reference", "triton"]
    (differs,) = result.differences
    assert (str(differs), differs.void) == ("emulator: A reference, B triton", False)
    assert result.contrasts[0].step_time.sentence == "0.03 times the step of A, another emulator"
    text = printed(result)
    assert "A: nvfp4, reference-emulated" in text and "B: nvfp4, triton-emulated" in text
    assert "emulator: A reference, B triton; it does not void the comparison" in " ".join(text.split())
    native = compare(make_run("nvfp4", name="native"), triton)
    assert [arm.label for arm in native.arms] == ["nvfp4", "nvfp4, triton-emulated"]
    assert not native.differences


def test_an_emulator_that_was_not_recorded_is_another(make_run) -> None:
    unknown = make_run("nvfp4", name="unknown", environment=emulated(None))
    result = compare(unknown, make_run("nvfp4", environment=emulated("triton")))
    assert [str(found) for found in result.differences] == ["emulator: A not recorded, B triton"]
    assert not compare(unknown, unknown).differences


def test_the_emulator_of_a_raw_log_is_not_known() -> None:
    log = LOGS / "h200-nvfp4-emulated-0.4.0.log"
    result = compare(log, log, force=True)
    assert "emulator" in result.unchecked
    assert "emulator" not in [found.name for found in result.differences]


def test_two_runs_of_one_precision_are_a_repeat(make_run) -> None:
    result = compare(make_run("bf16", name="one"), make_run("bf16", name="two", step=0.21))
    assert result.contrasts[0].step_time.what == "step-time ratio"
    assert result.contrasts[0].step_time.figure.value == pytest.approx(0.21 / 0.2)


def test_slower_is_said(make_run) -> None:
    result = compare(make_run("nvfp4", step=0.4), make_run("bf16", step=0.2))
    assert result.contrasts[0].step_time.sentence == "0.50x (slower), nvfp4 over bf16"


@pytest.mark.parametrize(
    ("fact", "value"),
    [("global_batch_size", 64), ("data", "mock"), ("device", "NVIDIA H200"), ("transformer_engine", "2.14"),
     ("start_iteration", 20), ("learning_rate", 0.0031), ("seed", 1)],
)  # fmt: skip
def test_a_differing_fact_is_refused_with_both_values(make_run, fact: str, value) -> None:
    a, b = make_run("bf16"), make_run("nvfp4", parity={fact: value})
    expected = loading.load(a).parity.get(fact, "not recorded")
    assert refused(a, b) == {fact: (expected, value)}


def test_a_fact_that_only_one_folder_records_is_refused(make_run) -> None:
    assert refused(make_run("bf16", parity={"device": "absent"}), make_run("nvfp4")) == {
        "device": ("not recorded", "NVIDIA GB300")
    }


TUNED = {"finetune": "sft", "weights": "/base", "data": "questions.jsonl-0a1b2c3d4e5f"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"finetune": "absent", "weights": "absent", "data": "python-stdlib"},
            {"finetune": ("sft", "none: pretraining"), "weights": ("/base", "random"), "data": (TUNED["data"],
             "python-stdlib")},
        ),
        ({"finetune": "lora"}, {"finetune": ("sft", "lora")}),
        ({"data": "questions.jsonl-ffffffffffff"}, {"data": (TUNED["data"], "questions.jsonl-ffffffffffff")}),
        ({"weights": "/other"}, {"weights": ("/base", "/other")}),
    ],
)  # fmt: skip
def test_tunings_that_are_not_the_same_are_refused(make_run, change: dict, expected: dict) -> None:
    """Against pretraining, LoRA against full, on other instructions, of other weights."""
    assert refused(make_run("bf16", parity=TUNED), make_run("nvfp4", parity=TUNED | change)) == expected


def test_a_switch_of_transformer_engine_is_refused_beside_a_record_that_names_none(make_run) -> None:
    switched = {"engine_switches": "NVTE_NVFP4_4OVER6=weights"}
    assert refused(make_run("bf16"), make_run("nvfp4", parity=switched)) == {
        "engine_switches": ("none", "NVTE_NVFP4_4OVER6=weights")
    }


def test_switches_of_transformer_engine_on_both_sides_are_the_same_work(make_run) -> None:
    switched = {"engine_switches": "NVTE_NVFP4_4OVER6=weights"}
    assert compare(make_run("bf16", parity=switched), make_run("nvfp4", parity=switched))


def test_tunings_alike_are_compared_without_the_gap_of_pretraining(make_run) -> None:
    result = compare(make_run("bf16", parity=TUNED), make_run("nvfp4", parity=TUNED))
    assert result.contrasts[0].step_time and result.contrasts[0].published_gap == ""


def test_equal_numbers_of_other_types_are_equal(make_run) -> None:
    assert compare(make_run("bf16", parity={"seed": 1}), make_run("nvfp4", parity={"seed": 1.0}))


@pytest.mark.parametrize(
    ("verdict", "cause"), [("out_of_memory", "CUDA out of memory"), ("diverged", "NaN at 12"), ("incomplete", "")]
)
def test_a_run_that_did_not_succeed_is_refused_with_its_cause(make_run, verdict: str, cause: str) -> None:
    bad = make_run("nvfp4", outcome={"verdict": verdict, "cause": cause})
    said = f"{verdict} ({cause})" if cause else verdict
    assert refused(make_run("bf16"), bad) == {"verdict": ("succeeded", said)}


@pytest.mark.parametrize(
    ("precision", "command"),
    [("bf16", "`make bf16`"), ("nvfp4", "`make nvfp4`"), ("mxfp8", "`make train PRECISION=mxfp8`"),
     ("fp8_tomorrow", "the run")],
)  # fmt: skip
def test_the_way_out_of_a_failed_run_is_a_command_there_is(make_run, precision: str, command: str) -> None:
    bad = make_run(precision, name="bad", outcome={"verdict": "failed"})
    with pytest.raises(NotComparable) as refusal:
        compare(make_run("bf16"), bad)
    assert refusal.value.differences[0].way_out == f"mend the cause, then {command} again"


def test_too_few_iterations_are_refused(make_run) -> None:
    few = {"iterations": 8, "parity": {"train_iters": 8}}
    assert refused(make_run("bf16", **few), make_run("nvfp4", **few)) == {"timed iterations": (4, 4)}


def test_flops_may_differ_by_rounding_only(make_run) -> None:
    bf16 = make_run("bf16")
    assert compare(bf16, make_run("nvfp4", name="near", environment={"flops_per_token": 5309184 * 1.005}))
    far = make_run("nvfp4", environment={"flops_per_token": 5309184 * 1.06})
    assert list(refused(bf16, far)) == ["flops_per_token"]


def test_force_compares_and_says_so_everywhere(make_run, tmp_path: Path) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4", parity={"seed": 7}), force=True)
    assert result.forced
    text = printed(result)
    assert text.startswith("FORCED")
    assert "seed: A 1234, B 7" in text
    written = json.loads(saved.write(result, tmp_path / "c.json").read_text())
    assert written["forced"] is True
    assert written["differences"][0]["name"] == "seed"


def test_force_is_not_said_where_it_was_not_needed(make_run) -> None:
    assert not compare(make_run("bf16"), make_run("nvfp4"), force=True).forced


def test_force_cannot_compare_nothing(make_run) -> None:
    empty = make_run("nvfp4", iterations=0, validation=None)
    with pytest.raises(NotComparable) as refusal:
        compare(make_run("bf16"), empty, force=True)
    assert [found.name for found in refusal.value.differences] == ["iterations"]


def test_both_resumed_at_the_same_place_is_a_warning(make_run) -> None:
    parity = {"start_iteration": 10}
    result = compare(make_run("bf16", parity=parity), make_run("nvfp4", parity=parity))
    assert warnings(result) == ["A and B: resumed at iteration 10"]
    assert printed(result).count("30-60 of 11-60") == 2


def test_validation_at_another_iteration_has_no_gap(make_run) -> None:
    a, b = make_run("bf16"), make_run("nvfp4", validation=None)
    with (b / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "split": "validation", "iteration": 40, "loss": 2.5}\n{"kind": "ev')
    result = compare(a, b)
    assert result.contrasts[0].validation_loss_gap is None
    assert "validated at different iterations: A 60, B 40" in warnings(result)
    same = compare(a, make_run("nvfp4", name="same", validation=2.424))
    assert same.contrasts[0].validation_loss_gap.value == pytest.approx(1.0)


def test_losses_that_are_not_finite_are_counted(make_run) -> None:
    b = make_run("nvfp4")
    lines = (b / "metrics.jsonl").read_text().splitlines()
    lines[57] = json.dumps(json.loads(lines[57]) | {"loss": None, "grad_norm": None, "skipped": True})
    (b / "metrics.jsonl").write_text("\n".join(lines))
    result = compare(make_run("bf16"), b, force=True)
    assert [str(found) for found in result.differences] == ["skipped iterations: A 0, B 1"]
    assert result.contrasts[0].gap_iterations == 5
    assert warnings(result) == [
        "B: 1 iterations were skipped",
        "B: loss is missing or not finite in 1 of 60 lines",
        "B: grad norm is missing or not finite in 1 of 60 lines",
    ]


def test_unlike_peak_memories_are_not_compared(make_run) -> None:
    memory = {"peak_memory": {"bytes": 10**9, "kind": "resident set size of the process"}}
    result = compare(make_run("bf16"), make_run("nvfp4", outcome=memory))
    assert "the peak memories are different things and cannot be compared" in warnings(result)


def test_two_logs_are_compared_by_what_they_print(tmp_path: Path) -> None:
    text = FP8.read_text()
    other = tmp_path / "bf16.log"
    other.write_text(text.replace("  fp8: 'hybrid'", "  unused: 'x'"))
    result = compare(FP8, other)
    assert ([arm.precision for arm in result.arms], result.baseline) == (["fp8", "bf16"], "B")
    assert result.arm("A").model_tflops_per_gpu.value == 656.2
    assert result.arm("A").tokens_per_second.value == pytest.approx(65536 / 1.4409, rel=1e-3)
    assert any("before optimizer state exists" in warning for warning in warnings(result))
    longer = tmp_path / "long.log"
    longer.write_text(
        text.replace("sequence_length: 4096", "sequence_length: 8192").replace("num_layers: 8", "num_layers: 9")
    )
    assert set(refused(FP8, longer)) == {"sequence_length", "num_layers", "flops_per_token"}


def test_what_a_log_cannot_tell_is_named(make_run, tmp_path: Path) -> None:
    log = tmp_path / "bf16.log"
    lines = "".join(
        f" [2026-11-22 06:58:39] iteration {number}/ 60 | consumed samples: {32 * number} |"
        f" elapsed time per iteration (ms): 200.0 | global batch size: 32 | lm loss: 2.0E+00 |\n"
        for number in range(1, 61)
    )
    log.write_text("Starting training loop at iteration 0\n" + lines + "[after training is done]\n")
    run = make_run("nvfp4", step=0.1)
    assert set(refused(run, log)) == {"settings"}
    result = compare(run, log, force=True)
    assert {"device", "data", "learning_rate", "flops_per_token"} <= set(result.unchecked)
    assert any(warning.startswith("not known of all, so not checked") for warning in warnings(result))
    assert any("FLOPs a token cannot be derived" in warning for warning in warnings(result))
    assert result.arm("B").tokens_per_second is None


def test_scope_says_what_a_small_run_cannot_show(make_run) -> None:
    bf16 = make_run("bf16")
    assert "nothing about convergence at scale" in compare(bf16, make_run("nvfp4")).scope
    mock = make_run("nvfp4", name="mock", environment={"mock_data": True})
    assert "mock data" in compare(bf16, mock).scope


def test_the_bigram_entropy_stands_beside_the_validation_loss(make_run) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4"))
    assert (result.bigram_entropy.value, result.bigram_entropy.unit) == (2.4037, "nats a byte")
    assert "2.4037 nats a byte" in printed(result)


def test_the_json_is_the_dataclass(make_run, tmp_path: Path) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4"))
    path = saved.write(result, tmp_path / "new" / "folder" / "comparison.json")
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(dataclasses.asdict(result, dict_factory=saved.flat)))
    assert (written["schema"], written["kind"]) == (2, model.KIND)
    assert Path(written["arms"][0]["runs"][0]["path"]).is_absolute()
    assert written["arms"][0]["step_time"]["unit"] == "s"
    assert saved.write(result, path) == path  # its own file is replaced
    assert [child.name for child in path.parent.iterdir()] == ["comparison.json"]


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 1}', "[1]", "notes", '{"kind": "other"}'])
def test_a_file_of_somebody_else_is_never_overwritten(make_run, tmp_path: Path, content: str) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4"))
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="not overwritten"):
        saved.write(result, path)
    assert path.read_text() == content


def test_a_link_is_not_written_through(make_run, tmp_path: Path) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4"))
    target = saved.write(result, tmp_path / "target.json")
    (tmp_path / "link.json").symlink_to(target)
    with pytest.raises(UsageError, match="not overwritten"):
        saved.write(result, tmp_path / "link.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [("environment.json", "{"), ("environment.json", "[]"), ("environment.json", '{"parity": 3}'),
     ("outcome.json", '{"verdict": "splendid"}'), ("outcome.json", "5")],
)  # fmt: skip
def test_an_edited_record_is_an_error_with_its_path(make_run, name: str, content: str) -> None:
    folder = make_run("bf16")
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match=str(folder)):
        loading.load(folder)
