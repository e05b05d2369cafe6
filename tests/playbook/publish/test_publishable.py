"""Only listed fields of a record leave the house: marks planted all over a run folder, and looked for in its copy."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from playbook.publish import publishable
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import run_folder

_HEX, _WORD = "0123456789abcdef0123456789abcdef01234567", "q7Zk2Lw9Xv4Rt8Bn3Md6Ys1Hc5Jf0Gp2"
TOKENS = (  # of twelve services, in the form that each gives them
    f"hf_{_WORD}", f"ghp_{_WORD}abcd", f"github_pat_11{_WORD}_{_WORD}", f"glpat-{_WORD[:20]}",
    f"xoxb-12345-67890-{_WORD}",
    f"AIza{_WORD}abc", f"sk-proj-{_WORD}", f"nvapi-{_WORD}", "AKIAIOSFODNN7EXAMPLE", _HEX, f"npm_{_WORD}",
    f"eyJhbGciOiJIUzI1NiJ9.{_WORD}.{_WORD[:22]}", f"wJalrXUtnFEMI/K7MDENG/{_WORD[:18]}",
)  # fmt: skip
SAID = (
    "Authorization: Bearer {}", "--password {}", "--hf-token {}", "HF_TOKEN: {}", "passwd={}", "api-key={}",
    "X-Api-Key: {}", "https://me:{}@proxy.corp.example:3128", "{{token: {}}}", "credentials: {}",
)  # fmt: skip
NAMES = (
    "Jane Doe", "mvanderberg", "alice", "DOE", "team-blue", "mail@jane.example", "Zoë Müller", "jdoe@CORP", "bob_smith",
    "o'brien", "secret-project-x", "unreleased-model-9b",
)  # fmt: skip
HOSTS = (
    "node17.cluster.example", "NODE17", "gpu-rack5-n3", "10.64.3.117", "fe80::1ff:fe23:4567:890a", "2001:db8::1",
    "3c:fd:fe:9e:7a:01", "3cfd.fe9e.7a01", "registry.corp.example/nemo:26.04", "s3://bucket-of-team/x", "gs://bucket/y",
    "https://wiki.corp.example/page", "ssh://alice@login01",
    "GPU-5d3c0a1b-1234-5678-9abc-0123456789ab", "00000000:3B:00.0",
)  # fmt: skip
PATHS = (
    "/home/Jane Doe/secret project/corpus", "/home/mvanderberg/x.py", "~mvanderberg/foo", "C:\\Users\\Jane\\project",
    "\\\\filer\\team\\x", "/scratch/team-blue/nemo_experiments/run", "/lustre/fsw/coreai/data", "file:///data/corpus/x",
    "0.7 /data/mine/p 0.3 /data/mine/q", "-I/opt/secret/include",
)  # fmt: skip
MARKS = (
    *TOKENS,
    *(form.format(token) for form, token in zip(SAID * 5, TOKENS * 4, strict=False)),
    *NAMES,
    *HOSTS,
    *PATHS,
)


def record_of(make_run: Any, **more: Any) -> Path:
    """A run folder with every field that is listed, and every file."""
    folder = make_run("bf16", **more)
    for name, content in FULL.items():
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        run_folder.write_json(folder / name, old | content)
    (folder / run_folder.SAMPLES).write_text('{"time": 1.5, "device": 0, "samples": 12, "used_bytes": 71000000000}\n')
    return folder


FULL: dict[str, dict[str, Any]] = {
    run_folder.PLAN: {
        "schema": 1,
        "created": "2026-11-22T17:39:32Z",
        "git_commit": f"{_HEX}-dirty",
        "image": {"digest": f"sha256:{'ab' * 32}", "name": "nvcr.io/nvidia/nemo:26.04"},
        "gpu": {"index": 0, "name": "NVIDIA GB300", "memory": 1, "capability": [10, 3], "uuid": "GPU-1", "users": []},
        "request": {
            "model": "tiny",
            "precision": "bf16",
            "data": "mock",
            "runtime": "cpu",
            "switches": {"NVFP4_RHT": "1"},
            "nvfp4": {"rht": "on", "stochastic": "off", "weights": "1x16"},
        },
        "command": ["python3", "-m"],
        "choices": {"model": {"value": "tiny", "reason": "asked for"}},
    },
    run_folder.ENVIRONMENT: {
        "host": "x",
        "started": "2026-11-22T17:39:32Z",
        "model": "tiny",
        "finetuned": "lora",
        "resumed_from": "x",
        "versions": {"python": "3.12.3", "torch": "2.13.0+cpu"},
        "device": {"kind": "gpu", "name": "NVIDIA H100 80GB HBM3", "driver": "580.159.04", "uuid": None},
        "sampling": {"rate_hz": 12.5, "problem": "x"},
        "context": {"gradient_reduction": "float32", "parameter_gather": "fp8", "writers": ["wandb"]},
        "notes": ["x"],
    },
    run_folder.OUTCOME: {
        "cause": "interrupted by SIGINT",
        "host": "x",
        "traceback": ["x"],
        "slowest_rank": {"host": "x"},
    },
    run_folder.PROFILE: {"step": 1.0, "rows": [{"kind": "attention", "largest": "nvjet_sm90", "milliseconds": 1.0}]},
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts, numbers and empty ends of a value of JSON stand."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def put(value: Any, path: tuple[Any, ...], mark: str) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = mark


def published(folder: Path) -> str:
    """Names and contents of all files of a copy."""
    found = []
    for path in folder.rglob("*"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == run_folder.PACKED else path.read_bytes()
        found.append(f"{path.name}\n{content.decode()}")
    return "\n".join(found)


def test_there_are_a_hundred_marks() -> None:
    assert len(set(MARKS)) >= 100 and len(TOKENS) >= 12


def test_no_mark_is_published(make_run, tmp_path: Path) -> None:
    """As values of fields in turn, as keys beside them, as fields of their own, and in all other files."""
    folder = record_of(make_run)
    marks = itertools.cycle(MARKS)
    for round_ in range(len(MARKS)):
        planted = tmp_path / f"planted-{round_}"
        planted.mkdir()
        for path in folder.iterdir():
            text = path.read_text()
            lines = (
                [json.loads(line) for line in text.splitlines()[:2]] if path.suffix == ".jsonl" else [json.loads(text)]
            )
            for value in lines:
                for at, leaf in enumerate(list(leaves(value))):
                    if at % 3 == round_ % 3 or path.suffix == ".jsonl":
                        put(value, leaf, next(marks))
                    else:
                        put(value, (*leaf[:-1], next(marks)), 1) if isinstance(leaf[-1], str) else None
                value[next(marks)] = {"note": [next(marks)]}
            (planted / path.name).write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in lines))
        everything = "\n".join(MARKS)
        for name in (
            run_folder.LOG,
            run_folder.CONFIG,
            run_folder.JOB,
            run_folder.TRACE,
            "notes.txt",
            f"{MARKS[round_][:20].replace('/', '-')}.json",
        ):
            (planted / name).write_text(everything)
        (planted / run_folder.METRICS).open("a").write(f'{{"kind": "{MARKS[round_]}')  # a power cut
        publishable.copy_run(planted, tmp_path / f"copy-{round_}")
        told = published(tmp_path / f"copy-{round_}")
        assert not [mark for mark in MARKS if mark in told or json.dumps(mark)[1:-1] in told]


@pytest.mark.parametrize("mark", MARKS)
def test_no_mark_is_in_a_command(mark: str) -> None:
    quoted = "'" + mark.replace("'", "'\\''") + "'"
    for typed in (
        f"make bf16 DATA={quoted}", f"make bf16 ARGS={quoted}", f"make bf16 {quoted}", f"make {quoted}", mark,
        f"make bf16 {quoted}=1", f"make bf16 MODEL={quoted}", f"make bf16 ITERS={quoted}",
        f"make bf16 ARGS='--data {mark}'", f"make bf16 ARGS='optimizer.lr={mark}'", f"make bf16 # {mark}",
        f"make compare SEEDS={quoted}",
        f"make ablate VARIANTS={quoted}",
        "make ablate VARIANTS='rht=off | node17'",
        f"make sensitivity BUDGET={quoted}",
        "make nvfp4 NVFP4='rht=node17'",
    ):  # fmt: skip
        assert publishable.command(typed) == ""


@pytest.mark.parametrize(
    "typed",
    [
        "make compare REPEAT='3'",
        "make compare SEEDS='1 2 3' LOSS_MARGIN=0.5 SPEEDUP=1.68",
        "make ablate SEEDS='1, 2, 3' ITERS=110",
        "make ablate VARIANTS='whole | rht=off, tail=0 | switch=0.9:bf16' SEEDS=7",
        "make nvfp4 NVFP4='scale=4over6 error=mse'",
        'make bf16 RUNTIME=container MODEL=llama3-8b GBS=16 MBS=4 SEQ=4096 ITERS=20 ARGS="--num-layers 8"',
        'make nvfp4 EMULATE=1 NPROC=2 TP=2 DATA=mock ARGS="--num-layers 4 model.sequence_parallel=true"',
        "make sensitivity MODEL=tiny ITERS=20 BUDGET=15%",
        "make ablate RUNTIME=local EMULATE=reference ITERS=110",
    ],
)
def test_a_command_of_listed_words_is_published_whole(typed: str) -> None:
    assert publishable.command(typed) == typed


def test_a_link_is_not_followed(make_run, tmp_path: Path) -> None:
    folder = record_of(make_run)
    (tmp_path / "elsewhere.json").write_text('{"cause": "interrupted by SIGINT"}')
    (folder / run_folder.OUTCOME).unlink()
    (folder / run_folder.OUTCOME).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="is no file of its own"):
        publishable.copy_run(folder, tmp_path / "copy")
    (folder / run_folder.OUTCOME).unlink()
    (folder / run_folder.CONFIG).symlink_to("/etc/passwd")
    (folder / "checkpoints").symlink_to("/etc")
    publishable.copy_run(folder, tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        *(run_folder.PLAN, run_folder.ENVIRONMENT, run_folder.PROFILE),
        *(f"{name}.gz" for name in (run_folder.METRICS, run_folder.SAMPLES)),
    }


def test_the_copy_is_the_same_record(make_run, tmp_path: Path) -> None:
    folder = record_of(make_run)
    publishable.copy_run(folder, tmp_path / "copy")
    original, copy = loading.load(folder), loading.load(tmp_path / "copy")
    assert copy.parity == original.parity and copy.precision == original.precision
    assert copy.verdict == original.verdict and copy.outcome["cause"] == "interrupted by SIGINT"
    assert copy.environment["flops_per_token"] == original.environment["flops_per_token"]
    assert copy.environment["device"]["name"] == "NVIDIA H100 80GB HBM3"
    assert copy.plan["git_commit"] == f"{_HEX[:12]}-dirty"
    assert list(copy.train) == list(original.train) and copy.evaluations == original.evaluations
    publishable.copy_run(tmp_path / "copy", tmp_path / "again")  # a copy of a copy is the copy
    for path in (tmp_path / "copy").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_what_is_not_listed_still_tells_two_runs_apart(make_run, tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        folder = make_run("bf16", name=name, parity={"data": f"{name}-of-jane-0123456789ab"})
        publishable.copy_run(folder, tmp_path / name)
        told.append(json.loads((tmp_path / name / run_folder.ENVIRONMENT).read_text())["parity"]["data"])
    assert told[0] != told[1] and all(re.fullmatch(r"\(unlisted\) [0-9a-f]{8}", each) for each in told)


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA GB300", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB"),
        *("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA GeForce RTX 4090", "AMD EPYC", "NVIDIA GB10"),
        *("AMD EPYC 9654 96-Core Processor", "Intel(R) Xeon(R) Platinum 8480C", "Neoverse-V2", "aarch64"),
        *("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "INTEL(R) XEON(R) PLATINUM 8592+"),
    ],
)
def test_processors_are_told_by_their_names(name: str) -> None:
    rule = publishable.FIELDS[run_folder.ENVIRONMENT]["device"]["name"]
    assert rule(name) == name


@pytest.mark.parametrize("name", ["NVIDIA of Jane", "node17", "NVIDIA node17.cluster.example", "", "AMD EPYC /home/x"])
def test_what_is_no_processor_is_not_told(name: str) -> None:
    rule = publishable.FIELDS[run_folder.ENVIRONMENT]["device"]["name"]
    assert rule(name).startswith("(unlisted) ")


def test_everything_committed_is_what_may_be_published(project: Path, tmp_path: Path) -> None:
    runs = [path for path in (project / "assets" / "results").glob("*/*/") if run_folder.holds_run(path)]
    assert runs
    for at, run in enumerate(runs):
        publishable.copy_run(run, tmp_path / str(at))
        assert {path.name: path.read_bytes() for path in run.iterdir()} == {
            path.name: path.read_bytes() for path in (tmp_path / str(at)).iterdir()
        }
