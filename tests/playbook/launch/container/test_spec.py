"""What an engine is asked for, where the engines at hand cannot show it: CDI, dry runs without one, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError

from playbook.launch.container import engine, image, spec
from playbook.plan import place
from playbook.plan.gpus import Gpu
from pretraining.errors import UsageError
from pretraining.request import flags as training_flags
from pretraining.request import settings

PROJECT = Path(__file__).resolve().parents[4]
GPU = "GPU-1b7e90aa-4f0c-2b17-9c35-6f1d20b6ce44"
CDI = engine.EngineKind(gpus="cdi")
PLAIN = spec.Container(
    image="nvcr.io/nvidia/nemo:26.04", name="n", command=["python", "-V"], environment={}, secrets=(),
    folders=(), workdir="/w", gpu=GPU,
)  # fmt: skip

PLACE = place.Place("container", gpu=Gpu(0, GPU, "NVIDIA GB300", (10, 3), None), engine=CDI, image="nemo")


def api() -> docker.APIClient:
    return docker.APIClient(base_url="http://127.0.0.1:9", version="1.44")


def test_cdi_is_asked_for_by_its_own_name() -> None:
    sent = replace(PLAIN, engine=CDI).create_arguments(api())["host_config"]
    assert sent["DeviceRequests"] == [
        {"Driver": "cdi", "Count": 0, "DeviceIDs": [f"nvidia.com/gpu={GPU}"], "Capabilities": [], "Options": {}}
    ]
    assert f"--device nvidia.com/gpu={GPU}" in " ".join(replace(PLAIN, engine=CDI).docker_run())


def test_the_classic_request_names_the_uuid_and_never_all() -> None:
    (asked,) = PLAIN.create_arguments(api())["host_config"]["DeviceRequests"]
    assert asked["DeviceIDs"] == [GPU] and asked["Capabilities"] == [["gpu"]] and asked["Count"] == 0
    assert f'"device={GPU}"' in PLAIN.docker_run()


def test_never_privileged_no_socket_no_port_no_auto_removal() -> None:
    sent = PLAIN.create_arguments(api())
    host = sent["host_config"]
    assert not host.get("Privileged") and not host.get("AutoRemove") and not host.get("PortBindings")
    assert "docker.sock" not in json.dumps(sent, default=str)
    assert "ports" not in sent


def test_folders_of_a_config_file_and_a_plugin_are_mounted_read_only(tmp_path: Path) -> None:
    config, plugin = tmp_path / "a" / "c.yaml", tmp_path / "b" / "p.py"
    for path, text in ((config, "optimizer: {lr: 0.1}"), (plugin, "callbacks = []")):
        path.parent.mkdir()
        path.write_text(text)
    args = training_flags.parser("x").parse_args(["--config", str(config), "--plugin", str(plugin)])
    chosen = settings.resolve(args, on_gpu=True, processes=1)
    flags = chosen.as_flags()
    asked = spec.training(chosen, PLACE, tmp_path / "run", flags)
    mounted = {folder.path: folder.writable for folder in asked.folders}
    assert mounted[config.parent] is mounted[plugin.parent] is False
    assert f"--plugin {plugin}" in " ".join(asked.command)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, "nvidia"),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, "cdi"),
        ({"Runtimes": {"runc": {}}, "CDISpecDirs": ["{folder}"]}, "cdi"),
        ({"Runtimes": {"runc": {}}, "CDISpecDirs": ["/no/such/folder"]}, ""),
        ({"Runtimes": {"runc": {}}}, ""),
    ],
)
def test_how_an_engine_hands_gpus_over(info, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidia.yaml").write_text("cdiVersion: 0.6.0\nkind: nvidia.com/gpu\n")
    folders = [each.format(folder=tmp_path) for each in info.get("CDISpecDirs", [])]
    assert engine._gpu_support({**info, "CDISpecDirs": folders}) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "nvidia-ctk runtime configure"),
        ("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1", "nvidia-ctk cdi generate"),
        ("invalid mount config for type bind: bind source path does not exist: /data", "/data"),
        ("nvidia-container-cli: initialization error: driver rpc error", "nvidia-smi"),
        ("error setting rlimit type 8: operation not permitted", "runs as root"),
        ("write /var/lib/docker/x: no space left on device", "docker system prune"),
        ("no such image: a b: invalid reference format", "no image name"),
        ("something new", "something new"),
    ],
)
def test_an_engines_refusal_comes_with_its_remedy(said, expected) -> None:
    assert expected in engine.explain(APIError("500", explanation=said))


def test_a_lost_engine_is_told_from_a_refusal() -> None:
    assert "went away" in engine.explain(requests.ConnectionError("Connection aborted."))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Get https://nvcr.io/v2/: dial tcp: lookup nvcr.io: no such host", "check the network"),
        ("unauthorized: authentication required", "docker login nvcr.io"),
        ("manifest for nvcr.io/nvidia/nemo:1 not found: manifest unknown", "TAG="),
        ("write /x: no space left on device", "docker system prune"),
    ],
)
def test_a_failed_pull_comes_with_its_remedy(said, expected) -> None:
    assert expected in engine.pull_problem(said, "nvcr.io/nvidia/nemo:1")


def test_progress_of_a_pull_adds_its_layers_up(capsys, monkeypatch) -> None:
    monkeypatch.setattr(image, "SAY_EVERY_SECONDS", -1)
    events = [
        {"status": "Pulling from nvidia/nemo", "id": "26.04"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 10**9, "total": 4 * 10**9}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 10**9, "total": 2 * 10**9}},
        {"status": "Download complete", "id": "b"},
    ]
    image._follow(events, "nemo")
    assert capsys.readouterr().out.splitlines()[-1] == "  3.0 of 6.0 GB pulled"
    with pytest.raises(engine.EngineError, match="check the network"):
        image._follow([{"error": "dial tcp: i/o timeout"}], "nemo")


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (None, "nvcr.io/nvidia/nemo:26.04"),
        ("26.06", "nvcr.io/nvidia/nemo:26.06"),
        ("nvfp4-playbook:26.04", "nvfp4-playbook:26.04"),
    ],
)
def test_a_tag_is_nemos_unless_it_is_a_name(tag, name) -> None:
    assert image.named(tag) == name


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"Platforms": [{"architecture": "amd64"}, {"architecture": "arm64"}]}, None),
        ({"Platforms": None}, None),
        ({"Platforms": [{"architecture": "amd64"}]}, "no build for arm64"),
        (APIError("404", explanation="manifest unknown: no such tag"), "there is no nvcr.io/nvidia/nemo:1"),
        (APIError("500", explanation="dial tcp: lookup nvcr.io: no such host"), "check the network"),
        (requests.ReadTimeout("read timed out"), "check the network"),
    ],
)
def test_whether_an_image_can_be_pulled_is_asked_before(answer: Any, words: str | None) -> None:
    class Api:
        def inspect_distribution(self, name: str) -> dict:
            if isinstance(answer, Exception):
                raise answer
            return answer

        def version(self) -> dict:
            return {"Arch": "arm64"}

    said = SimpleNamespace(api=Api())
    if words is None:
        image.check_pull(said, "nvcr.io/nvidia/nemo:1")
        return
    with pytest.raises(engine.EngineError, match=words):
        image.check_pull(said, "nvcr.io/nvidia/nemo:1")


def test_a_folder_that_would_hide_the_image_is_not_mounted() -> None:
    for path in ("/", "/opt", "/usr", "/opt/venv"):
        with pytest.raises(UsageError, match="would hide"):
            spec.checked([spec.Folder(Path(path))])
    with pytest.raises(UsageError, match="comma"):
        spec.checked([spec.Folder(Path("/data/a,b"))])


def test_a_folder_is_mounted_once_and_writable_where_anybody_writes() -> None:
    outer, inner = Path("/d"), Path("/d/runs")
    asked = [spec.Folder(inner, True), spec.Folder(outer), spec.Folder(inner)]
    assert spec.checked(asked) == (spec.Folder(outer), spec.Folder(inner, True))


def test_the_images_own_path_follows_its_python() -> None:
    path = spec.user_environment(Path("/c"), "/opt/venv/bin:/usr/bin")["PATH"]
    assert path == "/opt/venv/bin:/usr/bin"


def test_transformer_engines_variables_go_in_and_the_recipe_goes_by_flag(tmp_path: Path, monkeypatch) -> None:
    given = {"NVTE_FUSED_ATTN": "0", "NVTE_NVFP4_DISABLE_RHT": "1", "NVFP4_2D": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    chosen = settings.resolve(training_flags.parser("x").parse_args([]), on_gpu=True, processes=1)
    flags = chosen.as_flags()
    assert flags[flags.index("--nvfp4") + 1].startswith("rht=off stochastic=on weights=1x16 ")
    asked = spec.training(chosen, PLACE, tmp_path, flags)
    assert asked.environment.items() >= given.items() and flags == asked.command[-len(flags) - 2 : -2]


def test_what_a_writer_needs_goes_by_name_and_only_where_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush-wandb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hush-mlflow@host")
    monkeypatch.setenv("HF_TOKEN", "hush-hf")

    def asked(*flags: str) -> spec.Container:
        args = training_flags.parser("x").parse_args([*flags, "--run-dir", str(tmp_path / "run")])
        chosen = settings.resolve(args, on_gpu=True, processes=1)
        return spec.training(chosen, PLACE, chosen.run_dir, [])

    assert asked().secrets == asked("--tensorboard").secrets == ()
    both = asked("--wandb-project", "p", "--mlflow-experiment", "e")
    assert both.secrets == ("WANDB_API_KEY", "MLFLOW_TRACKING_URI")
    assert "hush" not in " ".join(both.docker_run()) + str(both.environment)
    sent = both.create_arguments(api())["environment"]
    assert sent["WANDB_API_KEY"] == "hush-wandb" and "HF_TOKEN" not in sent


def dry_run(*flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT / "scripts" / "run.py"), *flags, "--dry-run"],
        env={**os.environ, "DOCKER_HOST": "unix:///no/such/socket", **more}, text=True, capture_output=True, timeout=60,
    )  # fmt: skip


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU to name")
def test_without_gpu_or_engine_a_dry_run_is_still_a_script(tmp_path) -> None:
    shown = dry_run("nvfp4", "--runtime", "container", "--runs", str(tmp_path / "runs"), HF_TOKEN="hf_x")
    assert shown.returncode == 0, shown.stderr
    assert "device=<GPU-UUID>" in shown.stdout and "nvcr.io/nvidia/nemo:26.04" in shown.stdout
    assert "hf_x" not in shown.stdout and not (tmp_path / "runs").exists()
    assert subprocess.run(["sh", "-n"], input=shown.stdout, text=True).returncode == 0


NOBODY = """
import pwd
def unknown(number): raise KeyError(number)
pwd.getpwuid = unknown
from playbook.launch.container import spec
print(spec.huggingface_caches()["HF_HOME"])
"""


def test_a_user_without_a_home_is_served_too() -> None:
    paths = os.pathsep.join([str(PROJECT / "assets"), str(PROJECT / "scripts")])
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "HF_HOME", "XDG_CACHE_HOME")}
    words = [sys.executable, "-c", NOBODY]
    shown = subprocess.run(words, env=kept | {"PYTHONPATH": paths}, text=True, capture_output=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "/container/.cache/huggingface" in shown.stdout


def test_a_dry_run_on_the_cpu_prints_the_command(tmp_path) -> None:
    shown = dry_run("bf16", "--runtime", "cpu", "--runs", str(tmp_path / "runs"))
    assert shown.returncode == 0, shown.stderr
    assert "pretrain_llama.py" in shown.stdout and "CUDA_VISIBLE_DEVICES=" in shown.stdout


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU to ask for")
@pytest.mark.parametrize("job", ["nvfp4", "compare"])
def test_a_dry_run_takes_the_standard_library_alone_and_writes_nothing(tmp_path: Path, job: str) -> None:
    words = [sys.executable, "-S", str(PROJECT / "scripts" / "run.py"), job, "--dry-run", "--runs", str(tmp_path / "r")]
    shown = subprocess.run(words, text=True, capture_output=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "pretrain_llama.py" in shown.stdout and "Setting up" not in shown.stdout
    assert not (tmp_path / "r").exists()


def test_a_reader_that_goes_away_is_no_error(tmp_path) -> None:
    flags = ["nvfp4", "--runtime", "container", "--runs", str(tmp_path), "--dry-run"]
    for words in (flags, ["doctor", "--runtime", "cpu"]):
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "scripts" / "run.py"), *words],
            env={**os.environ, "DOCKER_HOST": "unix:///no/such/socket"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_container_without_a_gpu_is_an_error_and_not_a_cpu_run() -> None:
    with pytest.raises(UsageError, match="RUNTIME=cpu does not"):
        place.choose(place.Wanted(runtime="container"), container_precision())


def container_precision():
    from pretraining.request.precisions import PRECISIONS

    return PRECISIONS["bf16"]


@pytest.mark.parametrize(
    ("inside", "bridge", "expected"), [(True, True, "local"), (True, False, "container"), (False, True, "container")]
)
def test_auto_with_a_gpu(inside, bridge, expected, monkeypatch) -> None:
    from playbook.plan import gpus

    monkeypatch.setattr(place.local_python, "inside_container", lambda: inside)
    monkeypatch.setattr(place.local_python, "has_bridge", lambda: bridge)
    found = gpus.Inventory((gpus.Gpu(0, GPU, "NVIDIA GB300", (10, 3), 288 * 10**9),))
    assert place.runtime_of("auto", found).value == expected


def test_auto_without_a_gpu_and_with_a_broken_one() -> None:
    from playbook.plan import gpus

    assert place.runtime_of("auto", gpus.Inventory()).value == "cpu"
    broken = gpus.Inventory(problem="restart the machine")
    assert place.runtime_of("auto", broken).value == "container"
    with pytest.raises(UsageError, match="restart the machine"):
        place.runtime_of("auto", broken, refuse=True)


def test_several_gpus_of_one_container() -> None:
    asked = replace(PLAIN, gpu="GPU-a,GPU-b")
    assert asked._gpu_request()[1]["device_requests"][0]["DeviceIDs"] == ["GPU-a", "GPU-b"]
    words = asked.docker_run()
    assert words[words.index("--gpus") + 1] == '"device=GPU-a,GPU-b"'
    cdi = replace(asked, engine=CDI)
    names = ["nvidia.com/gpu=GPU-a", "nvidia.com/gpu=GPU-b"]
    assert cdi._gpu_request()[1]["device_requests"][0]["DeviceIDs"] == names
    assert [word for word in cdi.docker_run() if word.startswith("nvidia.com")] == names


PROXY = "http://ada:hush@proxy:3128"


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "no_proxy", "HF_ENDPOINT"])
def test_what_leads_to_the_network_goes_in_by_name(container_of, tmp_path: Path, monkeypatch, name: str) -> None:
    for each in spec.NETWORK:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, PROXY)
    asked = container_of()
    words = asked.docker_run()
    assert words[words.index(name) - 1] == "-e" and "hush" not in " ".join(words) + repr(asked)
    assert asked.create_arguments(api())["environment"][name] == PROXY
    monkeypatch.setenv(name, "")
    assert name not in container_of().secrets
