"""Stands in for torch.distributed.run: one worker, its end reported as the real one does."""

import os
import signal
import subprocess
import sys


def main() -> int:
    script = next(number for number, word in enumerate(sys.argv) if word.endswith("pretrain_llama.py"))
    flags = sys.argv[script + 1 :]
    assets = os.path.dirname(sys.argv[script])
    worker = subprocess.Popen([sys.executable, "-m", "standin_training", *flags], env={**os.environ, "ASSETS": assets})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: worker.send_signal(number))
    code = worker.wait()
    if code < 0:
        print(f"  exitcode  : {code} (pid: {worker.pid})", flush=True)
    return 0 if code == 0 else 1


if __name__ == "__main__":
    print(f"torch.distributed.run as {os.getuid()}:{os.getgid()}", flush=True)
    sys.exit(main())
