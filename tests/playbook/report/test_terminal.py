"""What a comparison looks like in a terminal of 80 columns."""

import dataclasses
import io
import re
from pathlib import Path

import pytest

from playbook.compare import comparison
from playbook.compare.comparison import NotComparable
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.report import terminal, wording


def compare(a: Path, b: Path) -> Comparison:
    return comparison.compare([[loading.load(a)], [loading.load(b)]])


def printed(result: Comparison) -> str:
    out = io.StringIO()
    terminal.print_comparison(result, out)
    return out.getvalue()


def nvfp4(*, tail: int = 1, **off: bool) -> dict:
    """What `environment.json` says of an NVFP4 run, with these ingredients of the recipe turned off."""
    ingredients = {"rht": True, "stochastic": True, "two_d": True} | off
    facts = {"name": "nvfp4", "arithmetic": "native", "bf16_head_layers": 0, "bf16_tail_layers": tail}
    return {"precision": facts | {"ingredients": ingredients}}


def row(text: str, label: str) -> list[str]:
    """The two cells of a row of the table."""
    found = [line for line in text.splitlines() if line.startswith(f"{label} ")]
    return re.split(r"  +", found[0].strip())[1:] if found else []


def lines_of_the_table(result: Comparison) -> list[str]:
    return [line for line in printed(result).splitlines() if not line.startswith(("A  ", "B  "))]


def test_the_last_way_out_is_the_caller_s(make_run) -> None:
    with pytest.raises(NotComparable) as refusal:
        compare(make_run("bf16"), make_run("nvfp4", parity={"seed": 1}))
    out = io.StringIO()
    terminal.print_refusal(refusal.value, out, "FRESH=1 trains all of them again.")
    assert out.getvalue().endswith("FRESH=1 trains all of them again.\n")
    assert "--force" not in out.getvalue()


def test_a_peak_of_several_processes_says_so(make_run) -> None:
    memory = {"peak_memory": {"bytes": 10**9, "kind": "torch allocated", "processes": 4}}
    result = compare(make_run("bf16", outcome=memory), make_run("nvfp4", outcome=memory))
    assert "Peak memory       torch allocated, largest of 4 processes\n" in printed(result)
    memory["peak_memory"]["processes"] = 1
    result = compare(make_run("bf16", name="one", outcome=memory), make_run("nvfp4", name="other", outcome=memory))
    assert "Peak memory       torch allocated\n" in printed(result)


@pytest.mark.parametrize(("kind", "of_host"), [("resident set size of the process", True), ("device used", False)])
def test_memory_of_the_host_says_that_compiling_counts(make_run, kind: str, of_host: bool) -> None:
    outcome = {"peak_memory": {"bytes": 2_000_000_000, "kind": kind, "all": {kind: 2_000_000_000}}}
    said = " ".join(printed(compare(make_run("bf16", outcome=outcome), make_run("nvfp4", outcome=outcome))).split())
    assert "Peak memory +0.00 GB (+0.0 %), B against A" in said
    assert ("Note the peak memory is the host's, a first run's compilation included" in said) == of_host


def test_the_nvfp4_recipe_is_shown_and_less_than_all_of_it_warned_of(make_run) -> None:
    bf16 = make_run("bf16")
    full = compare(bf16, make_run("nvfp4", environment=nvfp4()))
    assert row(printed(full), "NVFP4 recipe") == ["-", "full"]
    assert not full.warnings
    less = compare(bf16, make_run("nvfp4", name="less", environment=nvfp4(stochastic=False)))
    assert row(printed(less), "NVFP4 recipe") == ["-", "without"]  # the rest stands below
    assert "stochastic rounding" in printed(less)
    assert less.warnings == ["B: not the full NVFP4 recipe: without stochastic rounding"]
    assert dataclasses.asdict(less)["arms"][1]["ingredients"] == {"rht": True, "stochastic": False, "two_d": True}
    assert "NVFP4 recipe" not in printed(compare(bf16, make_run("mxfp8")))


def test_wholly_nvfp4_may_diverge(make_run) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4", environment=nvfp4(tail=0)))
    assert wording.run_warnings(result.arms) == [
        "B: no layer in BF16: training may diverge; it did in arXiv 2509.25149 (section 4.1, its size not said), and "
        "did not in a Llama 3.1 8B over 160B tokens (MrHuff/mfu-fp4-training)"
    ]


def test_gpu_flops_are_not_said_of_a_cpu_or_an_emulation(make_run) -> None:
    label, cpu = "MODEL_TFLOP/s/GPU (IQR)", {"device": {"kind": "cpu"}}
    native, emulated = make_run("bf16"), make_run("nvfp4", arithmetic="emulated")
    cells = row(printed(compare(native, emulated)), label)
    assert cells[0][0].isdigit()
    assert cells[1] == "-"
    emulated_bf16 = make_run("bf16", name="emulated", arithmetic="emulated")
    assert label not in printed(compare(emulated_bf16, emulated))
    on_cpu = [
        make_run(name, name=f"cpu-{name}", arithmetic="emulated", environment=cpu, parity={"world_size": 2})
        for name in ("bf16", "mxfp8")
    ]
    assert "/GPU" not in printed(compare(*on_cpu))


@pytest.mark.parametrize("recipe", [{"stochastic": False}, {"rht": False, "stochastic": False, "two_d": False}])
def test_large_numbers_are_neither_cut_nor_wrapped(make_run, recipe: dict) -> None:
    batch, memory = (
        {"sequence_length": 4096, "global_batch_size": 64},
        {"peak_memory": {"bytes": 150_123_000_000, "kind": "x"}},
    )
    runs = [
        make_run("nvfp4", name=name, step=0.02, outcome=memory, parity=batch, environment=nvfp4(**recipe))
        for name in ("one", "two")
    ]
    lines = lines_of_the_table(compare(*runs))
    assert any(line.count("13,107,200") == 2 for line in lines)
    assert any(line.count("(12,977,426-13,239,596)") == 2 for line in lines)
    assert any(line.count("20.00 (19.80-20.20)") == 2 for line in lines)  # what fits stays in one
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert "…" not in "".join(lines)
    huge = [loading.load(run) for run in runs]
    for run in huge:
        run.environment["tokens_per_step"] *= 10**6
        run.parity["global_batch_size"] *= 10**6
    wide = [line for line in lines_of_the_table(comparison.compare([[run] for run in huge])) if "(12,977,42" in line]
    assert [line.split() for line in wide] == [["(12,977,425,742,574-13,239,595,959,596)"] * 2]


def test_the_table_is_plain_and_fits_80_columns(make_run) -> None:
    result = compare(make_run("bf16", arithmetic="emulated"), make_run("nvfp4", arithmetic="emulated"))
    lines = printed(result).splitlines()
    assert len(lines) <= 38  # the time to equal loss takes ten of them
    assert all(len(line.rstrip()) <= 80 for line in lines if not line.startswith(("A  ", "B  ")))
    assert "\x1b" not in "".join(lines)
    assert "…" not in "".join(lines)
