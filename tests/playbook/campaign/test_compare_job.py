"""What a comparison holds on to while it trains what is missing."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

from playbook.campaign import compare_job, gather, reuse
from pretraining.record import lock
from pretraining.record.run_folder import Verdict


def test_its_finished_runs_count_as_in_use_while_others_train(tmp_path: Path, monkeypatch) -> None:
    def run(name: str) -> SimpleNamespace:
        folder = tmp_path / name
        folder.mkdir()
        (folder / lock.FILE).write_text("")
        return SimpleNamespace(folder=folder, verdict=Verdict.SUCCEEDED, outcome={})

    past, in_use = run("past"), []

    def train(job: object, runs: Path) -> SimpleNamespace:
        in_use.append(lock.in_use(past.folder))
        return run("new")

    def job(name: str) -> SimpleNamespace:
        return SimpleNamespace(request=dict, settings=SimpleNamespace(precision=SimpleNamespace(name=name)))

    monkeypatch.setattr(reuse, "reusable", lambda *_, **__: [past, None])
    monkeypatch.setattr(reuse, "reusing", lambda run: "reusing it")
    monkeypatch.setattr(gather, "train", train)
    asked = Namespace(fresh=False, seeds=None, runs=tmp_path, force=False)
    runs, _ = compare_job._gather([[job("bf16"), job("nvfp4")]], asked, "tiny")
    assert [each.folder.name for each in runs] == ["past", "new"]
    assert in_use == ["in use by another process"] and lock.in_use(runs[1].folder)
