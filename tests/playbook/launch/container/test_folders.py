"""What a container mounts of Hugging Face's cache: links are followed, wherever they lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from playbook.launch.container import folders, spec


def hub(folder: Path) -> tuple[Path, Path]:
    """A repository in Hugging Face's cache: its snapshot, whose files are links, and the folder that these lead to."""
    snapshot, blobs = folder / "models--a--b" / "snapshots" / "c0ffee", folder / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    return snapshot, blobs


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_a_hub_cache_of_its_own_is_mounted_and_named(container_of, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(name, str(tmp_path / "hub"))
    asked = container_of()
    assert asked.environment["HF_HUB_CACHE"] == str(tmp_path / "hub")
    assert spec.Folder(tmp_path / "hub", True) in asked.folders
    monkeypatch.delenv(name)
    assert "HF_HUB_CACHE" not in container_of().environment


def test_a_cache_that_lies_elsewhere_by_links_is_there_too(tmp_path: Path, monkeypatch) -> None:
    home, disk, other = (tmp_path / name for name in ("home", "disk", "other"))
    home.mkdir(), disk.mkdir()
    (home / "hub").symlink_to("../disk")
    hub(other)
    (disk / "models--a--b").symlink_to(other / "models--a--b")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    folders = spec.huggingface_folders("a/b")
    assert {home, disk, other / "models--a--b"} <= set(folders)


def test_links_of_a_folder_are_followed_on_every_way(tmp_path: Path) -> None:
    snapshot, blobs = hub(tmp_path / "cache")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "weights").touch()
    (blobs / "2").symlink_to(tmp_path / "far" / "weights")  # a link to a link
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").symlink_to(tmp_path / "far" / "weights")
    (snapshot / "words").symlink_to(tmp_path / "words")  # a link to a folder with links
    (snapshot / "gone").symlink_to("nowhere")
    (snapshot / "round").symlink_to("round")
    assert folders.behind_links(snapshot) == {snapshot, blobs, tmp_path / "far", tmp_path / "words"}
    assert folders.behind_links(tmp_path / "no") == set()


def test_a_snapshot_to_begin_with_brings_its_blobs(container_of, tmp_path: Path, monkeypatch) -> None:
    snapshot, blobs = hub(tmp_path / "cache")
    (tmp_path / "llama").symlink_to(snapshot)
    monkeypatch.setattr("pretraining.request.checks.pretrained.check", lambda *_: None)
    for given in (snapshot, tmp_path / "llama"):
        asked = container_of("--from", str(given), "--model", "llama32-1b")
        mounted = {each.path: each.writable for each in asked.folders}
        assert mounted[snapshot] is mounted[blobs] is False
