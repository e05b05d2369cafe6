"""What a published record must not say: planted everywhere, and looked for in every file of the copy."""

import getpass
import gzip
import json
import re
import socket
from pathlib import Path

import pytest

from playbook import anonymous, loading
from pretraining import record

HOST, USER, UUID = "node17.cluster.example", "mvanderberg", "5d3c0a1b-1234-5678-9abc-0123456789ab"
PLANTED = {
    "host": HOST,
    "short host": "node17",
    "user": USER,
    "uuid": f"GPU-{UUID}",
    "bare uuid": UUID,
    "pci": "00000000:3B:00.0",
    "address": "10.64.3.117",
    "address 6": "fe80::1ff:fe23:4567:890a",
    "mail": f"{USER}@cluster.example",
    "secret": "hf_abcdefghijklmnopqrstuvwx",
    "named secret": "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
    "path": f"/home/{USER}/playbook/nemo_experiments/run",
    "path with a space": f"/data/team {USER}/corpus",
}


@pytest.fixture
def planted(make_run) -> Path:
    """A run folder that tells everything."""
    everywhere = {"texts": list(PLANTED.values()), "nested": {"sentence": " and ".join(PLANTED.values())}}
    folder = make_run("bf16", environment={"host": HOST, "device": {"kind": "gpu", "uuid": UUID}, **everywhere})
    record.write_json(folder / record.PLAN, {"gpu": {"uuid": UUID, "users": [{"pid": 3, "name": USER}]}, **everywhere})
    outcome = json.loads((folder / record.OUTCOME).read_text())
    record.write_json(folder / record.OUTCOME, outcome | everywhere | {"slowest_rank": {"host": HOST, "rank": 1}})
    yaml = "".join(f"  note_{at}: {text}\n" for at, text in enumerate(PLANTED.values()))
    (folder / record.CONFIG).write_text(f"logger:\n  comet_api_key: 0a1b2c3d\n  wandb_entity: secret-team\n{yaml}")
    sample = {"time": 1763806530.2, "device": 0, "samples": 12, "used_bytes": 71000000000}
    for name in (record.SAMPLES, record.samples_of(8)):
        (folder / name).write_text(json.dumps(sample | {"note": HOST}) + "\n")
    for name in (record.LOG, record.JOB, record.TRACE, "notes.txt"):
        (folder / name).write_text(" ".join(PLANTED.values()))
    (folder / record.CHECKPOINTS).mkdir()
    return folder


def texts(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == record.PACKED else path.read_bytes()
        found[path.name] = content.decode()
    return found


def test_nothing_that_was_planted_is_left(planted: Path, tmp_path: Path) -> None:
    before = (planted / record.ENVIRONMENT).read_text()
    assert all(json.dumps(text)[1:-1] in before for text in PLANTED.values())
    anonymous.copy_run(planted, tmp_path / "copy")
    for name, text in texts(tmp_path / "copy").items():
        words = [
            "node17",
            USER,
            UUID,
            "3B:00",
            "10.64",
            "fe80",
            "cluster.example",
            "hf_abc",
            "0123456789abcdef",
            "/home",
        ]
        words += ["/data", "0a1b2c3d", "secret-team"]
        assert not [word for word in words if word in text], name


def test_this_machine_and_its_user_are_not_named_either(make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "launcher-box")
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    folder = make_run("bf16", environment={"note": "launcher-box of somebody, and of nobody"})
    anonymous.copy_run(folder, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / record.ENVIRONMENT).read_text())["note"] == "(name) of (name), and of nobody"


def test_the_copy_is_the_same_record(planted: Path, tmp_path: Path) -> None:
    anonymous.copy_run(planted, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        *(record.PLAN, record.ENVIRONMENT, record.OUTCOME, record.CONFIG),
        *(f"{name}.gz" for name in (record.METRICS, record.SAMPLES, record.samples_of(8))),
    }
    original, copy = loading.load(planted), loading.load(tmp_path / "copy")
    assert copy.parity == original.parity and copy.precision == original.precision
    assert copy.environment["flops_per_token"] == original.environment["flops_per_token"]
    assert list(copy.train) == list(original.train) and copy.evaluations == original.evaluations
    assert [line["used_bytes"] for line in copy.samples] == [71000000000] * 2
    anonymous.copy_run(tmp_path / "copy", tmp_path / "again")  # a copy of a copy is the copy
    for path in (tmp_path / "copy").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/workspace/playbook/assets/pretrain_llama.py", "assets/pretrain_llama.py"),
        ("--run-dir=/root/p/nemo_experiments/a", "--run-dir=nemo_experiments/a"),
        ("/usr/bin/python3", "python3"),
        ("hf:meta-llama/Llama-3.2-1B", "hf:meta-llama/Llama-3.2-1B"),
        ("nvcr.io/nvidia/nemo:26.04", "nvcr.io/nvidia/nemo:26.04"),
        ("--nproc-per-node=1", "--nproc-per-node=1"),
        ("driver 580.159.04, CUDA 13.0, 39,706 tokens/s", "driver 580.159.04, CUDA 13.0, 39,706 tokens/s"),
        ("2026-11-22T17:39:32Z", "2026-11-22T17:39:32Z"),
        ("901224c35720fb3dd5c5868a3b65fa0a043139af-dirty", "901224c35720fb3dd5c5868a3b65fa0a043139af-dirty"),
        ("add_extra_token_to_sequence: true", "add_extra_token_to_sequence: true"),
        ("hf_tokenizer_kwargs: {}", "hf_tokenizer_kwargs: {}"),
        ("mlflow https://me:word@host.example/x", "mlflow https://(secret)@host.example/x"),
    ],
)
def test_what_is_no_secret_stays(text: str, expected: str) -> None:
    assert anonymous.clean_text(text) == expected


def test_every_published_record_is_clean(project: Path) -> None:
    for folder in (project / "assets" / "results").glob("*/*/"):
        for name, text in texts(folder).items():
            if name.endswith((".json", ".yaml", ".gz")):
                assert "GPU-" not in text and not re.search(r"[\"' ]/\w", text), folder / name
