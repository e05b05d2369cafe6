"""Stands in for the training script: the same record, a few seconds, and the behaviour that STANDIN names."""

import json
import os
import signal
import sys
import time
from pathlib import Path

CACHES = ("HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def main() -> int:
    run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
    iterations = int(sys.argv[sys.argv.index("--train-iters") + 1])
    how = os.environ.get("STANDIN", "train")
    sys.path.insert(0, os.environ["ASSETS"])
    from pretraining.record import lock  # the real one, over a mount

    held = lock.hold(run, lock.run_of_environment(), "training")

    def interrupted(number, frame):
        if how == "deaf":
            return
        outcome(run, "interrupted", f"interrupted by {signal.Signals(number).name}", 130)
        sys.exit(130)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    if how == "first":
        (run / "first.json").write_text(json.dumps(time.time()))
        outcome(run, "succeeded", "", 0)
        return 0
    if how == "cuda-oom":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", flush=True)
        return 1
    if how == "crash":
        raise SystemExit("megatron said no")
    if how == "flood":
        for number in range(200_000):
            print(f"line {number}")
        outcome(run, "succeeded", "", 0)
        return 0
    if how == "facts":
        facts = {
            "environment": dict(os.environ),
            "uid": os.getuid(),
            "gid": os.getgid(),
            "cwd": os.getcwd(),
            "argv": sys.argv,
            "mounts": Path("/proc/self/mounts").read_text(),
            "limits": Path("/proc/self/limits").read_text(),
            "init": Path("/proc/1/comm").read_text().strip(),
            "status": Path("/proc/self/status").read_text(),
            "writable": [name for name in CACHES if os.access(os.environ[name], os.W_OK)],
        }
        (run / "facts.json").write_text(json.dumps(facts))
    write(run / "environment.json", {"schema": 1, "host": "standin", "pid": os.getpid(), "parity": {"model": "tiny"}})
    number = 0
    with (run / "metrics.jsonl").open("a") as metrics:
        while how in ("steady", "deaf") or number < iterations:
            number += 1
            line = {"kind": "train", "iteration": number, "loss": 5.0 / number, "step_time_s": 0.05}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            print(f"iteration {number}", flush=True)
            time.sleep(0.05 if how in ("steady", "deaf") else 0.01)
            if how in ("steady", "deaf") and (run / "eat-memory").exists():
                hoard = [bytearray(os.urandom(1 << 20)) for _ in range(4000)]
                print(len(hoard))
    outcome(run, "succeeded", "", 0)
    held.close()
    return 0


def outcome(run, verdict, cause, code):
    if not (run / "outcome.json").exists():
        write(run / "outcome.json", {"schema": 1, "verdict": verdict, "cause": cause, "exit_code": code})


def write(path, content):
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content))
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
