"""Real trainings of the tiny model: what they leave, that they repeat, and that they resume."""

import json
import math
import re
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from trainings import PRECISIONS, in_both, losses

from pretraining.record import code_state, lock, run_folder
from pretraining.record.run_folder import Peak, Verdict
from pretraining.request.models import MODELS

pytestmark = pytest.mark.slow

PEAK, LOWEST = MODELS["tiny"].learning_rate
LINE = {"kind", "iteration", "loss", "step_time_s", "grad_norm", "learning_rate"}
LINE |= {"global_batch_size", "skipped", "finite", "time"}


@pytest.fixture(scope="session")
def repeats(train) -> dict[str, Path]:
    """The same again, without checkpoints and in a Python whose imports were done before."""
    return in_both(lambda precision: train(precision)[0])


@pytest.fixture(scope="session")
def resumed(train, runs, tmp_path_factory) -> dict[str, Path]:
    """The second halves: resumed from the unbroken run as it was when it had saved its third iteration."""

    def second_half(precision: str) -> Path:
        broken = tmp_path_factory.mktemp("broken") / precision
        shutil.copytree(runs[precision], broken)
        checkpoints = broken / run_folder.CHECKPOINTS
        shutil.rmtree(checkpoints / "iter_0000006")
        shutil.copy(checkpoints / "iter_0000003" / "train_state.pt", checkpoints / "latest_train_state.pt")
        tracker = checkpoints / "latest_checkpointed_iteration.txt"
        if tracker.exists():
            tracker.write_text("3")
        before = {path: path.stat().st_mtime_ns for path in broken.rglob("*")}
        folder, _ = train(precision, "--resume", str(broken))
        assert {path: path.stat().st_mtime_ns for path in broken.rglob("*")} == before  # only read
        return folder

    return in_both(second_half)


TWICE = """\
import torch
from megatron.bridge.training.callbacks import Callback

class Seen(Callback):
    def on_train_step_end(self, context):
        print("the plugin saw step", context.state.train_state.step)

callbacks = [Seen()]

def loss(loss_mask, output_tensor):
    mask = loss_mask.view(-1).float()
    total, tokens = 2 * (output_tensor.view(-1).float() * mask).sum(), mask.sum().int()
    return total, tokens, {"lm loss": torch.stack([total.detach(), tokens.float()])}

def configure(config):
    config.optimizer.min_lr = 1e-3
"""


@pytest.fixture(scope="session")
def others(train, runs, make_dataset, tmp_path_factory) -> dict[str, tuple[Path, subprocess.CompletedProcess[str]]]:
    """Further runs, two at a time."""
    root = tmp_path_factory.mktemp("others")
    (root / "data").mkdir()
    own = make_dataset(root / "data" / "corpus", tokens=20_000)
    short = make_dataset(root / "data" / "short", tokens=100)
    plugin, failing = root / "twice.py", root / "failing.py"
    plugin.write_text(TWICE)
    failing.write_text(TWICE.replace("print(", "1 / 0 or print("))
    flags = {
        "another seed": ("--seed", "7", "--train-iters", "2", "--tensorboard"),
        "own data": ("--data", f"{own}.bin", "--train-iters", "2"),
        "short data": ("--data", short),
        "at its end": ("--resume", str(runs["bf16"])),
        "its config": ("--config", str(runs["bf16"] / run_folder.CONFIG)),
        "plugin": ("--plugin", str(plugin), "--train-iters", "2", "model.num_layers=2", "optimizer.adam_beta2=0.9"),
        "failing plugin": ("--plugin", str(failing), "--train-iters", "2"),
        "evaluated": ("--resume", str(runs["bf16"]), "--evaluate"),
        "exported": ("--resume", str(runs["bf16"]), "--export", str(root / "huggingface")),
    }
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(train, "bf16", *given, code=None, folder=root / name.replace(" ", "-") / "run")
            for name, given in flags.items()
        }
    return {name: future.result() for name, future in started.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_folder_is_complete(runs, precision: str) -> None:
    folder = runs[precision]
    run = run_folder.read_run(folder)
    files = {
        run_folder.ENVIRONMENT,
        run_folder.METRICS,
        run_folder.SAMPLES,
        run_folder.LOG,
        run_folder.CONFIG,
        run_folder.OUTCOME,
        run_folder.CHECKPOINTS,
        lock.FILE,
    }
    assert {path.name for path in folder.iterdir()} == files
    assert run.verdict is Verdict.SUCCEEDED
    assert set(run.outcome) == {
        "kind", "schema", "verdict", "cause", "exit_code", "ended", "seconds", "iterations", "peak_memory",
        "sampling_core_share",
    }  # fmt: skip
    assert (run.outcome["cause"], run.outcome["exit_code"], run.outcome["iterations"]) == ("", 0, 6)
    assert 0 < run.outcome["sampling_core_share"] < 0.01
    peak = run.outcome["peak_memory"]
    assert set(peak["all"]) == {Peak.RESIDENT, Peak.RESIDENT_OF_ALL}
    assert 2e8 < peak["bytes"] < 2e10 and (peak["kind"], peak["processes"]) == (Peak.RESIDENT, 1)
    assert peak["bytes"] == peak["all"][Peak.RESIDENT]
    assert peak["all"][Peak.RESIDENT_OF_ALL] == pytest.approx(peak["bytes"], rel=0.1)  # one process, looked at often
    assert 0 < sum(line["step_time_s"] for line in run.train) < run.outcome["seconds"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_is_sampled_from_before_the_model_to_the_end(runs, precision: str) -> None:
    run = run_folder.read_run(runs[precision])
    assert {line["device"] for line in run.samples} == {"cpu"}
    assert sum(line["samples"] for line in run.samples) >= 10 * (run.samples[-1]["time"] - run.samples[0]["time"])
    assert max(line["process_bytes"] for line in run.samples) == run.outcome["peak_memory"]["all"][Peak.RESIDENT_OF_ALL]
    assert run.samples[0]["process_bytes"] < 0.8 * max(line["process_bytes"] for line in run.samples)
    assert run.samples[0]["time"] < run.train[0]["time"] and run.train[-1]["time"] < run.samples[-1]["time"]
    assert run.environment["sampling"] == {"rate_hz": 12.5}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metrics(runs, precision: str) -> None:
    run = run_folder.read_run(runs[precision])
    assert [line["iteration"] for line in run.train] == [1, 2, 3, 4, 5, 6]
    assert all(set(line) == LINE for line in run.train)
    assert all(line["finite"] and not line["skipped"] and line["step_time_s"] > 0 for line in run.train)
    assert losses(run)[0] == pytest.approx(math.log(257), abs=0.3)  # it knows nothing yet
    assert losses(run)[-1] < losses(run)[0] - 0.5  # and has learned something
    rates = [line["learning_rate"] for line in run.train]
    assert rates[0] == 0 and rates[1] == pytest.approx(PEAK)  # the first is the warm-up: what it trained with
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] > LOWEST
    assert [(line["split"], line["iteration"]) for line in run.evaluations] == [("validation", 6), ("test", 6)]
    assert all(2 < line["loss"] < losses(run)[0] for line in run.evaluations)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_step_times_are_megatrons_own_without_its_logging_and_no_checkpoint_is_in_them(runs, precision: str) -> None:
    log = (runs[precision] / run_folder.LOG).read_text()
    printed = re.findall(r"iteration +(\d+)/.*?elapsed time per iteration \(ms\): ([\d.]+)", log)
    saving = min(map(float, re.findall(r"save-checkpoint \.*: \(([\d.]+)", log)))
    steps = {line["iteration"]: 1000 * line["step_time_s"] for line in run_folder.read_run(runs[precision]).train}
    more = {int(number): float(time_ms) - steps[int(number)] for number, time_ms in printed}
    assert set(more) == set(steps) and min(more.values()) > -0.1  # printed to a tenth
    assert more[4] < saving / 2  # the first iteration after a checkpoint
    # In one iteration at least: other work on the machine only ever adds to the difference, 10 ms at a time.
    assert min(more.values()) < 0.05 * statistics.median(steps.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_environment(runs, precision: str) -> None:
    run = run_folder.read_run(runs[precision])
    found = run.environment
    assert set(found) == {
        "kind", "schema", "started", "host", "pid", "model", "precision", "versions", "device", "mock_data",
        "tokens_per_step", "processes", "resumed_from", "weights_from", "trained", "finetuned", "text", "parity",
        "flops_per_token", "context", "sampling",
    }  # fmt: skip
    assert (run.precision["name"], run.precision["arithmetic"]) == (precision, "emulated")
    assert (run.precision["bf16_head_layers"], run.precision["bf16_tail_layers"]) == (0, int(precision == "nvfp4"))
    assert ("ingredients" in run.precision) == (precision == "nvfp4")
    if precision == "nvfp4":
        assert run.precision["ingredients"] == {"rht": True, "stochastic": True, "two_d": True}
    assert (found["model"], found["mock_data"], found["tokens_per_step"], found["processes"]) == (
        "tiny",
        False,
        1024,
        1,
    )
    assert {"python", "torch", "megatron-bridge", "megatron-core"} <= set(found["versions"])
    assert found["device"]["kind"] == "cpu" and found["device"]["threads"] == 1
    # 6 FLOPs a weight and token, the embedding apart, and the attention's own products
    weights = run.parity["parameters"] - 257 * 128
    assert 6 * weights < found["flops_per_token"] < 9 * weights
    expected = {
        "model": "tiny", "parameters": 853376, "num_layers": 4, "sequence_length": 128, "global_batch_size": 8,
        "micro_batch_size": 8, "train_iters": 6, "warmup_iters": 1, "start_iteration": 0, "seed": 1234,
        "learning_rate": PEAK, "min_learning_rate": LOWEST, "world_size": 1, "transformer_engine": None,
        "decay_iters": 6, "decay_style": "cosine", "tokenizer": "NullTokenizer", "transformer_impl": "local",
        "cuda_graphs": "none", "recompute": None, "sequence_parallel": False, "driver": None, "cuda": None,
    }  # fmt: skip
    assert {name: run.parity[name] for name in expected} == expected
    assert run.parity["data"].startswith("python-stdlib-") and "attention_backend" in run.parity
    assert run.context == {
        "code": code_state.digest(), "parameter_gather": "float32", "gradient_reduction": "float32",
        "gradient_accumulation_fusion": False, "writers": [], "save_interval": 3,
    }  # fmt: skip


def test_two_precisions_of_the_same_work_have_the_same_facts(runs) -> None:
    bf16, nvfp4 = (run_folder.read_run(runs[precision]) for precision in PRECISIONS)
    assert bf16.parity == nvfp4.parity


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_resolved_config_is_kept(runs, precision: str) -> None:
    text = (runs[precision] / run_folder.CONFIG).read_text()
    config = yaml.load(text, Loader=yaml.BaseLoader)
    assert (config["train"]["train_iters"], config["train"]["global_batch_size"]) == ("6", "8")
    assert (config["model"]["num_layers"], config["rng"]["seed"]) == ("4", "1234")
    assert "lm loss" in (runs[precision] / run_folder.LOG).read_text()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_seed_gives_the_same_run_to_the_last_digit(runs, repeats, precision: str) -> None:
    first, second = (run_folder.read_run(each[precision]) for each in (runs, repeats))
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [line[name] for line in first.train] == [line[name] for line in second.train]
    assert [line["loss"] for line in first.evaluations] == [line["loss"] for line in second.evaluations]
    assert first.parity == second.parity


def test_a_runs_config_run_again_gives_the_same_losses(runs, others) -> None:
    """Also the same facts: an unedited file changes nothing."""
    folder, ended = others["its config"]
    assert ended.returncode == 0, ended.stderr[-2000:]
    again, first = run_folder.read_run(folder), run_folder.read_run(runs["bf16"])
    assert losses(again) == losses(first)
    assert again.parity == first.parity and "overrides" not in again.parity


def test_a_plugin_and_an_override_take_part_and_are_facts(runs, others) -> None:
    folder, ended = others["plugin"]
    assert ended.returncode == 0, ended.stderr[-2000:]
    run, plain = run_folder.read_run(folder), run_folder.read_run(runs["bf16"])
    assert losses(run)[0] == pytest.approx(2 * losses(plain)[0], rel=0.05)  # its loss counts twice
    assert (folder / run_folder.LOG).read_text().count("the plugin saw step") == 2
    assert run.parity["min_learning_rate"] == 1e-3 and run.parity["num_layers"] == 2
    assert run.parity["overrides"] == {"optimizer.adam_beta2": "0.9"} and len(run.parity["plugin"]) == 12


def test_a_failing_plugin_is_told_by_file_and_line(others) -> None:
    folder, ended = others["failing plugin"]
    assert ended.returncode == 1
    cause = run_folder.read_run(folder).outcome["cause"]
    assert cause == f"{folder.parent.parent / 'failing.py'}:6: ZeroDivisionError: division by zero"


def test_another_seed_gives_another_run(runs, others) -> None:
    other, first = (losses(run_folder.read_run(folder)) for folder in (others["another seed"][0], runs["bf16"]))
    assert other[0] != first[0] and other[0] == pytest.approx(first[0], abs=0.3)


def test_tensorboard_has_the_same_losses(others) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = others["another seed"][0]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    written = events.Scalars("lm loss")
    assert [event.step for event in written] == [1, 2]
    assert [event.value for event in written] == pytest.approx(losses(run_folder.read_run(folder)))


def test_nvfp4_is_not_bf16_and_near_it(runs) -> None:
    bf16, nvfp4 = (losses(run_folder.read_run(runs[precision])) for precision in PRECISIONS)
    gaps = [abs(one - other) for one, other in zip(bf16, nvfp4, strict=True)]
    assert all(gaps)
    assert max(gaps) < 0.3
    assert gaps[0] < 0.05  # the same weights and the same text, rounded differently


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_goes_on_exactly_where_the_other_was(runs, resumed, precision: str) -> None:
    """Weights, optimizer, sample order, learning rate and the seeds of stochastic rounding: all to the last digit."""
    unbroken, second_half = (run_folder.read_run(each[precision]) for each in (runs, resumed))
    assert [line["iteration"] for line in second_half.train] == [4, 5, 6]
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [line[name] for line in second_half.train] == [line[name] for line in unbroken.train[3:]]
    assert [line["loss"] for line in second_half.evaluations] == [line["loss"] for line in unbroken.evaluations]
    assert second_half.parity["start_iteration"] == 3
    assert second_half.environment["resumed_from"].endswith(precision)
    assert second_half.outcome["iterations"] == 6


def test_a_run_resumed_at_its_end_is_refused(others) -> None:
    folder, ended = others["at its end"]
    assert ended.returncode == 2 and "raise --train-iters" in ended.stderr + ended.stdout
    assert run_folder.read_run(folder).train == []
    assert run_folder.read_run(folder).verdict is Verdict.FAILED


def test_evaluating_a_checkpoint_trains_nothing(others, runs) -> None:
    folder, ended = others["evaluated"]
    assert ended.returncode == 0, ended.stderr[-2000:]
    run, before = run_folder.read_run(folder), run_folder.read_run(runs["bf16"])
    assert run.verdict is Verdict.SUCCEEDED and run.train == [] and not run.environment["trained"]
    assert [(line["split"], line["iteration"]) for line in run.evaluations] == [("validation", 6), ("test", 6)]
    expected = [line["loss"] for line in before.evaluations]
    assert [line["loss"] for line in run.evaluations] == pytest.approx(expected, abs=0.05)  # of other batches
    assert not (folder / run_folder.CHECKPOINTS).exists()
    by_sequence = [json.loads(line) for line in (folder / run_folder.SEQUENCES).read_text().splitlines()]
    for line in run.evaluations:
        losses = {each["sequence"]: each["loss"] for each in by_sequence if each["split"] == line["split"]}
        assert len(losses) > 10 and sum(losses.values()) / len(losses) == pytest.approx(line["loss"], abs=1e-5)


def test_exported_weights_are_those_of_the_checkpoint(others, in_python) -> None:
    """Scored by `transformers` on a text of the same kind: what six iterations have learned is there."""
    folder, ended = others["exported"]
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert run_folder.read_run(folder).verdict is Verdict.SUCCEEDED
    loss = in_python(
        """
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM
        model = LlamaForCausalLM.from_pretrained(sys.argv[1])
        words = AutoTokenizer.from_pretrained(sys.argv[1])
        text = words(open(json.__file__).read()[:2000], return_tensors="pt").input_ids
        with torch.no_grad():
            answer = float(model(text, labels=text).loss)
        """,
        str(folder.parents[1] / "huggingface"),
    )
    trained = run_folder.read_run(others["evaluated"][0]).evaluations[0]["loss"]
    assert loss == pytest.approx(trained, abs=0.4) and loss < math.log(257) - 0.5


def test_fine_tuning(train, others, runs, instructions: Path) -> None:
    """All weights from a run's checkpoint, and adapters on the same weights as Hugging Face's: one first loss."""
    exported = str(others["exported"][0].parents[1] / "huggingface")
    given = ("--data", str(instructions), "--tokenizer", str(instructions), "--seq-length", "64", "--save", "4")
    schemes = {"sft": str(runs["bf16"]), "lora": exported}
    with ThreadPoolExecutor(2) as pool:
        started = {
            scheme: pool.submit(train, "nvfp4", "--finetune", scheme, "--from", base, "--train-iters", "4", *given)
            for scheme, base in schemes.items()
        }
    tuned = {scheme: run_folder.read_run(future.result()[0]) for scheme, future in started.items()}
    for scheme, run in tuned.items():
        assert losses(run)[-1] < losses(run)[0] - 0.1, scheme
        assert [line["split"] for line in run.evaluations] == ["validation"]
        assert run.environment["finetuned"] == scheme and not run.environment["mock_data"]
    assert losses(tuned["lora"])[0] == losses(tuned["sft"])[0]  # adapters begin as nothing
    assert "loss of a known text" in (tuned["lora"].folder / run_folder.LOG).read_text()
    sizes = {
        scheme: sum(path.stat().st_size for path in (run.folder / run_folder.CHECKPOINTS).rglob("*.distcp"))
        for scheme, run in tuned.items()
    }
    assert sizes["lora"] < sizes["sft"] / 2  # adapters and their optimizer state alone
    assert {path.name for path in instructions.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "training.jsonl", "validation.jsonl",
    }  # fmt: skip


def test_your_own_data(others) -> None:
    folder, ended = others["own data"]
    assert ended.returncode == 0, ended.stderr[-2000:]
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.SUCCEEDED and len(run.train) == 2
    assert run.parity["data"].startswith("corpus-40000-")
    assert "text" not in run.environment and not run.environment["mock_data"]
    assert losses(run)[-1] == pytest.approx(math.log(257), abs=0.3)  # random tokens: there is nothing to learn
    beside = {path.name for path in (folder.parent.parent / "data").iterdir()}
    assert beside == {f"{name}.{ending}" for name in ("corpus", "short") for ending in ("bin", "idx")}  # and no index


def test_data_shorter_than_a_sequence(others) -> None:
    folder, ended = others["short data"]
    assert ended.returncode == 2
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.FAILED and run.outcome["exit_code"] == 2
    assert "--seq-length 128 is longer than the data" in run.outcome["cause"]
    assert run.outcome["cause"] in ended.stdout + ended.stderr


def test_the_outcome_is_written_when_the_run_has_ended(runs) -> None:
    for folder in runs.values():
        outcome = json.loads((folder / run_folder.OUTCOME).read_text())
        last = (folder / run_folder.METRICS).stat().st_mtime
        assert (folder / run_folder.OUTCOME).stat().st_mtime >= last
        assert time.strptime(outcome["ended"], "%Y-%m-%dT%H:%M:%SZ")
