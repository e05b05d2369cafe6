"""A record that contradicts itself is refused with what contradicts what, and a sound one is not."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.cli import history
from playbook.compare import comparison
from playbook.compare.comparison import NotComparable
from playbook.compare.figures import measure
from playbook.record import loading

GOOD = ": A as it should be, B "
H200 = {"kind": "gpu", "name": "NVIDIA GB300", "capability": [9, 0]}


@pytest.fixture
def stamped(make_run):
    """`stamped("bf16", between=0.01, environment={...})`: a run whose lines have the time they were written at."""

    days = itertools.count(20000)

    def make(precision: str, *, between: float = 0.001, **more) -> Path:
        folder, at = make_run(precision, **more), 86400.0 * next(days)
        lines = read(folder)
        for line in lines:
            at += line.get("step_time_s", 0) + between
            line["time"] = round(at, 3)
        write(folder, lines)
        return folder

    return make


def read(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder: Path, lines: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare(*folders: Path, force: bool = False):
    return comparison.compare([[loading.load(folder)] for folder in folders], force=force)


def refused(*folders: Path) -> list[str]:
    with pytest.raises(NotComparable) as refusal:
        compare(*folders)
    assert all(found.way_out for found in refusal.value.differences)
    return [str(found) for found in refusal.value.differences]


def halved(lines: list[dict]) -> list[dict]:
    return [line | {"step_time_s": line["step_time_s"] / 2} if "step_time_s" in line else line for line in lines]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda lines: lines[:20] + lines[40:], f"recorded iterations{GOOD}21 to 40 are missing"),
        (lambda lines: lines[:20] + lines[21:], f"recorded iterations{GOOD}21 is missing"),
        (lambda lines: lines[1:], f"recorded iterations{GOOD}1 is missing"),
        (lambda lines: [each for line in lines for each in (line, line)],
         f"recorded iterations{GOOD}1 is there twice"),
        (lambda lines: [lines[5], *lines[:5], *lines[6:]], f"recorded iterations{GOOD}1 to 5 are missing"),
        (halved, f"step times{GOOD}0.1 s a step, in lines that were written every 0.201 s"),
        (lambda lines: [line | {"time": 1.0} for line in lines],
         f"step times{GOOD}0.2 s a step, in lines that were written every 0 s"),
        (lambda lines: [line | {"loss": None} for line in lines],
         r"verdict: A succeeded, B diverged \(the loss is not finite from iteration 1 to the end\)"),
        (lambda lines: [], r"verdict: A succeeded, B incomplete \(the metrics hold none of 60 iterations\)"),
    ],
)  # fmt: skip
def test_metrics_that_cannot_be(stamped, edit: Callable, said: str) -> None:
    good, bad = stamped("bf16"), stamped("nvfp4")
    write(bad, edit(read(bad)))
    assert any(re.fullmatch(said, each) for each in refused(good, bad))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"environment": {"tokens_per_step": 8192}}, f"tokens_per_step{GOOD}8192, of 32 sequences of 128"),
        ({"environment": {"device": H200}},
         f"arithmetic{GOOD}nvfp4, native on compute capability 9.0"),
        ({"environment": {"device": {"kind": "cpu", "name": "NVIDIA GB300"}}},
         f"arithmetic{GOOD}nvfp4, native on a CPU"),
        ({"environment": {"device": {"kind": "gpu", "name": "NVIDIA H200", "capability": [10, 0]}}},
         f"device{GOOD}NVIDIA H200 and NVIDIA GB300"),
        ({"outcome": {"iterations": 80}}, f"last iteration{GOOD}60 in the metrics and 80 in the outcome"),
    ],
)  # fmt: skip
def test_facts_that_cannot_be(stamped, facts: dict, said: str) -> None:
    good, bad = stamped("bf16"), stamped("nvfp4", **facts)
    assert refused(good, bad) == [said]
    name, _, found = said.partition(GOOD)
    warnings = compare(good, bad, force=True).arms[1].runs[0].warnings
    assert f"the record contradicts itself: {name}: {found}" in warnings


def test_a_copy_is_no_second_run(stamped) -> None:
    first = stamped("bf16", name="first")
    copy = first.with_name("copy")
    shutil.copytree(first, copy)
    assert refused(first, copy) == ["metrics: A one training, B the same one"]
    log = first.with_name("a.log")
    log.write_bytes((Path(__file__).parents[2] / "logs" / "h200-fp8-0.4.0.log").read_bytes())
    shutil.copy(log, log.with_name("b.log"))
    assert refused(log, log.with_name("b.log")) == ["metrics: A one training, B the same one"]
    assert compare(first, first).warnings == ["A and B are the same run"]
    assert compare(first, stamped("bf16", name="again")).contrasts


@pytest.mark.parametrize("between", [0.0, 0.001, 0.04, 0.1])
def test_what_lies_between_steps_is_no_contradiction(stamped, between: float) -> None:
    assert compare(stamped("bf16", between=between), stamped("nvfp4", step=0.03)).contrasts


def test_pauses_and_a_clock_that_was_set_are_none(stamped) -> None:
    folder = stamped("nvfp4", outcome={"iterations": 60})
    lines = read(folder)
    for line in lines[20:]:
        line["time"] += 300  # a checkpoint
    for line in lines[40:]:
        line["time"] -= 3600  # the machine's clock
    write(folder, lines)
    assert compare(stamped("bf16"), folder).contrasts


def test_a_resumed_run_begins_where_the_other_ended(stamped) -> None:
    parity = {"start_iteration": 20}
    assert compare(stamped("bf16", parity=parity), stamped("nvfp4", parity=parity)).contrasts


def test_a_batch_that_grows_is_held_against_its_last_size(stamped) -> None:
    folders = stamped("bf16"), stamped("nvfp4")
    for folder in folders:
        lines = [line | {"global_batch_size": 8 if line["iteration"] < 30 else 32} for line in read(folder)]
        write(folder, lines)
    assert compare(*folders).contrasts


def test_energy_is_shared_by_the_iterations_that_are_there(stamped) -> None:
    folder = stamped("bf16")
    lines = read(folder)
    samples = [{"time": 20000 * 86400.0 + second, "device": 0, "power_w": 100.0} for second in range(200)]
    (folder / "device.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    whole = measure(loading.load(folder)).result.energy_per_step.value
    write(folder, lines[:30] + lines[50:])
    holed = measure(loading.load(folder)).result.energy_per_step
    assert whole == pytest.approx(100 * 0.2, rel=0.02)
    assert (holed.count, len(lines[:60]) - 20) == (21, 40)


def test_history_does_not_call_a_run_without_lines_a_success(make_run, capsys) -> None:
    folder = make_run("bf16")
    (folder / "metrics.jsonl").write_bytes(b"\0" * 500)
    assert history.main(["--runs", str(folder.parent)]) == 0
    assert "incomplete" in capsys.readouterr().out
