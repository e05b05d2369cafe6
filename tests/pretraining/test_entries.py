"""What the scripts in assets/ load before they know what is asked of them: a wrong flag must cost no seconds."""

import signal
import subprocess
import sys

import pytest

SCRIPTS = ("pretrain_llama", "show_config", "prepare_data", "cluster_node", "selfcheck")
HEAVY = {"torch", "numba", "triton", "transformers", "megatron", "transformer_engine"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_loads_nothing_heavy_by_itself(in_python, script: str) -> None:
    loaded = in_python(f"""
        import sys
        import {script}
        answer = sorted({{name.split(".")[0] for name in sys.modules}})
    """)
    assert script in loaded
    assert HEAVY & set(loaded) == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_before_a_script_can_say_so_leaves_no_traceback(environment, script: str) -> None:
    code = f"import {script}, sys; raise {{'interrupt': KeyboardInterrupt, 'fault': ValueError}}[sys.argv[1]]"
    interrupt, fault = (
        subprocess.run([sys.executable, "-c", code, how], env=environment(), capture_output=True, text=True)
        for how in ("interrupt", "fault")
    )
    assert (interrupt.returncode, interrupt.stdout + interrupt.stderr) == (-signal.SIGINT, "")  # to a shell 130
    assert fault.returncode == 1 and fault.stderr.startswith("Traceback") and "ValueError" in fault.stderr


@pytest.mark.parametrize("script", ["pretrain_llama", "show_config", "prepare_data"])
def test_threads_wait_without_spinning(environment, script: str) -> None:
    """OpenMP itself says what it took from the environment, when torch loads it."""
    code = f"import {script}, torch"
    given = environment(OMP_DISPLAY_ENV="TRUE")
    given.pop("OMP_WAIT_POLICY", None)
    said = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True).stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said


def test_who_wants_them_to_spin_says_so(environment) -> None:
    code = "import os, pretrain_llama; print(os.environ['OMP_WAIT_POLICY'])"
    given = environment(OMP_WAIT_POLICY="ACTIVE")
    assert subprocess.check_output([sys.executable, "-c", code], env=given, text=True) == "ACTIVE\n"


def test_a_wrong_flag_is_refused_before_anything_heavy_is_loaded(in_python) -> None:
    code, loaded = in_python(
        """
        import sys
        import pretrain_llama
        answer = [pretrain_llama.main(), sorted({name.split(".")[0] for name in sys.modules})]
        """,
        "--model=tiny", "--bf16-tail-layers=9",
    )  # fmt: skip
    assert code == 2
    assert HEAVY & set(loaded) == set()
