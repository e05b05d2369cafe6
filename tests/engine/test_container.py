"""What a training gets inside its container, and what is left of it outside: on a real engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import standin_image

from pretraining.record import lock

UUID = "GPU-1b7e"
UID = 12345 if os.geteuid() == 0 else os.getuid()  # nobody whom the image knows
ASSETS = Path(__file__).resolve().parents[2] / "assets"


def test_a_run_succeeds_and_leaves_its_record_and_no_container(station) -> None:
    code, printed = station.run()
    assert code == 0, printed
    assert "GB300" in printed and "the only one of 2 GPUs that trains in nvfp4" in printed
    assert station.outcome()["verdict"] == "succeeded"
    assert station.containers() == []
    plan = json.loads((station.folder() / "plan.json").read_text())
    assert plan["gpu"]["uuid"] == UUID
    assert plan["image"]["digest"] == station.api.inspect_image(station.engine.image("26.04"))["Id"]
    assert plan["request"]["image"] == plan["image"]["digest"]
    assert plan["choices"]["runtime"]["value"] == "container"


def test_what_training_gets_inside(station) -> None:
    code, printed = station.run(tag="facts", PLAYBOOK_TEST_UID=str(UID))
    assert code == 0, printed
    run = station.folder()
    facts = json.loads((run / "facts.json").read_text())
    inside = facts["environment"]
    assert (facts["uid"], facts["gid"]) == (UID, UID)
    assert len(facts["writable"]) == 4  # HOME, Hugging Face's, Triton's and Inductor's caches
    assert facts["cwd"] == str(run)
    assert inside["PATH"] == "/opt/venv/bin:/opt/standin/bin:/usr/bin:/bin"
    if station.engine.own:  # somebody's engine has no such GPU: there the request leaves it out
        assert inside["NVIDIA_VISIBLE_DEVICES"] == UUID
    assert inside["USER"]
    assert facts["init"] in ("docker-init", "tini")
    assert "Max stack size            67108864" in facts["limits"]
    assert "docker.sock" not in facts["mounts"]
    how = {line.split()[1]: line.split()[3].split(",")[0] for line in facts["mounts"].splitlines()}
    assert how[str(ASSETS)] == "ro"
    assert how[str(run)] == how[str(station.home / "cache")] == how[str(station.home / "hf")] == "rw"
    capabilities = int(re.search(r"CapBnd:\s+(\w+)", facts["status"])[1], 16)
    assert not capabilities >> 21 & 1, "CAP_SYS_ADMIN: the container is privileged"
    written = [path for path in run.iterdir() if path.name in ("metrics.jsonl", "outcome.json", "facts.json")]
    assert {path.stat().st_uid for path in written} == {UID}


def test_own_data_is_mounted_read_only_and_a_token_appears_nowhere(station) -> None:
    data = station.home / "data"
    data.mkdir()
    for end in (".bin", ".idx"):
        (data / f"corpus{end}").write_bytes(b"0")
    secret = "hf_neverPrinted"
    code, printed = station.run("nvfp4", "--data", str(data / "corpus"), tag="facts", HF_TOKEN=secret)
    assert code == 0, printed
    facts = json.loads((station.folder() / "facts.json").read_text())
    assert facts["environment"]["HF_TOKEN"] == secret and secret not in str(facts["argv"])
    how = {line.split()[1]: line.split()[3].split(",")[0] for line in facts["mounts"].splitlines()}
    assert how[str(data)] == "ro"
    records = [path.read_text() for path in station.folder().iterdir() if path.name != "facts.json"]
    assert secret not in printed + "".join(records)
    _, printed = station.run("nvfp4", "--data", str(data / "corpus"), "--dry-run", HF_TOKEN=secret)
    assert "-e HF_TOKEN \\\n" in printed and secret not in printed


def test_proxies_and_a_mirror_are_inside_and_in_no_record(station) -> None:
    proxy = "http://ada:neverWritten@proxy.invalid:3128"
    given = {"https_proxy": proxy, "NO_PROXY": "localhost", "HF_ENDPOINT": "https://mirror.invalid"}
    code, printed = station.run(tag="facts", **given)
    assert code == 0, printed
    inside = json.loads((station.folder() / "facts.json").read_text())["environment"]
    assert {name: inside.get(name) for name in given} == given
    records = [path.read_text() for path in station.folder().iterdir() if path.name != "facts.json"]
    assert "neverWritten" not in printed + "".join(records)


def test_data_behind_links_is_there_too(station) -> None:
    real, data = station.home / "disk", station.home / "data"
    real.mkdir(), data.mkdir()
    for end in (".bin", ".idx"):
        (real / f"blob{end}").write_bytes(b"0")
        (data / f"corpus{end}").symlink_to(real / f"blob{end}")
    code, printed = station.run("nvfp4", "--data", str(data / "corpus"), tag="facts")
    assert code == 0, printed
    mounts = json.loads((station.folder() / "facts.json").read_text())["mounts"]
    how = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts.splitlines()}
    assert how[str(real)] == how[str(data)] == "ro"


def test_a_token_is_left_out_where_nothing_needs_it(station) -> None:
    code, _ = station.run(tag="facts", HF_TOKEN="hf_unneeded")
    assert code == 0
    assert "HF_TOKEN" not in json.loads((station.folder() / "facts.json").read_text())["environment"]


def test_the_printed_command_makes_the_same_container(station) -> None:
    folder = station.runs / "named"
    running = station.start("nvfp4", "--run-dir", str(folder), tag="steady")
    station.training()
    sent = station.api.inspect_container(station.containers()[0]["Id"])
    running.terminate()
    running.wait(timeout=60)
    _, printed = station.run("nvfp4", "--run-dir", str(folder), "--dry-run", tag="steady")
    pasted = re.sub(r"^docker run", "docker create", printed, flags=re.M)
    subprocess.run(["sh", "-e", "-c", pasted], env=station.environment(), check=True, capture_output=True)
    typed = station.api.inspect_container(station.containers()[0]["Id"])
    for part in ("AttachStdout", "AttachStderr", "Hostname", "OnBuild"):  # of the terminal, not of the container
        sent["Config"].pop(part, None), typed["Config"].pop(part, None)
    for part in ("Mounts", "Env"):
        for each in (sent, typed):
            each["HostConfig" if part == "Mounts" else "Config"][part].sort(key=str)
    # Which start this is: a command that is typed is one of its own.
    sent["Config"]["Env"] = [each for each in sent["Config"]["Env"] if not each.startswith(f"{lock.VARIABLE}=")]
    assert _less_empty(sent["Config"]) == _less_empty(typed["Config"])
    assert _less_empty(sent["HostConfig"]) == _less_empty(typed["HostConfig"])
    assert sent["Name"] == typed["Name"]


def _less_empty(part: dict) -> dict:
    """Without what one side leaves out and the other sends as nothing."""
    empty = (None, [], {}, "", False, 0, -1, "no", "default", [0, 0])
    kept = {name: _less_empty(value) if isinstance(value, dict) else value for name, value in part.items()}
    return {name: value for name, value in kept.items() if value not in empty and name != "ConsoleSize"}


def test_a_moved_tag_is_reported(station) -> None:
    base, moving = station.engine.image("26.04"), station.engine.image("moving")
    standin_image.tag_with(station.api, base, moving, {"VERSION": "1"})
    assert station.run(tag="moving")[0] == 0
    time.sleep(1)
    standin_image.tag_with(station.api, base, moving, {"VERSION": "2"})
    code, printed = station.run(tag="moving")
    assert code == 0
    assert "another image than in run" in printed


def test_compare_trains_both_on_one_gpu_in_one_image(station) -> None:
    _, printed = station.run("compare", "--train-iters", "12")
    plans = [json.loads(path.read_text()) for path in sorted(station.runs.glob("*/plan.json"))]
    assert [each["request"]["precision"] for each in plans] == ["bf16", "nvfp4"], printed
    assert {each["request"]["gpu"] for each in plans} == {UUID}
    assert len({each["request"]["image"] for each in plans}) == 1


def test_shell_opens_the_same_container_and_so_does_its_dry_run(station) -> None:
    typed = "echo in=$PWD; python -c 'import sys; print(sys.version_info[:2])'; echo gpu=$NVIDIA_VISIBLE_DEVICES\n"
    _, printed = station.run("shell", "--dry-run")
    for words in (station.command("shell"), ["sh", "-e", "-c", printed]):
        shown = subprocess.run(
            words, env=station.environment(), text=True, capture_output=True, timeout=60, input=typed
        )
        assert shown.returncode == 0, shown.stderr
        assert f"in={station.runs}" in shown.stdout and "(3, " in shown.stdout
        assert f"gpu={UUID if station.engine.own else ''}\n" in shown.stdout
    assert station.containers() == []


def test_the_gate_stops_before_anything_starts(station) -> None:
    code, printed = station.run("nvfp4", "--gpu", "0")
    assert code == 2
    assert "RTX PRO 6000 is to be probed first. Transformer Engine 2.19 or newer is needed" in printed
    assert "NeMo 26.08 has 2.17, so take a newer one (TAG=), or for nvfp4 EMULATE=1" in printed
    assert not station.runs.exists() and station.containers() == []


def test_a_gpu_that_the_engine_does_not_hand_over(station, private) -> None:
    code, _ = station.run(PLAYBOOK_TEST_REQUEST="cdi")  # 20.10 knows the request, and no such driver
    assert code == 1
    assert station.outcome()["verdict"] == "failed"
    assert "nvidia-ctk runtime configure" in station.outcome()["cause"]
    assert station.containers() == []


def test_the_launcher_costs_little_while_20_lines_a_second_stream(station) -> None:
    running = station.start(tag="steady")
    station.training()
    ticks = os.sysconf("SC_CLK_TCK")

    def spent() -> float:
        fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    time.sleep(1)
    before, began = spent(), time.monotonic()
    time.sleep(3)
    share = (spent() - before) / (time.monotonic() - began)
    resident = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{running.pid}/status").read_text())[1]) / 1000
    running.terminate()
    running.wait(timeout=60)
    assert share < 0.01, f"{share:.2%} of a core"
    assert resident < 80, f"{resident:.0f} MB"
