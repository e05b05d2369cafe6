"""Stands in for assets/pretrain_llama.py where only the launcher is tested: it writes a record, and trains nothing.

FAKE says how it ends: "" as told by its flags, "slow" not by itself, "stubborn" neither by SIGINT, "killed" by
SIGKILL, "early" before it has a log, "refused" before that and with torch.distributed.run's words after its own,
"diverged", "disk" on a full disk that takes no outcome, "odd" with lines that a reader must bear.
FAKE_ONLY names the one precision that does so, FAKE_SWITCH the ingredient that is off where it does so, FAKE_LOSS, as
{"nvfp4 1234": 1.01}, what to multiply losses with by precision and seed.
"""

import json
import os
import signal
import sys
import time

from pretraining.record import code_state, run_folder
from pretraining.request import flags as training_flags
from pretraining.request import settings
from pretraining.run import ending

how = os.environ.get("FAKE", "")
if how == "early":
    print("a warning of no interest\nImportError: libnothing.so: cannot open shared object file\n\n", flush=True)
    sys.exit(3)
if how == "refused":
    print("pretrain_llama.py: no GPU was found\nTraceback (most recent call last):\n  File x\nRoot Cause:", flush=True)
    sys.exit(1)

args = training_flags.parser("fake").parse_args()
chosen = settings.resolve(args, on_gpu=False, processes=1)
folder, precision = chosen.run_dir, chosen.precision.name
if os.environ.get("FAKE_ONLY", precision) != precision:
    how = ""
if "FAKE_SWITCH" in os.environ and getattr(chosen.nvfp4, os.environ["FAKE_SWITCH"], True):
    how = ""
scale = json.loads(os.environ.get("FAKE_LOSS", "{}")).get(f"{precision} {chosen.seed}", 1.0)
held = ending.claim_run_dir(chosen)
(folder / run_folder.LOG).write_text("fake\n")
if how == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end(verdict: run_folder.Verdict, cause: str, code: int) -> None:
    run_folder.write_outcome(
        folder, verdict, cause=cause, exit_code=code,
        details={"peak_memory": {"bytes": 10**9, "kind": "resident set size of the process"}},
    )  # fmt: skip
    sys.exit(code)


facts = {
    "model": chosen.model.name, "train_iters": chosen.train_iters, "sequence_length": chosen.sequence_length,
    "global_batch_size": chosen.global_batch_size, "start_iteration": 0, "seed": chosen.seed,
    "device": os.environ.get("FAKE_DEVICE", "cpu"),
}  # fmt: skip
tail = chosen.bf16_tail_layers
run_folder.write_json(
    folder / run_folder.ENVIRONMENT,
    {
        "schema": 1, "mock_data": False, "tokens_per_step": chosen.tokens_per_step, "flops_per_token": 5e6,
        "precision": {"name": precision, "arithmetic": "emulated", "bf16_head_layers": 0, "bf16_tail_layers": tail},
        "text": {"bigram_entropy": 2.4}, "parity": facts,
        "context": {"code": os.environ.get("FAKE_CODE", code_state.digest())},
    },
)  # fmt: skip
writer, began = run_folder.MetricsWriter(folder / run_folder.METRICS), time.time()
iterations = chosen.train_iters
try:
    for iteration in range(1, 10**6 if how in ("slow", "stubborn") else iterations + 1):
        writer.write({
            "kind": "train", "iteration": iteration, "loss": scale * (5.0 - iteration / 1000), "step_time_s": 0.1,
            "grad_norm": 1.0, "learning_rate": 1e-3, "skipped": False, "finite": True, "time": began + 0.1 * iteration,
        })  # fmt: skip
        time.sleep(float(os.environ.get("FAKE_STEP", "0.1")))
        if how == "killed" and iteration == 2:
            if os.fork() == 0:  # a helper, which never hears of it
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "odd" and iteration == 2:
            writer.write({"kind": "eval", "split": "validation", "iteration": 2, "loss": None})
            with (folder / run_folder.METRICS).open("a") as file:
                file.write('{"kind": "train", "iter\n\0\n[]\n5\n{"kind": "train"}\n{"kind": "eval", "split": []}\n')
        if how == "diverged" and iteration == 2:
            end(run_folder.Verdict.DIVERGED, "the loss is nan at iteration 2: try a lower learning rate", 1)
        if how == "disk" and iteration == 2:
            print("pretrain_llama.py: failed: the disk is full: free some space", flush=True)
            sys.exit(1)
except KeyboardInterrupt:
    end(run_folder.Verdict.INTERRUPTED, "interrupted by SIGINT", 130)
writer.write({"kind": "eval", "split": "validation", "iteration": iterations, "loss": 2.5, "time": time.time()})
end(run_folder.Verdict.SUCCEEDED, "", 0)
