"""The table of ends: one answer whoever asks it, be it by Slurm's state, a signal or a printed line."""

import signal

import pytest

from pretraining.record import ends
from pretraining.record.run_folder import Verdict


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("OUT_OF_MEMORY", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0."),
        ("TIMEOUT", "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T07:00:00 DUE TO TIME LIMIT ***"),
        ("PREEMPTED", "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T07:00:00 DUE TO PREEMPTION ***"),
        ("NODE_FAIL", "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T07:00:00 DUE TO NODE FAILURE ***"),
        ("CANCELLED", "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T07:00:00 ***"),
    ],
)
def test_a_state_of_slurm_is_the_end_that_its_log_tells(state: str, line: str) -> None:
    told = ends.printed(line)
    assert told is not None and told[0] is ends.BY_STATE[state]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT", "COMPLETING"])
def test_states_of_a_job_that_goes_on_are_no_ends(state: str) -> None:
    assert state not in ends.BY_STATE


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("exitcode  : -11 (pid: 42)", signal.SIGSEGV),
        ("Exited with exit code 139", signal.SIGSEGV),
        ("[n1:77:0:78] Caught signal 11 (Segmentation fault)", signal.SIGSEGV),
        ("srun: error: n1: task 3: Segmentation fault (core dumped)", signal.SIGSEGV),
        ("Fatal Python error: Segmentation fault", signal.SIGSEGV),
        ("Command '['python']' died with <Signals.SIGSEGV: 11>.", signal.SIGSEGV),
        ("Container exited. Exit code is 137", signal.SIGKILL),
    ],
)
def test_a_signal_is_one_end_however_it_is_told(line: str, number: int) -> None:
    assert ends.signalled(line) == ends.by_signal(number)


@pytest.mark.parametrize(
    "line", ["exit_signal: <Signals.SIGTERM: 15>", "exit code: 1", "exitcode: -99", "signal 9 mask"]
)
def test_what_names_a_signal_and_tells_no_end(line: str) -> None:
    assert ends.signalled(line) is None


@pytest.mark.parametrize(
    ("exception", "verdict"),
    [
        ("RuntimeError: CUDA error: out of memory", Verdict.OUT_OF_MEMORY),
        ("RuntimeError: found NaN in local grad norm for bucket #0", Verdict.DIVERGED),
        ("KeyboardInterrupt", Verdict.INTERRUPTED),
        ("ValueError: anything else", Verdict.FAILED),
    ],
)
def test_exceptions(exception: str, verdict: Verdict) -> None:
    assert ends.raised(exception)[0].verdict is verdict
