"""Which engine is meant, what kind it is, and what that changes: against engines that answer as recorded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import docker
import pytest

from playbook.launch.container import engine, engine_address, prepare, spec
from playbook.launch.container.container_process import ContainerProcess
from playbook.launch.container.engine import EngineError
from playbook.launch.watch import see_the_end
from playbook.plan import place
from playbook.plan.place import EngineKind
from pretraining.record.run_folder import Verdict

_spec = importlib.util.spec_from_file_location("recorded_engine", Path(__file__).parents[2] / "recorded_engine.py")
recorded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recorded)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home where nothing is said about engines, and no engine of this machine's own."""
    for name in [name for name in os.environ if name.startswith("DOCKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(engine_address, "SOCKET", tmp_path / "none.sock")
    return tmp_path


@pytest.fixture
def answering(tmp_path: Path):
    """`answering(says)`: the address of an engine that says so."""
    servers = []

    def start(says: dict) -> str:
        path = tmp_path / f"{len(servers)}.sock"
        servers.append(recorded.serve(says, path))
        return f"unix://{path}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def write_context(config: Path, name: str, host: str, **files: str) -> None:
    """A context as `docker context create` stores it."""
    stored = hashlib.sha256(name.encode()).hexdigest()
    meta = config / "contexts" / "meta" / stored
    meta.mkdir(parents=True)
    described = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (meta / "meta.json").write_text(json.dumps(described))
    for file, text in files.items():
        kept = config / "contexts" / "tls" / stored / "docker"
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"{file}.pem").write_text(text)


CHOSEN = {"currentContext": "mine"}


@pytest.mark.parametrize(
    ("variables", "config", "expected"),
    [
        ({}, None, None),
        ({}, {"currentContext": ""}, None),
        ({}, CHOSEN, "unix:///mine.sock"),
        ({"DOCKER_CONTEXT": "default"}, CHOSEN, None),
        ({"DOCKER_CONTEXT": "other"}, CHOSEN, "unix:///other.sock"),
        ({"DOCKER_CONTEXT": "other"}, None, "unix:///other.sock"),  # `docker context create` writes no config.json
        ({"DOCKER_HOST": "tcp://h:2375", "DOCKER_CONTEXT": "other"}, CHOSEN, "tcp://h:2375"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_the_engine_is_the_one_that_docker_would_use(
    plain: Path, monkeypatch, variables, config, expected, by_variable
) -> None:
    folder = plain / ("elsewhere" if by_variable else ".docker")
    if by_variable:
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    for name in ("mine", "other"):
        write_context(folder, name, f"unix:///{name}.sock")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert engine_address.find().url == expected


@pytest.mark.skipif(not shutil.which("docker"), reason="no docker command to agree with")
def test_a_context_that_the_docker_command_made(plain: Path) -> None:
    for words in (["create", "mine", "--docker", "host=unix:///made.sock"], ["use", "mine"]):
        ended = subprocess.run(["docker", "context", *words], capture_output=True, text=True, check=False)
        if ended.returncode:
            pytest.skip(f"this docker command knows no contexts: {ended.stderr.strip()}")
    assert engine_address.find().url == "unix:///made.sock"


def test_without_the_usual_socket_a_rootless_engine_is_found(plain: Path, monkeypatch) -> None:
    (plain / "run").mkdir()
    (plain / "run" / "docker.sock").touch()
    assert engine_address.find().url == f"unix://{plain}/run/docker.sock"
    engine_address.SOCKET.touch()
    assert engine_address.find().url is None


def test_a_context_with_an_authority_alone_keeps_it(plain: Path) -> None:
    write_context(plain / ".docker", "mine", "tcp://h:2376", ca="authority")
    (plain / ".docker" / "config.json").write_text(json.dumps(CHOSEN))
    tls = engine_address.find().tls
    assert Path(tls.ca_cert).read_text() == "authority" and tls.verify and tls.cert is None


def refusal() -> str:
    """What connecting says, on one line."""
    with pytest.raises(EngineError) as refused:
        engine.connect()
    assert "\n" not in str(refused.value) and refused.value.remedy
    return str(refused.value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"DOCKER_HOST": "ssh://ada@gpubox"}, "DOCKER_HOST=ssh://gpubox is not supported: ssh leads"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:70000"}, "answers at DOCKER_HOST=tcp://127.0.0.1:70000 (Port"),
        ({"DOCKER_HOST": "tcp://127.0.0.1"}, "port is required"),
        ({"DOCKER_HOST": "127.0.0.1:9"}, "no Docker engine answers at DOCKER_HOST=127.0.0.1:9"),
        ({"DOCKER_HOST": "tcp://ada:s3cret@127.0.0.1:9"}, "no Docker engine answers at DOCKER_HOST=tcp://127.0.0.1:9"),
        ({"DOCKER_HOST": "unix:///no/such.sock"}, "its socket is not there"),
        ({"DOCKER_HOST": "nonsense://x"}, "Invalid bind address protocol"),
        ({"DOCKER_HOST": "http://[::1"}, "DOCKER_HOST=http://[::1"),
        ({"DOCKER_CONTEXT": "gone"}, "the Docker context gone is not there: docker context ls lists them"),
        ({"DOCKER_TLS_VERIFY": "1"}, "DOCKER_TLS_VERIFY wants certificates, and {home}/.docker has no ca.pem"),
        ({"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nope"}, "/nope has no ca.pem"),
        ({"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "{home}/half"}, "half has no key.pem and no ca.pem"),
        ({"DOCKER_TLS": "1", "DOCKER_CERT_PATH": "{home}/half"}, "half has no key.pem: set DOCKER_CERT_PATH"),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_be_meant_is_one_line(plain: Path, monkeypatch, variables, says) -> None:
    (plain / "half").mkdir()
    (plain / "half" / "cert.pem").touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=plain))
    said = refusal()
    assert says.format(home=plain) in said and "s3cret" not in said


def test_certificates_are_looked_for_where_they_are_asked_for_alone(plain: Path, monkeypatch, answering) -> None:
    monkeypatch.setenv("DOCKER_CERT_PATH", "/nope")  # without DOCKER_TLS the docker command does not look at it
    monkeypatch.setenv("DOCKER_HOST", answering(recorded.DOCKER))
    assert engine.connect().version == "29.0.1"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"Endpoints": {}}', '{"Endpoints": {"docker": 5}}'])
def test_a_damaged_context_is_one_line(plain: Path, monkeypatch, content: str) -> None:
    write_context(plain / ".docker", "mine", "unix:///x")
    next((plain / ".docker" / "contexts" / "meta").glob("*/meta.json")).write_text(content)
    monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    assert "the Docker context mine cannot be read" in refusal()


def test_an_engine_of_a_context_that_is_down_is_not_the_machines_own(plain: Path) -> None:
    write_context(plain / ".docker", "mine", "unix:///no/such.sock")
    (plain / ".docker" / "config.json").write_text(json.dumps(CHOSEN))
    said = refusal()
    assert "the Docker context mine (unix:///no/such.sock)" in said and "systemctl" not in said
    assert "docker context use default" in said


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (recorded.DOCKER, EngineKind()),
        (recorded.docker(SecurityOptions=["name=seccomp,profile=builtin", "name=userns"]), EngineKind(remaps=True)),
        (recorded.docker(SecurityOptions=["name=seccomp", "name=selinux,seutil"]), EngineKind(selinux=True)),
        (recorded.docker(SecurityOptions=["name=rootless"]), EngineKind(rootless=True)),
        (recorded.docker(SecurityOptions=None, Runtimes={"runc": {}}), EngineKind(gpus="")),
        (recorded.PODMAN, EngineKind(gpus="", rootless=True)),
    ],
)  # fmt: skip
def test_what_kind_of_engine_it_is(answering, monkeypatch, says, kind) -> None:
    monkeypatch.setenv("DOCKER_HOST", answering(says))
    monkeypatch.setenv("PATH", "")
    assert engine.connect().kind == kind


def test_podman_is_told_as_what_it_is(answering, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", answering(recorded.PODMAN))
    found = engine.connect()
    cause, remedy = found.no_gpus
    assert cause == "this is Podman 5.4.0, whose Docker API ignores requests for a GPU"
    assert "podman run" in remedy and "RUNTIME=local" in remedy and "nvidia-ctk" not in remedy
    wanted = place.Wanted(runtime="container")
    with pytest.raises(EngineError, match=r"this is Podman 5\.4\.0"):
        prepare.on_engine(place.Place("container"), wanted)


@pytest.mark.parametrize(
    ("kind", "sent", "typed"),
    [
        (EngineKind(), {}, ""),
        (EngineKind(remaps=True), {"UsernsMode": "host"}, "--userns host"),
        (EngineKind(selinux=True), {"SecurityOpt": ["label=disable"]}, "--security-opt label=disable"),
    ],
)
def test_an_engine_that_would_keep_the_folders_from_training_is_asked_not_to(kind, sent, typed) -> None:
    asked = spec.Container(
        image="nemo", name="n", command=["python"], environment={}, secrets=(), folders=(), workdir="/w",
        gpu="GPU-1", engine=kind,
    )  # fmt: skip
    api = docker.APIClient(base_url="http://127.0.0.1:9", version="1.44")
    host = asked.create_arguments(api)["host_config"]
    assert {name: host[name] for name in ("UsernsMode", "SecurityOpt") if host.get(name)} == sent
    words = " ".join(asked.docker_run())
    assert typed in words and ("--userns" in words, "--security-opt" in words) == (kind.remaps, kind.selinux)


def test_an_answer_that_is_none_ends_the_watching_and_leaves_the_container(tmp_path: Path) -> None:
    """A launcher whose waiting thread died would wait for ever; a record would let the container be removed."""
    removed = []
    api = SimpleNamespace(wait=lambda *_, **__: {}, remove_container=lambda *asked, **_: removed.append(asked))
    started = ContainerProcess(SimpleNamespace(api=api), "c0ffee", iter(()))
    assert started._over.wait(timeout=10)
    end = started.poll()
    assert end.verdict is Verdict.INCOMPLETE and "make attach" in end.cause
    started.close(recorded=see_the_end(tmp_path, end))
    assert not removed and not list(tmp_path.iterdir())
