"""What overview.md says of a change is enough: a toy of each kind, in a copy, by the files that its row names alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SECTION = (PROJECT / "overview.md").read_text(encoding="utf-8").partition("## How to change it\n")[2]
# What is added: the files that its row names, a new one with NAME in its path.
FILES = {
    name: re.findall(r"`([\w./-]+/[\w.-]+)`", files)
    for name, files in re.findall(
        r"^\| (?!to add|---)(.+?) \| (.+?) \|", SECTION.partition("| to change ")[0], re.MULTILINE
    )
}
RECIPE = "assets/pretraining/request/recipe/nvfp4_recipe.py"
Edits = dict[str, str | tuple[str, str]]


class Copy:
    """The project's code in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("assets", "scripts", "requirements"):
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__"))

    def add(self, what: str, edits: Edits) -> None:
        """Write the toy: a new file's text, or what in an old one is replaced by what. Only files of its row."""
        assert {path.replace("toy", "NAME") for path in edits} == set(FILES[what])
        for path, edit in edits.items():
            file = self.folder / path
            if isinstance(edit, str):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(edit, encoding="utf-8")
            else:
                old, new = edit
                text = file.read_text(encoding="utf-8")
                assert text.count(old) == 1, f"{path}: {old}"
                file.write_text(text.replace(old, new), encoding="utf-8")

    def run(self, environment: Callable[..., dict[str, str]], *words: str) -> str:
        """What a command of the copy prints; its kernels are compiled quickly, as they compute next to nothing."""
        paths = f"{self.folder / 'assets'}:{self.folder / 'scripts'}"
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment(PYTHONPATH=paths, NUMBA_OPT="0", NUMBA_CACHE_DIR=str(self.folder / "numba")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """One for all toys: they do not meet."""
    return Copy(tmp_path_factory.mktemp("copy"))


def test_the_page_is_short_and_names_what_is_there() -> None:
    assert len(SECTION.splitlines()) <= 60
    assert all(1 <= len(files) <= 4 for files in FILES.values())
    for path in (path for files in FILES.values() for path in files if "NAME" not in path):
        assert (PROJECT / path).is_file(), path


def test_a_model_is_a_row_and_its_config(copy: Copy, environment) -> None:
    tiny = json.loads((PROJECT / "assets/models/tiny/config.json").read_text())
    row = 'Model("toy", "llama32_1b_pretrain_config", on_cpu=True, train_iters=2, warmup_iters=1, global_batch_size=4,'
    row += " micro_batch_size=4, sequence_length=64, data=PYTHON_STDLIB, learning_rate=(1e-3, 1e-4)),\n        "
    copy.add(
        "a model",
        {
            "assets/pretraining/request/models.py": ('Model("tiny",', f'{row}Model("tiny",'),
            "assets/models/toy/config.json": json.dumps(tiny | {"num_hidden_layers": 2}),
        },
    )
    assert re.search(r"^ *toy ", copy.run(environment, "scripts/run.py", "models"), re.MULTILINE)
    said = copy.run(environment, "scripts/run.py", "bf16", "--model", "toy", "--runtime", "container", "--dry-run")
    assert "toy's default" in said
    copy.run(environment, "assets/pretrain_llama.py", "--model", "toy", "--precision", "nvfp4", "--run-dir", "toy")
    outcome = json.loads((copy.folder / "toy" / "outcome.json").read_text())
    assert outcome["verdict"] == "succeeded"


def test_a_precision_is_a_row(copy: Copy, environment) -> None:
    row = 'Precision("toy", "bf16_with_fp8_delayed_scaling_mixed", bf16_tail=2, capabilities=((9, 0),)),\n        '
    copy.add(
        "a precision",
        {
            "assets/pretraining/request/precisions.py": (
                'Precision(\n            "mxfp8"',
                f'{row}Precision(\n            "mxfp8"',
            )
        },
    )
    assert re.search(r"^ *toy .*last 2", copy.run(environment, "scripts/run.py", "precisions"), re.MULTILINE)
    said = copy.run(environment, "scripts/run.py", "train", "--precision", "toy", "--runtime", "container", "--dry-run")
    assert "last 2 of 32 layers" in said and "--precision toy" in said
    built = copy.run(environment, "assets/show_config.py", "--gpu", "--model", "llama31-8b", "--precision", "toy")
    assert "fp8_recipe: delayed" in built and "num_layers_at_end_in_bf16: 2" in built
    code = "from playbook.cli.make import help_pages; print('\\n'.join(help_pages.everything()))"
    assert "toy" in copy.run(environment, "-c", code)


def test_a_variant_is_a_word_and_its_arithmetic_three_times(copy: Copy, environment) -> None:
    """One that clips a matrix first."""
    recipe = (copy.folder / RECIPE).read_text(encoding="utf-8")
    for old, new in {
        "    stochastic: bool = False\n": "    stochastic: bool = False\n    toy: bool = False\n",
        "    def rounding(self": """    toy: str = _word("toy", {"off": "off", "on": "on"}, title="the toy")

    def rounding(self, tensor: str) -> Rounding:
        return dataclasses.replace(self._rounding(tensor), toy=self.toy == "on")

    def _rounding(self""",
    }.items():
        assert recipe.count(old) == 1
        recipe = recipe.replace(old, new)
    clip = "x = x.clamp(-1, 1) if how.toy else x\n    "
    copy.add(
        "an NVFP4 variant",
        {
            RECIPE: recipe,
            **{
                f"assets/pretraining/numerics/{name}.py": (first, clip + first)
                for name, first in {
                    "nvfp4": "x = (random_hadamard_transform(x)",
                    "nvfp4_numba": "source = x.detach().float()",
                    "nvfp4_triton": "x = x.bfloat16().contiguous()",
                }.items()
            },
        },
    )
    words = ("--nvfp4", "toy=on", "--runtime", "container", "--dry-run")
    assert "toy=on" in copy.run(environment, "scripts/run.py", "nvfp4", *words)
    code = """
import torch
from pretraining.numerics import nvfp4, nvfp4_numba, nvfp4_triton
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe, words_in
how = Nvfp4Recipe.of(words_in("toy=on")).rounding("input")
assert how.toy and not Nvfp4Recipe().rounding("input").toy
x = 3 * torch.randn(16, 64, dtype=torch.bfloat16)
for given in (x, x.float()):
    wanted = nvfp4.quantize(x, how.of_rows)
    assert wanted.amax == 1
    assert torch.equal(nvfp4_numba.quantize(given, how).values, wanted.values)
    assert torch.equal(nvfp4_triton.quantize(given, how, columns=False)[0].values.float(), wanted.values)
"""
    copy.run(lambda **more: environment(TRITON_INTERPRET="1", **more), "-c", code)


def test_a_release_is_a_difference_and_its_pins(copy: Copy, environment) -> None:
    """One that has moved the evaluation's fields into a section of another name."""
    old = '    return "validation" if '
    copy.add(
        "a Megatron-Bridge release",
        {
            "assets/pretraining/megatron/compat.py": (
                old,
                f'    if "toy" in ConfigContainer.__dataclass_fields__:\n        return "toy"\n{old}',
            ),
            "requirements/versions/toy.txt": "megatron-bridge==9.0.0\n",
        },
    )
    shutil.copytree(PROJECT / "tests" / "versions", copy.folder / "tests" / "versions")
    tested = "import sys; sys.path.append('tests/versions'); import version_environments as v; print(v.NEWER)"
    assert "'toy'" in copy.run(environment, "-c", tested)
    code = """
import sys
from types import SimpleNamespace
toy = SimpleNamespace(ConfigContainer=SimpleNamespace(__dataclass_fields__={"toy": None}))
sys.modules["megatron.bridge.training.config"] = toy
from pretraining.megatron import compat
built = SimpleNamespace(toy=SimpleNamespace())
compat.set_evaluation(built, 8, 100)
print(built.toy)
"""
    assert "eval_iters=8" in copy.run(environment, "-c", code)


def test_a_figure_is_a_row(copy: Copy, environment) -> None:
    row = 'Metric("toy", "Toys", "toys", "toys", lambda of: Figure(float(len(of.times)), "")),\n    '
    first = 'Metric("step_time"'
    copy.add("a figure", {"scripts/playbook/compare/figures.py": (first, row + first)})
    runs = [str(PROJECT / "assets/results/h200-launched" / name) for name in ("bf16", "bf16-2")]
    printed = copy.run(environment, "scripts/compare.py", *runs, "--json", "compared")
    assert re.search(r"^toys .*10", printed, re.MULTILINE)
    for file in ("report.html", "comparison.md", "comparison.csv", "comparison.json"):
        assert "toys" in (copy.folder / "compared" / file).read_text(encoding="utf-8"), file


def test_a_runtime_is_a_name_and_a_command(copy: Copy, environment) -> None:
    """One that puts a command before the local runtime's, as Apptainer would."""
    last = "return [*distributed_run(python, processes), SCRIPT, *flags]"
    copy.add(
        "a runtime",
        {
            "scripts/playbook/plan/place.py": ('"local", "cpu")', '"local", "cpu", "toy")'),
            "scripts/playbook/launch/local.py": (
                last,
                last.replace("[*", '[*["toy", "exec"][: 2 * (runtime == "toy")], *'),
            ),
            "scripts/playbook/cli/make/options.py": ("container, local or cpu", "container, local, cpu or toy"),
        },
    )
    said = copy.run(environment, "scripts/run.py", "bf16", "--runtime", "toy", "--dry-run")
    assert re.search(r"runtime +toy +asked for", said)
    assert re.search(r"toy exec \S*python\S* -m torch\.distributed\.run", said), said
