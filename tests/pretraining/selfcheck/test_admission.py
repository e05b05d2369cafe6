"""What a training does with the probe: it goes on or ends, and its record says why."""

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stand_ins import ProbeEngine, to_zero

import pretrain_llama
from pretraining.errors import WrongKernels
from pretraining.megatron import bridge_config, compat
from pretraining.record import schema
from pretraining.record.run_folder import Verdict
from pretraining.request.precisions import LateSwitch, find_precision
from pretraining.run import ending
from pretraining.selfcheck import probe

pytestmark = pytest.mark.usefixtures("one_thread")


class Record:
    """In place of the run's environment.json."""

    def __init__(self):
        self.facts = {}

    def add(self, **facts):
        self.facts |= facts


@pytest.fixture
def admit(monkeypatch):
    """`admit(engine, no_probe=False)`: what the training script does with it; gives the record's fact."""

    def run(engine, *, capability=(10, 3), **chosen):
        on_cpu = functools.partial(probe.probe, device="cpu")
        monkeypatch.setattr(probe, "probe", on_cpu)
        monkeypatch.setattr(probe, "TransformerEngine", lambda recipe: engine)
        monkeypatch.setattr(compat, "engine_recipe", lambda model: model.fp8)
        monkeypatch.setattr(bridge_config, "mixed_precision", lambda *_: SimpleNamespace(fp8="hybrid", fp8_recipe=""))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GB10")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        record = Record()
        settings = SimpleNamespace(
            **{"precision": find_precision("nvfp4"), "no_probe": False, "emulate": None, "switches_at": None, **chosen}
        )
        try:
            pretrain_llama.admit_kernels(SimpleNamespace(model=SimpleNamespace(fp8=None)), settings, record)
        except WrongKernels as error:
            return record.facts["probe"], error
        return record.facts.get("probe"), None

    return run


def test_a_run_with_right_kernels_goes_on_and_records_it(admit):
    fact, error = admit(ProbeEngine())
    assert error is None and fact["passed"] and fact["seconds"] > 0
    schema.check({"probe": fact}, schema.ENVIRONMENT, Path("environment.json"))


def test_a_run_with_wrong_kernels_ends_with_the_cause_and_records_it(admit, tmp_path):
    fact, error = admit(ProbeEngine(grad_output={"rounded": to_zero}))
    assert fact["passed"] is False and "elements are zero" in fact["found"]["nvfp4: grad_output, rows"]
    verdict, cause, code = ending.classify(error, tmp_path)
    assert (verdict, code) == (Verdict.FAILED, 1)
    assert "NVIDIA GB10: grad_output, rows: all" in cause and "PROBE=0" in cause and "EMULATE=1" in cause


def test_a_gpu_that_only_a_probe_admits_is_refused_where_it_cannot_be_held(admit):
    engine = ProbeEngine()
    engine.quantizers["input"] = SimpleNamespace(dtype=SimpleNamespace(name="kFloat8E4M3"))
    assert admit(engine, capability=(10, 3))[1] is None
    fact, error = admit(engine, capability=(12, 1))
    assert not fact["passed"] and "input: not held" in str(error)


def test_a_probe_that_is_left_out_is_recorded(admit):
    assert admit(ProbeEngine(grad_output={"rounded": to_zero}), no_probe=True) == ({"skipped": True}, None)


def test_what_a_late_switch_goes_to_is_probed_too(admit):
    bf16 = {"late_switch": LateSwitch.read("0.5:bf16"), "switches_at": 5}
    fact, error = admit(ProbeEngine(), **bf16)
    assert error is None and {name.split(":")[0] for name in fact["found"]} == {"nvfp4"}
    fp8 = {"late_switch": LateSwitch.read("0.5:fp8"), "switches_at": 5}
    fact, error = admit(ProbeEngine(), **fp8)
    assert error is None and {name.split(":")[0] for name in fact["found"]} == {"nvfp4", "fp8"}
    fact, _ = admit(ProbeEngine(), **fp8, emulate="triton")
    assert {name.split(":")[0] for name in fact["found"]} == {"fp8"}


@pytest.mark.parametrize("chosen", [{"precision": find_precision("bf16")}, {"emulate": "triton"}])
@pytest.mark.parametrize("no_probe", [True, False])
def test_where_no_kernel_is_quantized_there_is_no_probe(admit, chosen, no_probe):
    assert admit(ProbeEngine(), no_probe=no_probe, **chosen) == (None, None)
