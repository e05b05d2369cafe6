"""More than two runs: repeats of one configuration, several configurations, and what they are set against."""

import io
import itertools
import json
from pathlib import Path

import pytest

from playbook.common import gpu_table
from playbook.compare import comparison
from playbook.compare.comparison import NotComparable
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.report import terminal, wording
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request.precisions import PRECISIONS

GPU = {"device": {"kind": "gpu"}, "tokens_per_step": 262_144, "flops_per_token": 48.25e9}
LLAMA_8B = {"num_layers": 32, "hidden_size": 4096, "sequence_length": 4096, "global_batch_size": 64}


def compare(*paths: Path, **more) -> Comparison:
    return comparison.compare(comparison.group(loading.load_all(paths)), **more)


def printed(result: Comparison) -> str:
    out = io.StringIO()
    terminal.print_comparison(result, out)
    return out.getvalue()


@pytest.fixture
def repeats(make_run) -> list[Path]:
    """Three runs of BF16 and three of NVFP4, each a little different."""
    steps = {"bf16": (0.2, 0.201, 0.199), "nvfp4": (0.1, 0.1002, 0.0999)}
    return [
        make_run(precision, name=f"{precision}-{index}", step=step, loss=1 + 0.001 * index)
        for precision, all_steps in steps.items()
        for index, step in enumerate(all_steps)
    ]


def test_runs_of_one_configuration_are_repeats(repeats: list[Path]) -> None:
    bf16, nvfp4 = repeats[:3], repeats[3:]
    result = compare(bf16[0], nvfp4[0], nvfp4[1], bf16[1], bf16[2], nvfp4[2])
    assert [(arm.precision, len(arm.runs)) for arm in result.arms] == [("bf16", 3), ("nvfp4", 3)]
    assert [Path(run.path).name for run in result.arms[1].runs] == ["nvfp4-0", "nvfp4-1", "nvfp4-2"]
    step = result.arms[0].step_time
    assert (step.value, step.low, step.high, step.spread) == pytest.approx((0.2, 0.199, 0.201, "range of 3 runs"))
    ratio = result.contrasts[0].step_time
    assert ratio.figure.spread == "95 % t-interval over 3 repeats"
    assert ratio.figure.low < 2.0 < ratio.figure.high
    assert ratio.differs
    assert "2.00 times as fast as BF16 (95 % interval" in result.verdict
    assert "REPEAT" not in result.verdict
    text = printed(result)
    assert "A: bf16 ×3" in text and "step time, ms (range)" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines() if not line[:2].strip()[1:].isdigit())


def test_runs_of_two_emulators_are_no_repeats_of_one_another(make_run) -> None:
    facts = {"name": "nvfp4", "arithmetic": "emulated", "bf16_head_layers": 0, "bf16_tail_layers": 1}
    runs = [
        make_run("nvfp4", name=f"{emulator}-{index}", environment={"precision": facts | {"emulator": emulator}})
        for index in (1, 2)
        for emulator in ("triton", "reference")
    ]
    arms_of = compare(make_run("bf16"), *runs).arms
    assert [(arm.label, len(arm.runs)) for arm in arms_of] == [
        ("bf16", 1), ("nvfp4, triton-emulated", 2), ("nvfp4, reference-emulated", 2),
    ]  # fmt: skip


def test_fewer_repeats_are_labelled_within_these_runs_only(repeats: list[Path]) -> None:
    result = compare(*repeats[:2], *repeats[3:5])
    assert "within these runs only" in result.contrasts[0].step_time.figure.spread
    assert "repeats of one seed, +0.00 to +0.00 %, show what last bits do" in result.verdict
    alone = compare(repeats[0], repeats[3]).contrasts[0]
    assert "within this run only" in alone.step_time.figure.spread
    assert "two runs cannot tell how runs differ: REPEAT=3" in result.verdict


def test_several_configurations_against_one_baseline(make_run) -> None:
    paths = [make_run(name, step=step) for name, step in (("nvfp4", 0.1), ("bf16", 0.2), ("mxfp8", 0.15))]
    result = compare(*paths)
    assert result.baseline == "B"
    assert [(each.candidate, each.step_time.figure.value) for each in result.contrasts] == [
        ("A", pytest.approx(2.0)), ("C", pytest.approx(4 / 3)),
    ]  # fmt: skip
    rows = [line.split()[:2] for line in printed(result).splitlines() if line.endswith(" nats") or " ms " in line]
    assert [row[0] for row in rows][:3] == ["B:", "A:", "C:"]
    for base in ("C", "c", "mxfp8", str(paths[2]), "mxfp8"):
        assert compare(*paths, baseline=base).baseline == "C"
    with pytest.raises(UsageError, match=r"BASE=fp9 names none of what is compared: A \(nvfp4\), B \(bf16\), C"):
        compare(*paths, baseline="fp9")


def test_three_runs_of_one_configuration_are_three_arms(make_run) -> None:
    result = compare(*(make_run("bf16", name=name) for name in ("one", "two", "three")))
    assert [arm.name for arm in result.arms] == ["A", "B", "C"]
    assert not any(contrast.step_time.differs for contrast in result.contrasts)
    assert "No difference in speed" in result.verdict


def test_other_work_is_no_repeat(make_run) -> None:
    paths = [make_run("bf16"), make_run("nvfp4"), make_run("bf16", name="other", parity={"seed": 5})]
    with pytest.raises(NotComparable) as refusal:
        compare(*paths)
    assert [str(found) for found in refusal.value.differences] == ["seed: A 1234 and 5, B 1234"]
    forced = compare(*paths, force=True)
    assert len(forced.arms) == 2 and forced.contrasts[0].loss_differs is None


def test_a_bad_repeat_is_named(make_run) -> None:
    paths = [make_run("bf16", name=f"b{index}") for index in range(2)]
    paths += [make_run("nvfp4", name="n0"), make_run("nvfp4", name="n1", outcome={"verdict": "killed"})]
    with pytest.raises(NotComparable) as refusal:
        compare(*paths)
    assert [str(found) for found in refusal.value.differences] == ["verdict: A1 succeeded, B2 killed"]


def test_the_control_reports_no_difference(make_run) -> None:
    result = compare(make_run("bf16", name="one"), make_run("bf16", name="two", step=0.203))
    ratio = result.contrasts[0].step_time
    assert (ratio.differs, ratio.smallest) == (False, pytest.approx(0.02))
    assert result.verdict.startswith("No difference in speed above 2.0 %: B takes 1.01 times the step of A")
    assert "The training loss of B lies +0.00 % from A, no verdict: one seed" in result.verdict
    slower = compare(make_run("bf16", name="three"), make_run("bf16", name="four", step=0.22))
    assert slower.contrasts[0].step_time.differs
    assert slower.verdict.startswith("A difference in speed: B takes 1.10 times")


def sampled(folder: Path, watts: float, seconds_a_step: float) -> Path:
    """Gives a run the times of its lines and a device that uses so much."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["time"] = 1000 + seconds_a_step * line["iteration"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [
        {
            "time": 990.0 + at,
            "device": 0,
            "used_bytes": 150 * 10**9 + at,
            "process_bytes": 149 * 10**9,
            "power_w": watts,
        }
        for at in range(round(60 * seconds_a_step) + 20)
    ]
    (folder / "device.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return folder


def test_energy_memory_and_mfu(make_run) -> None:
    more = {"environment": GPU, "parity": LLAMA_8B, "loss": 1.0}
    bf16 = sampled(make_run("bf16", step=9.05, **more), 1300, 9.05)
    nvfp4 = sampled(make_run("nvfp4", step=5.39, **more), 1200, 5.39)
    result = compare(bf16, nvfp4)
    a, b = result.arms
    assert (a.energy_per_step.value, a.energy_per_step.unit) == (pytest.approx(1300 * 9.05), "J")
    assert b.joules_per_token.value == pytest.approx(1200 * 5.39 / 262_144)
    assert a.runs[0].mean_power.value == pytest.approx(1300)
    assert result.contrasts[0].joules_per_token.value == pytest.approx(1200 * 5.39 / 1300 / 9.05)
    assert (a.peak_memory.unit, a.peak_memory_kind) == ("GB", "device used")
    assert set(a.runs[0].memory) == {"device used", "device used by the training", "torch allocated"}
    assert a.mfu.value == pytest.approx(100 * 1397.6 / 2450, rel=1e-3)
    assert b.mfu.value == pytest.approx(100 * 2346.6 / 14700, rel=1e-3)
    assert b.mfu_peak == "14,700 TFLOP/s, dense NVFP4 of NVIDIA GB300 (NVIDIA dgxc-benchmarking)"
    assert "B over A: 1.68x, inside the published 1.55 to 1.7." in result.bands
    assert "dense NVFP4 of NVIDIA GB300" in " ".join(printed(result).split())


@pytest.mark.parametrize(("step", "where", "usually"), [(7.0, "below", "clock limit"), (4.0, "above", "was not done")])
def test_a_run_outside_its_band_is_told_what_usually_causes_it(make_run, step: float, where: str, usually: str) -> None:
    more = {"environment": GPU, "parity": LLAMA_8B}
    result = compare(make_run("bf16", step=9.05, **more), make_run("nvfp4", step=step, **more))
    (said,) = [band for band in result.bands if band.startswith("B: ")]
    assert f"{where} the published 2,230 to 2,470; usually" in said and usually in said


def test_an_emulation_has_neither_band_nor_mfu(make_run) -> None:
    more = {"environment": GPU, "parity": LLAMA_8B}
    result = compare(make_run("bf16", step=9.05, **more), make_run("nvfp4", arithmetic="emulated", **more))
    assert result.arms[1].mfu is None
    assert not any(band.startswith("B") for band in result.bands)


def test_peaks_are_of_a_precision_and_a_device() -> None:
    assert gpu_table.peak("NVIDIA H200", "fp8")[0] == 1979
    assert gpu_table.peak("NVIDIA H200", "nvfp4") is None
    assert gpu_table.peak("NVIDIA GB300", "mxfp8")[0] == 4900
    assert all(gpu_table.peak("NVIDIA GB300", name) for name in PRECISIONS), "a precision lacks its format in the table"
    assert gpu_table.peak("NVIDIA B300 SXM6 AC", "nvfp4")[0] == 13500
    assert gpu_table.peak("NVIDIA RTX PRO 6000", "bf16") is None


@pytest.mark.parametrize(
    ("device", "bf16", "source"),
    [
        ("NVIDIA H100 80GB HBM3", 989, "dgxc-benchmarking"),
        ("NVIDIA H100 PCIe", 756, "H100 data sheet"),
        ("NVIDIA H100 NVL", 835, "H100 data sheet"),
        ("NVIDIA H200", 989, "H200 data sheet"),
        ("NVIDIA H200 NVL", 835, "H200 data sheet"),
        ("NVIDIA GH200 480GB", 989, "GH200 data sheet"),
    ],
)
def test_cards_of_one_chip_have_their_own_peaks(device: str, bf16: int, source: str) -> None:
    found, said = gpu_table.peak(device, "bf16")
    assert found == bf16 and source in said
    assert gpu_table.peak(device, "fp8")[0] == pytest.approx(2 * bf16, rel=2e-3)


def test_repeats_are_paired_by_when_they_started(make_run) -> None:
    room = (1.0, 1.1, 1.2)  # warmer and warmer, for both of a pair alike
    runs = [
        make_run(
            precision, name=f"{precision}-{at}", step=step * slow, environment={"started": f"2026-11-2{at}T00:00:00Z"}
        )
        for precision, step in (("bf16", 0.2), ("nvfp4", 0.1))
        for at, slow in enumerate(room)
    ]
    figures = [compare(*(runs[at] for at in order)).contrasts[0].step_time.figure
               for order in ((0, 1, 2, 3, 4, 5), (2, 0, 1, 4, 5, 3))]  # fmt: skip
    assert figures[0] == figures[1] and figures[0].high - figures[0].low < 1e-6


@pytest.fixture
def seeded(make_run):
    """`seeded(bf16=[1, 2], nvfp4=[1, 2])`: a run of each precision with each seed."""

    def make(*, gap: float = 0.0, **seeds: list[int]) -> list[Path]:
        return [
            make_run(precision, name=f"{precision}-{at}", parity={"seed": seed},
                     loss=(1 + seed / 10) * (1 + (precision == "nvfp4") * (gap + seed / 1000)))
            for precision, each in seeds.items() for at, seed in enumerate(each)
        ]  # fmt: skip

    return make


def test_a_gap_is_paired_by_seed_whatever_the_order(seeded) -> None:
    paths = seeded(bf16=[1, 2, 3], nvfp4=[3, 1, 2], gap=0.02)
    (contrast,) = compare(*paths, loss_margin=3.0).contrasts
    assert contrast.gap_by_seed == pytest.approx({"3": 2.3, "1": 2.1, "2": 2.2})
    assert contrast.training_loss_gap.value == pytest.approx(2.2)
    assert (contrast.loss_differs, contrast.loss_within_margin) == (True, True)
    assert "lies +2.20 % from BF16 (95 % interval +1.95 to +2.45, 3 seeds)." in contrast.loss
    assert "They are equal within 3 % (two one-sided tests; 90 % interval +2.03 to +2.37)." in contrast.loss


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        ({"bf16": [1, 2, 3], "nvfp4": [1, 2, 4]}, "seed: A 1 and 2 and 3, B 1 and 2 and 4"),
        ({"bf16": [1, 2, 3], "nvfp4": [1, 2]}, "seed: A 1 and 2 and 3, B 1 and 2"),
    ],
)
def test_arms_with_different_seeds_are_refused(seeded, seeds, says: str) -> None:
    with pytest.raises(NotComparable) as refusal:
        compare(*seeded(**seeds))
    (found,) = refusal.value.differences
    assert str(found) == says and "a gap is found within one seed" in found.way_out


def test_a_validation_set_that_differs_is_refused(make_run) -> None:
    texts = [{"text": {"tokens": {"train": 9, "validation": tokens}}} for tokens in (531_977, 600_404)]
    with pytest.raises(NotComparable) as refusal:
        compare(make_run("bf16", environment=texts[0]), make_run("nvfp4", environment=texts[1]))
    assert [str(found) for found in refusal.value.differences] == ["validation set: A 531,977 tokens, B 600,404 tokens"]


def test_no_pair_of_equal_published_runs_is_called_a_difference_in_loss() -> None:
    checked = 0
    for folder in sorted((Path(__file__).parents[3] / "assets" / "results").glob("*/")):
        runs = [loading.load(path) for path in sorted(folder.glob("*/")) if run_folder.holds_run(path)]
        for first, second in itertools.combinations([run for run in runs if run.verdict == "succeeded"], 2):
            if (first.precision, first.parity) == (second.precision, second.parity) and "profile" not in folder.name:
                (contrast,) = comparison.compare([[first], [second]], force=True).contrasts
                assert contrast.loss_differs is None and (contrast.training_loss_gap or contrast.loss == "") is not None
                checked += 1
    assert checked >= 15


def test_the_images_of_containers_are_compared(make_run) -> None:
    paths = make_run("bf16"), make_run("nvfp4")
    for path, digest in zip(paths, ("sha256:1", "sha256:2"), strict=True):
        (path / "plan.json").write_text(json.dumps({"schema": 1, "image": {"name": "nemo", "digest": digest}}))
    with pytest.raises(NotComparable) as refusal:
        compare(*paths)
    assert [str(found) for found in refusal.value.differences] == ["image: A sha256:1, B sha256:2"]


def test_the_images_of_a_cluster_are_compared_by_name(make_run) -> None:
    paths = make_run("bf16"), make_run("nvfp4")
    for path, name in zip(paths, ("nemo:26.02", "nemo:26.04"), strict=True):
        (path / "plan.json").write_text(json.dumps({"schema": 1, "image": {"name": name}}))
    with pytest.raises(NotComparable) as refusal:
        compare(*paths)
    assert [str(found) for found in refusal.value.differences] == ["image: A nemo:26.02, B nemo:26.04"]


def test_context_is_listed_and_voids_nothing(make_run) -> None:
    paths = [
        make_run(name, environment={"context": {"parameter_gather": gathered}})
        for name, gathered in (("bf16", "bfloat16"), ("nvfp4", "fp4"))
    ]
    result = compare(*paths)
    assert not result.forced
    assert [(str(found), found.void) for found in result.differences] == [
        ("parameter_gather: A bfloat16, B fp4", False)
    ]
    assert "Differs           parameter_gather: A bfloat16, B fp4" in printed(result)


def test_the_record_is_held_against_what_megatron_printed(make_run) -> None:
    paths = make_run("bf16", step=0.2), make_run("nvfp4", step=0.1)
    for path, step in zip(paths, (0.2, 0.15), strict=True):
        lines = (
            f" [2026-11-22 06:58:39] iteration {number}/ 60 | consumed samples: 1 |"
            f" elapsed time per iteration (ms): {step * 1000} | learning rate: 1.0E-4 | global batch size: 32 |"
            " lm loss: 2.0E+00 | loss scale: 1.0 | grad norm: 1.0 | number of skipped iterations: 0 |"
            " number of nan iterations: 0 |\n"
            for number in range(1, 61)
        )
        (path / "train.log").write_text("".join(lines))
    (warning,) = wording.run_warnings(compare(*paths).arms)
    assert warning.startswith("B: Megatron printed 50.0% more time a step than the record has")


def test_the_losses_of_several_seeds_lie_as_their_gap_does(make_run) -> None:
    losses = {"bf16": (1.0, 2.0, 3.0), "nvfp4": (1.1, 1.9, 3.3)}
    paths = [
        make_run(name, name=f"{name}-{seed}", loss=loss, parity={"seed": seed})
        for name, each in losses.items()
        for seed, loss in enumerate(each)
    ]
    result = compare(*paths)
    base, arm = (each.training_loss.value for each in result.arms)
    assert arm / base == pytest.approx(1.05)  # of their medians 0.95
    assert result.contrasts[0].training_loss_gap.value == pytest.approx(5.0)
