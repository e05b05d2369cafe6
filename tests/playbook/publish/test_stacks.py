"""The table of stacks: a row for each Megatron-Bridge and Transformer Engine that ran on a GPU, beside the oldest."""

from pathlib import Path

import pytest

from playbook.launch.container import DEFAULT_TAG
from playbook.publish import stacks
from playbook.record import loading
from pretraining import nemo_images

OLD, NEW = ("0.4.0", "0.17.0", "2.12.0"), ("0.6.2", "0.19.2", "2.20.2")


@pytest.fixture
def trained(make_run):
    """`trained(OLD, "bf16", loss=1.0)`: a record of what trained with a stack."""
    made = []

    def train(stack, precision="bf16", *, gpu="NVIDIA H100", environment=None, parity=None, **how):
        made.append(stack)
        versions = dict(zip(stacks.PACKAGES, stack, strict=True))
        facts = {"versions": versions, "device": {"kind": "gpu", "name": gpu}} | (environment or {})
        own = {"megatron_bridge": stack[0], "transformer_engine": stack[2], "device": gpu} | (parity or {})
        return loading.load(make_run(precision, name=f"run-{len(made)}", environment=facts, parity=own, **how))

    return train


def rows(runs, tested=()):
    lines = stacks.table(runs, tested).splitlines()[2:]
    return [
        dict(zip(stacks.TITLES, [cell.strip() for cell in line.strip("|").split("|")], strict=True)) for line in lines
    ]


def test_stacks_stand_oldest_first_by_number_and_not_by_text(trained) -> None:
    ten = ("0.10.0", "0.20.0", "2.100.0")
    found = rows([trained(ten), trained(NEW), trained(OLD)])
    assert [row["Megatron-Bridge"] for row in found] == [OLD[0], NEW[0], ten[0]]
    assert [row["NeMo image"] for row in found] == ["26.04", "26.08 (has 0.6.0)", "none known"]


def test_losses_and_steps_are_set_beside_the_same_work_of_the_first(trained) -> None:
    emulated = {"precision": {"name": "nvfp4", "arithmetic": "emulated", "emulator": "triton"}}
    first = [trained(OLD, step=0.2), trained(OLD, "nvfp4", environment=emulated, step=0.4)]
    new = [trained(NEW, step=0.1, loss=1.001), trained(NEW, "nvfp4", environment=emulated, step=0.4)]
    other_seed = trained(NEW, parity={"seed": 7}, loss=3.0)
    of_first, of_new = rows([*new, *first, other_seed])
    assert of_first["losses beside the first's"] == of_first["step beside the first's"] == "is the first"
    assert of_new["losses beside the first's"] == "bf16 1.0e-03, nvfp4 emulated 0.0e+00"
    assert of_new["step beside the first's"] == "bf16 0.500, nvfp4 emulated 1.000"
    assert of_new["runs"] == "bf16 2, nvfp4 emulated 1"


def test_steps_of_another_gpu_and_of_a_profile_are_not_compared(trained) -> None:
    on_other = rows([trained(OLD), trained(NEW, gpu="NVIDIA H200")])[1]
    assert (
        on_other["losses beside the first's"] == "bf16 0.0e+00"
        and on_other["step beside the first's"] == "not alone on one kind of GPU"
    )
    for how in ("profiled", "measured"):
        watched = rows([trained(OLD), trained(NEW, environment={how: [50, 60]})])[1]
        assert watched["losses beside the first's"] == watched["step beside the first's"] == "no run of the same work"


def test_what_failed_and_what_was_resumed_is_said(trained) -> None:
    runs = [
        trained(OLD, parity={"start_iteration": 6}),
        trained(OLD, outcome={"verdict": "out_of_memory"}),
        trained(OLD, environment={"precision": {"name": "nvfp4", "emulator": "reference"}}),
    ]
    (row,) = rows(runs)
    assert row["runs"] == "bf16 1, nvfp4 by the reference 1, resumed 1 of these, out\\_of\\_memory 1"


def test_the_tests_of_a_stack_are_those_of_its_engine(trained, tmp_path: Path) -> None:
    parts = "===== 20 passed, 1 skipped in 9.1s =====\n3 failed\n=== 2 failed, 3 passed in 61.0s (0:01:01) ===\n"
    (tmp_path / "one").write_text(f"NVIDIA H100, Transformer Engine 2.20.2, in two parts.\n{parts}")
    (tmp_path / "two").write_text("NVIDIA H200, Transformer Engine 2.12, today\n== 70 passed in 194.89s (0:03:14) ==\n")
    found = rows([trained(OLD), trained(NEW), trained(("0.6.2", "0.19.2", "2.2.0"))], sorted(tmp_path.glob("[ot]*")))
    said = {row["Transformer Engine"]: row["make test-gpu"] for row in found}
    assert said == {"2.12.0": "70 passed", "2.20.2": "23 passed, 1 skipped, 2 failed", "2.2.0": "no record"}


def test_a_run_without_the_engine_is_no_stacks(make_run) -> None:
    assert rows([loading.load(make_run("bf16"))]) == []


@pytest.mark.parametrize(
    ("bridge", "tag"),
    [("0.3.1", "26.02 (has 0.3.0)"), ("0.4.2", "26.04.01"), ("0.4.1", "26.04 (has 0.4.0)"),
     ("0.5.1", "26.06 (has 0.5.0)"),
     ("0.7.1", "26.10.01"), ("0.2.0", ""), ("0.6.0rc1", ""), ("unknown", "")],
)  # fmt: skip
def test_the_image_of_a_megatron_bridge(bridge: str, tag: str) -> None:
    assert nemo_images.with_bridge(bridge) == tag


def test_every_pinned_release_has_an_image_and_the_default_image_is_known(project: Path) -> None:
    pinned = [path.stem for path in (project / "requirements" / "versions").glob("*.txt")]
    assert pinned and all(map(nemo_images.with_bridge, pinned))
    assert nemo_images.IMAGES[DEFAULT_TAG].megatron_bridge in pinned
    known = {image.megatron_bridge for image in nemo_images.IMAGES.values()}
    assert set(nemo_images.ON_NO_INDEX) <= known - set(pinned)


def test_the_page_of_stacks_is_on_the_index(project: Path) -> None:
    page = (project / "assets" / "results" / "README.md").read_text()
    assert "(stacks.md)" in page
