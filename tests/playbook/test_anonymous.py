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
ANOTHER, SLOWEST, LOGIN = "worker99.elsewhere.example", "rack5-n3", "login01"  # hosts of other ranks, and of the job
PLANTED = {
    "host": HOST,
    "short host": "node17",
    "other hosts": f"{ANOTHER}, worker99, {SLOWEST}, {LOGIN}",
    "mounted path": f"0.7:/scratch/{USER}/x -I/scratch/{USER}/z x=~{USER}/foo",
    "user": USER,
    "uuid": f"GPU-{UUID}",
    "bare uuid": UUID,
    "pci": "00000000:3B:00.0",
    "address": "10.64.3.117",
    "address 6": "fe80::1ff:fe23:4567:890a",
    "mail": f"{USER}@cluster.example",
    "address of any net": "2001:db8::1",
    "cloud secret": "AKIAIOSFODNN7EXAMPLE",
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
    failure = {
        "cause": f"rank 9 on {ANOTHER}: RuntimeError",
        "host": ANOTHER,
        "traceback": [f'  File "/home/{USER}/x.py", line 3', f"{ANOTHER} and worker99 left"],
        "slowest_rank": {"host": SLOWEST, "rank": 1},
        f"/home/{USER}/x": {"keys": [{f"peak of {SLOWEST}": 1}]},
    }
    record.write_json(folder / record.OUTCOME, outcome | everywhere | failure)
    yaml = "".join(f"  note_{at}: {text}\n" for at, text in enumerate(PLANTED.values()))
    secrets = "  comet_api_key: 0a1b2c3d\n  wandb_entity: secret-team\n"
    blocks = "users:\n  - alice\nhosts:\n- bobs-box\n\n- name: carols-box\nlast:\n- user: dave\n  seed: 7\n"
    (folder / record.CONFIG).write_text(f"logger:\n{secrets}{yaml}{blocks}")
    sample = {"time": 1763806530.2, "device": 0, "samples": 12, "used_bytes": 71000000000}
    for name in (record.SAMPLES, record.samples_of(8)):
        (folder / name).write_text(json.dumps(sample | {"note": HOST}) + "\n")
    record.write_json(folder / record.JOB, {"cluster": {"host": f"{USER}@{LOGIN}"}})
    for name in (record.LOG, record.TRACE, "notes.txt"):
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
        words += ["/data", "0a1b2c3d", "secret-team", "worker99", "elsewhere", SLOWEST, LOGIN, "AKIA", "2001:db8"]
        words += ["/scratch", "alice", "bobs-box", "carols-box", "dave"]
        assert not [word for word in words if word in text], name


def test_this_machine_and_its_user_are_not_named_either(make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "launcher-box")
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    folder = make_run("bf16", environment={"note": "launcher-box of somebody, and of nobody"})
    anonymous.copy_run(folder, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / record.ENVIRONMENT).read_text())["note"] == "(name) of (name), and of nobody"


def test_lists_of_names_go_and_what_stands_beside_them_stays(planted: Path, tmp_path: Path) -> None:
    anonymous.copy_run(planted, tmp_path / "copy")
    text = (tmp_path / "copy" / record.CONFIG).read_text()
    assert text.endswith("users: null\nhosts: null\nlast:\n- user: null\n  seed: 7\n")


@pytest.mark.parametrize("host", ["gpu.local", "node.cluster", "train", "1234"])
@pytest.mark.parametrize("user", ["train", "tiny", "loss", "model", "succeeded"])
def test_a_name_that_is_a_word_of_records_leaves_them_whole(
    host: str, user: str, make_run, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    folder = make_run("bf16", environment={"host": host, "started": "2026-11-22T17:39:32Z"})
    choices = {name: {"value": name, "reason": "asked for"} for name in ("local", "cluster", "tiny", "mock")}
    plan = {"choices": choices, "command": ["--model", "tiny", "--seed", "1234", "--run-dir", "nemo_experiments/a"]}
    record.write_json(folder / record.PLAN, plan)
    (folder / record.CONFIG).write_text("model:\n  seed: 1234\ntrain:\n  train_iters: 60\n")
    (folder / record.SAMPLES).write_text('{"time": 1.2, "device": 0, "power_w": 612.0}\n{"time": 2.2, "dev')
    anonymous.copy_run(folder, tmp_path / "copy")
    original, copy = record.read_run(folder), record.read_run(tmp_path / "copy")
    assert copy.environment == original.environment | {"host": None}
    assert (copy.plan, copy.outcome, copy.samples) == (original.plan, original.outcome, original.samples)
    assert copy.train == original.train and len(copy.train) == 60 and copy.evaluations == original.evaluations
    for name in (record.METRICS, record.CONFIG):
        assert texts(tmp_path / "copy").get(name, texts(tmp_path / "copy").get(f"{name}.gz")) == texts(folder)[name]


def test_a_broken_compressed_file_is_told_by_its_name(planted: Path, tmp_path: Path) -> None:
    anonymous.copy_run(planted, tmp_path / "copy")
    metrics = tmp_path / "copy" / f"{record.METRICS}.gz"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    with pytest.raises(ValueError, match=re.escape(str(metrics))):
        anonymous.copy_run(tmp_path / "copy", tmp_path / "again")


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
        ("torch::jit, at::Tensor, c10::Error at 12:34:56", "torch::jit, at::Tensor, c10::Error at 12:34:56"),
        ("hf://a/b and http://x.example:80/c, about ~5/6", "hf://a/b and http://x.example:80/c, about ~5/6"),
        ("/home/alice", "(name)"),
        ("ls ~alice/", "ls (name)"),
        ("mlflow https://me:word@host.example/x", "mlflow https://(secret)@host.example/x"),
    ],
)
def test_what_is_no_secret_stays(text: str, expected: str) -> None:
    assert anonymous.clean_text(text) == expected


def test_everything_published_is_clean(project: Path) -> None:
    hosts = []

    def note(fields: dict) -> dict:
        hosts.extend(value for name, value in fields.items() if name.startswith("host"))
        return fields

    for path in (project / "assets" / "results").rglob("*"):
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == record.PACKED else path.read_bytes()
            text = content.decode()
            assert anonymous.clean_text(text) == text, path
            if path.suffix == ".json":
                json.loads(text, object_hook=note)
    assert hosts and set(hosts) == {None}
