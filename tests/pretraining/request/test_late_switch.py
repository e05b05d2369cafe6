"""A late switch from what a person writes to what is recorded, in every precision that has one."""

from pathlib import Path

import pytest
from asking import refusal, resolve

from pretraining import packages
from pretraining.errors import UsageError
from pretraining.numerics import late_switch
from pretraining.record import run_folder
from pretraining.request import footprint, parallel
from pretraining.request.models import find_model
from pretraining.request.precisions import PRECISIONS, LateSwitch, with_switch
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe
from pretraining.run import ending, run_facts

ITERATIONS = ("--train-iters", "20")


@pytest.mark.parametrize(
    ("flags", "switch", "at"),
    [
        (("--precision", "fp8", "--switch", "0.75"), "0.75:bf16", 15),
        (("--precision", "fp8", "--switch", "1.0"), "1.0:bf16", 20),
        (("--precision", "fp8", "--switch", "0:forward"), "0:forward", 0),
        (("--precision", "fp8", "--switch", "9:fp8_blockwise"), "9:fp8_blockwise", 9),
        (("--precision", "mxfp8", "--switch", "9:fp8"), "9:fp8", 9),
        (("--precision", "nvfp4", "--switch", ".5:fp8"), "0.5:fp8", 10),
        (("--precision", "nvfp4", "--emulate", "--switch", "5:mxfp8"), "5:mxfp8", 5),
        (("--nvfp4", "rht=off switch=5:forward"), "5:forward", 5),
        (("--nvfp4", "switch=5", "--switch", "5:bf16"), "5:bf16", 5),
        (("--emulate", "reference", "--switch", "5"), "5:bf16", 5),
        (("--precision", "fp8", "--switch", "never"), None, None),
        (("--precision", "bf16", "--switch", "never"), None, None),
        (("--precision", "fp8"), None, None),
    ],
)
def test_one_setting_in_every_precision(flags: tuple[str, ...], switch: str | None, at: int | None) -> None:
    chosen = resolve(*flags, *ITERATIONS, on_gpu=True)
    assert (chosen.late_switch and str(chosen.late_switch), chosen.switches_at) == (switch, at)
    assert resolve(*chosen.as_flags(), on_gpu=True) == chosen
    facts = run_facts.describe_precision(chosen, on_gpu=True)
    assert (facts.get("ingredients", {}).get("switch"), facts.get("switches_at")) == (switch, at)
    if chosen.precision.fp4:
        assert chosen.switch is None and chosen.nvfp4.switch == (switch or "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--precision", "bf16", "--switch", "9"), "--switch leads to a higher precision, and bf16 is the highest"),
        (("--precision", "fp8_delayed", "--switch", "9"), "a switch would break; --precision fp8 switches"),
        (("--precision", "fp8", "--switch", "9:fp8_delayed"), "unknown end of a late switch 'fp8_delayed'"),
        (("--precision", "fp8", "--switch", "9:fp8"), "--switch 9:fp8 leads from fp8 to fp8; leave it out"),
        (("--precision", "fp8", "--switch", "9:nvfp4"), "unknown end of a late switch 'nvfp4': "),
        (("--precision", "fp8", "--switch", "9:fp88"), "did you mean 9:fp8?"),
        (("--precision", "fp8", "--switch", "21"), "--switch 21:bf16 comes after the last of 20 iterations"),
        (("--precision", "fp8", "--switch", "1.5"), "'1.5' is neither a fraction of the iterations, 0.0 to 1.0, nor"),
        (("--precision", "fp8", "--switch", ""), "'' is neither"),
        (("--precision", "fp8", "--switch", "9", "--tuned"), "--tuned replays each iteration as it was first"),
        (("--nvfp4", "switch=9", "--switch", "8"), "--switch 8 and switch=9:bf16 of --nvfp4 are one setting with two"),
        (
            ("--emulate", "reference", "--switch", "9:forward"),
            "leave switch=9:forward out",
        ),
        (("--precision", "fp8", "--nvfp4", "switch=9"), "--nvfp4 is nvfp4's recipe and does nothing for fp8"),
    ],
)
def test_what_cannot_be(flags: tuple[str, ...], said: str) -> None:
    assert said in refusal(*flags, *ITERATIONS, on_gpu=True)


def test_the_cpu_computes_no_fp8() -> None:
    assert resolve("--switch", "9:forward").late_switch == LateSwitch(9, "forward")
    assert refusal("--switch", "9:fp8").startswith("--switch 9:fp8: fp8 needs FP8 tensor cores")


FP8_IN_ONE_PASS = r"quantizes fp8, .* 9\.0: --switch 9:bf16 works, .* --precision fp8_blockwise --switch 9:forward$"


@pytest.mark.parametrize(
    ("capability", "release", "flags", "said"),
    [
        ((9, 0), "2.12.0", ("--precision", "fp8", "--switch", "9"), ""),
        ((9, 0), "2.12.0", ("--emulate", "--switch", "9:fp8"), ""),
        ((9, 0), "2.12.0", ("--emulate", "--switch", "9:forward"), ""),
        ((9, 0), "2.12.0", ("--emulate", "--switch", "9:mxfp8"), r"mxfp8 needs a Blackwell .*: --switch 9:bf16 works"),
        ((8, 0), "2.12.0", ("--emulate", "--switch", "0.5:fp8"), r"fp8 needs FP8 .* 8\.0: --switch 0\.5:bf16 works"),
        ((10, 0), "2.18.0", ("--precision", "fp8", "--switch", "9:forward"), r"Transformer Engine 2\.19, and 2\.18"),
        ((10, 0), "2.19.0", ("--precision", "fp8", "--switch", "9:forward"), ""),
        ((9, 0), "2.20.0", ("--precision", "fp8", "--switch", "9:forward"), FP8_IN_ONE_PASS),
        ((8, 9), "2.20.0", ("--precision", "fp8", "--switch", "9:forward"), r"8\.9: --switch 9:bf16 works"),
        ((12, 0), "2.20.0", ("--precision", "fp8", "--switch", "9:forward"), r"12\.0: --switch 9:bf16 works"),
        ((9, 0), "2.20.0", ("--precision", "fp8_blockwise", "--switch", "9:forward"), ""),
        ((10, 0), "2.20.0", ("--precision", "mxfp8", "--switch", "9:forward"), ""),
        ((10, 3), "2.18.0", ("--nvfp4", "switch=9:forward"), r"Transformer Engine 2\.19, and 2\.18"),
        ((10, 3), "2.19.0", ("--nvfp4", "switch=9:forward"), ""),
    ],
)
def test_a_gpu_or_engine_that_lacks_it(capability, release: str, flags, said: str, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(packages, "installed", lambda: {"transformer-engine": release})
    chosen = resolve(*flags, on_gpu=True)
    if not said:
        return ending.check_capability(chosen)
    with pytest.raises(UsageError, match=said):
        ending.check_capability(chosen)


def ran(folder: Path, make_checkpoint, precision: str, switch: str, before: int | None) -> tuple[str, ...]:
    """Flags that resume a run of four iterations."""
    make_checkpoint(folder, 4)
    ingredients = Nvfp4Recipe(switch=switch).facts() if precision == "nvfp4" else {"switch": switch} if switch else {}
    about = {"name": precision, "ingredients": ingredients, "switches_at": before}
    run_folder.write_json(folder / run_folder.ENVIRONMENT, {"schema": 1, "model": "tiny", "precision": about})
    return ("--model", "tiny", "--precision", precision, "--resume", str(folder))


@pytest.mark.parametrize("precision", ["nvfp4", "fp8"])
@pytest.mark.parametrize(
    ("before", "asked", "said"),
    [
        (None, "4", ""),
        (None, "9", ""),
        (
            None,
            "3",
            "4 of its 4 iterations in {}, and --switch 3:bf16 says otherwise: write --switch 4 or later",
        ),
        (3, "0.5", "3 of its 4 iterations in {} and the others by 3:bf16, and --switch 0.5:bf16 says otherwise"),
        (3, "never", "--switch never says otherwise: write --switch 3:bf16"),
        (3, "3:forward", "--switch 3:forward says otherwise: write --switch 3:bf16"),
        (3, "3", ""),
        (4, "6:forward", ""),
        (8, "", ""),
        (8, "never", ""),
    ],
)
def test_a_resumed_run_has_switched_when_it_had(tmp_path, make_checkpoint, precision, before, asked, said: str) -> None:
    given = ran(tmp_path, make_checkpoint, precision, "" if before is None else f"{before}:bf16", before)
    given += (*ITERATIONS, *(("--switch", asked) if asked else ()))
    if said:
        assert said.format(precision) in refusal(*given, on_gpu=True)
        return
    chosen = resolve(*given, on_gpu=True)
    expected = before if not asked else None if asked == "never" else int(asked.partition(":")[0])
    assert chosen.switches_at == expected
    assert resolve(*chosen.as_flags(), on_gpu=True) == chosen


@pytest.mark.parametrize("precision", ["nvfp4", "fp8"])
def test_the_split_fits_a_resumed_runs_own_switch(tmp_path, make_checkpoint, precision: str, monkeypatch) -> None:
    given = (*ran(tmp_path, make_checkpoint, precision, "6:bf16", 6), *ITERATIONS)
    tried = []
    smallest = parallel.smallest
    monkeypatch.setattr(parallel, "smallest", lambda model, row, **of: tried.append(row) or smallest(model, row, **of))
    for more, gather in ((), "BF16"), (("--switch", "never"), PRECISIONS[precision].gather):
        resolve(*given, *more, on_gpu=True, processes=2, gpu_bytes=80e9)
        assert tried.pop().gather == gather


@pytest.mark.parametrize("precision", ["nvfp4", "fp8"])
def test_a_switched_run_is_evaluated_as_it_trained_or_as_asked(tmp_path, make_checkpoint, precision: str) -> None:
    given = (*ran(tmp_path, make_checkpoint, precision, "3:bf16", 3), "--evaluate", "--data", "python-stdlib")
    assert resolve(*given, on_gpu=True).switches_at == 3
    assert resolve(*given, "--switch", "never", on_gpu=True).switches_at is None
    for other in {"nvfp4", "fp8", "bf16"} - {precision}:
        assert resolve(*given, "--precision", other, on_gpu=True).switches_at is None


def test_a_config_file_keeps_it_in_its_precision(tmp_path: Path) -> None:
    for saved in (("--precision", "fp8", "--switch", "9"), ("--nvfp4", "switch=9")):
        arguments = resolve(*saved, *ITERATIONS, on_gpu=True).as_flags()
        (tmp_path / "c.yaml").write_text(f"playbook: {{arguments: {arguments}}}")
        given = ("--config", str(tmp_path / "c.yaml"))
        assert resolve(*given, on_gpu=True).switches_at == 9
        assert resolve(*given, "--switch", "0.5", on_gpu=True).switches_at == 10
        assert resolve(*given, "--precision", "mxfp8", on_gpu=True).late_switch is None


def test_what_a_process_is_told() -> None:
    try:
        late_switch.use(LateSwitch(0.5, "fp8"), 10)
        said = []
        for done in (9, 10, 11):
            late_switch.begin_iteration(done)
            said.append(late_switch.switched_to())
        assert said == ["", "fp8", "fp8"]
        late_switch.use(LateSwitch(0.5, "fp8"), 10, done=20)
        assert late_switch.switched_to() == "fp8"
        late_switch.use(LateSwitch(0.5, "fp8"), None, done=20)
        assert late_switch.switched_to() == ""
    finally:
        late_switch.use(None, None)
    assert late_switch.switched_to() == ""


def test_memory_is_that_of_bf16_weights_and_of_the_larger_activations() -> None:
    fp8, nvfp4, bf16 = (PRECISIONS[name] for name in ("fp8", "nvfp4", "bf16"))
    assert with_switch(fp8, None) is fp8
    switched = with_switch(fp8, LateSwitch(9, "bf16"))
    assert (switched.gather, switched.copy_bytes, switched.saved_bytes) == ("BF16", fp8.copy_bytes, bf16.saved_bytes)
    assert with_switch(nvfp4, LateSwitch(9, "fp8")).saved_bytes == fp8.saved_bytes
    assert with_switch(nvfp4, LateSwitch(9, "forward")).saved_bytes == nvfp4.saved_bytes
    model = find_model("llama31-8b")
    needed = [
        footprint.memory(model, row, footprint.Split(1, 1, 1, 1), micro_batch=1, sequence=8192).total
        for row in (fp8, switched)
    ]
    assert needed[0] < needed[1]
