"""Logs as schedulers, terminals and editors leave them: damage that changes nothing."""

from pathlib import Path

import pytest

from playbook.record.megatron_log import read_log
from pretraining.record.run_folder import Verdict

LOGS = Path(__file__).parents[2] / "logs"
FP8 = LOGS / "h200-fp8-0.4.0.log"
EMULATED = LOGS / "h200-nvfp4-emulated-0.4.0.log"
OUT_OF_MEMORY = LOGS / "h200-fp8-8b-out-of-memory-0.4.0.log"
CPU = LOGS / "cpu-fp32-0.3.1.log"


def spoil_crlf(log: bytes) -> bytes:
    return log.replace(b"\n", b"\r\n")


def spoil_ranks(log: bytes) -> bytes:
    return b"".join(b"[rank0]: " + line for line in log.splitlines(keepends=True))


def spoil_srun(log: bytes) -> bytes:
    return b"".join(b"0: " + line for line in log.splitlines(keepends=True))


def spoil_colours(log: bytes) -> bytes:
    return b"".join(b"\x1b[32m" + line[:-1] + b"\x1b[0m\n" for line in log.splitlines(keepends=True))


def spoil_colour_inside(log: bytes) -> bytes:
    return log.replace(b" | elapsed", b" |\x1b[1m elapsed").replace(b"seq", b"\x1b[0mseq")


def spoil_nul(log: bytes) -> bytes:
    return log.replace(b"consumed", b"con\x00sumed").replace(b"  lr", b"\x00  lr")


def spoil_utf8(log: bytes) -> bytes:
    return log.replace(b"\n", b"\n\xff\xfe\xc3 broken\n").replace(b"[after", b"\xe2\x82[after")


def spoil_glued(log: bytes) -> bytes:
    return log.replace(b"nan iterations:   0 |\n", b"nan iterations:   0 |Deleting something[rank3]: W1122 warning\n")


def spoil_glued_before(log: bytes) -> bytes:
    return log.replace(b" [2026-", b"UserWarning: something happened and was printed without a line end [2026-")


def spoil_two_on_a_line(log: bytes) -> bytes:
    return log.replace(b"nan iterations:   0 |\n", b"nan iterations:   0 |").replace(b"GPU\n", b"GPU")


def spoil_interleaved(log: bytes) -> bytes:
    return log.replace(b"\n", b"\n[rank1]: W1122 07:08:39.5 NCCL: something (function operator())\n")


def spoil_progress(log: bytes) -> bytes:
    return log.replace(b"\n [20", b"\n 10%|#   \r 20%|##  \r [20")


def spoil_twice(log: bytes) -> bytes:
    return b"".join(
        line * 2 if b" iteration " in line and b"consumed" in line else line for line in log.splitlines(True)
    )


def spoil_no_last_newline(log: bytes) -> bytes:
    return log.rstrip(b"\n")


@pytest.mark.parametrize("spoil", [value for name, value in globals().items() if name.startswith("spoil_")])
@pytest.mark.parametrize("log", [FP8, EMULATED, CPU])
def test_damage_changes_nothing(read, spoil, log: Path) -> None:
    whole = read_log(log)
    spoiled = spoil(log.read_bytes())
    assert spoiled != log.read_bytes()
    run = read(spoiled)
    assert run.train == whole.train
    assert run.parity == whole.parity
    assert run.precision == whole.precision
    assert run.outcome == whole.outcome


def test_the_error_is_found_behind_every_prefix(read) -> None:
    for spoil in (spoil_crlf, spoil_colours, spoil_nul, spoil_utf8, spoil_interleaved):
        run = read(spoil(OUT_OF_MEMORY.read_bytes()))
        assert run.verdict is Verdict.OUT_OF_MEMORY, spoil.__name__
        assert "224.00 MiB" in run.outcome["cause"]
