"""A training under the profiler: what it leaves, in both precisions, and what cannot be profiled."""

from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from playbook.profile import breakdown
from playbook.profile.kernels import Kind
from pretraining.errors import UsageError
from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Verdict
from pretraining.request import checks, settings
from pretraining.request import flags as training_flags


@pytest.fixture(scope="module")
def profiled(train) -> dict[str, Path]:
    """A short run of each precision, side by side."""
    with ThreadPoolExecutor() as pool:
        started = {name: pool.submit(train, name, "--profile", "2") for name in ("bf16", "nvfp4")}
        return {name: future.result()[0] for name, future in started.items()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
def test_the_last_iterations_are_in_the_trace(profiled, precision: str) -> None:
    folder = profiled[precision]
    run, found = run_folder.read_run(folder), breakdown.read(folder / run_folder.TRACE)
    assert run.verdict is Verdict.SUCCEEDED and len(run.train) == 6
    assert run.environment["profiled"] == [5, 6] and found.steps == 2 and not found.on_gpu
    rows = {row.kind: row.milliseconds for row in found.rows}
    assert {Kind.PRODUCTS, Kind.ATTENTION, Kind.QUANTIZATION, Kind.OPTIMIZER} < set(rows)
    assert min(rows.values()) >= 0 and rows[breakdown.OUTSIDE] < 0.5 * found.step
    mean = 1000 * sum(line["step_time_s"] for line in run.train[-2:]) / 2
    assert 0.95 * mean < found.step < 2 * mean  # the trace has what lies between two steps, too
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == {lock.FILE}


@pytest.mark.slow
def test_its_config_trains_again_without_the_profiler(profiled) -> None:
    saved = yaml.safe_load((profiled["bf16"] / run_folder.CONFIG).read_text().split("_target_")[0])
    assert "--train-iters" in saved["playbook"]["arguments"] and "--profile" not in saved["playbook"]["arguments"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--profile", "6", "--train-iters", "6"), "6 of 6 iterations: at least 1 is profiled, with 1 before it"),
        (("--profile", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_profiled(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings.resolve(training_flags.parser("x").parse_args(list(flags)), on_gpu=False, processes=1)


def test_a_resumed_run_is_not_profiled() -> None:
    with pytest.raises(UsageError, match="a --resume may leave fewer"):
        checks.profile(Namespace(profile=2, resume=Path("run"), trains=True), 6)


def test_a_setting_survives_its_flags() -> None:
    args = training_flags.parser("x").parse_args(["--profile", "5"])
    flags = settings.resolve(args, on_gpu=False, processes=1).as_flags()
    assert settings.resolve(training_flags.parser("x").parse_args(flags), on_gpu=False, processes=1).profile == 5
