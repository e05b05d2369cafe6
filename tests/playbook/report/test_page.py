"""`report.html` without a browser: whole, self-contained, escaped, accessible, and the same every time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import cases
import numpy as np
import pytest

from playbook import report
from playbook.report import canvas, plots
from playbook.report import page as page_module

LARGEST = 3_000_000  # bytes, whatever the length of the runs
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects what a page holds; fails where its tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                self.links.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(folder: Path) -> tuple[str, Checker]:
    text = (folder / report.PAGE).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return text, checker


@pytest.mark.parametrize("name", cases.CASES)
def test_a_page_is_whole_and_needs_no_network(
    written: Callable[[str], Path], case: Callable[[str], cases.Case], name: str
) -> None:
    text, found = page(written(name))
    assert len(text.encode()) < LARGEST
    assert not found.tags["script"] and not found.tags["link"] and not found.tags["img"] and not found.handlers
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.findall(r"@import|url\((?!#)", text)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(found.ids)
    assert escape(case(name)[0].verdict) in text.replace("&#39;", "&#x27;")


@pytest.mark.parametrize("name", cases.CASES)
def test_every_plot_is_described_and_takes_its_colours_from_the_page(written: Callable[[str], Path], name: str) -> None:
    text, found = page(written(name))
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == found.tags["figure"] == len(list((written(name) / report.PLOTS).glob("*.png"))) >= 4
    for drawing in drawings:
        assert re.search(r'role="img" aria-labelledby="([\w-]+)-title \1-text"', drawing)
        assert re.search(r"<title id=[^>]*>[^<]+</title><desc id=[^>]*>[^<]+</desc>", drawing)
        assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r">[^<]*<", "><", drawing)), "a colour no scheme knows"
        assert "font-family" not in drawing


def test_what_a_record_says_is_never_markup(written: Callable[[str], Path]) -> None:
    text, found = page(written("forced"))
    assert "<script>alert(1)</script>" in "".join(found.text)
    assert "<script" not in text and "<img" not in text
    assert not found.handlers
    markdown = (written("forced") / report.MARKDOWN).read_text()
    assert "<script" not in markdown.replace("\\<", "") and "<img" not in markdown.replace("\\<", "")


def test_a_forced_comparison_says_so_and_in_what_the_runs_differ(written: Callable[[str], Path]) -> None:
    text, _ = page(written("forced"))
    assert text.index("Forced: these runs did not do the same work") < text.index("Figures</h2>")
    assert re.search(r"global_batch_size</th><td><small>A</small>64</td><td><small>B</small>32</td>", text)
    assert "Loss gap" not in text  # an iteration of one holds more tokens than one of the other
    assert "The axis is tokens" in text
    assert "Forced" not in page(written("gb300"))[0]


def test_an_emulation_has_no_speed_up(written: Callable[[str], Path]) -> None:
    text, _ = page(written("cpu"))
    assert "an emulation shows no speed" in text and "Cost of emulation" in text
    assert "Speed-up" not in text and "TFLOP" not in text


def test_what_is_not_known_is_said_or_left_out(written: Callable[[str], Path]) -> None:
    text, _ = page(written("raw-logs"))
    assert "Memory and power" not in text and "Reproduce" not in text and "Peak memory" not in text
    assert "raw log bf16.log" in text and "/srv/" not in text
    assert 'class="none">not known' in page(written("three-arms"))[0]


def test_the_environment_shows_what_differs(written: Callable[[str], Path]) -> None:
    text, _ = page(written("gb300"))
    assert re.search(r'<tr><th scope="row">torch</th><td colspan="2">2.11.0</td></tr>', text)
    assert re.search(r'<tr class="differs"><th scope="row">name</th><td>bf16</td><td>nvfp4</td></tr>', text)
    assert "<pre>make compare REPEAT=3</pre>" in text


def test_emulators_are_told_apart(written: Callable[[str], Path]) -> None:
    text, _ = page(written("emulators"))
    assert re.search(r'<tr class="differs"><th scope="row">emulator</th><td>–</td><td>triton</td><td>reference', text)
    for name in (report.PAGE, report.TABLE, report.MARKDOWN):
        content = (written("emulators") / name).read_text()
        assert "nvfp4, triton-emulated" in content and "nvfp4, reference-emulated" in content, name


def test_long_runs_make_a_small_page_that_hides_no_stall(tmp_path: Path) -> None:
    paths = report.write(*cases.long(200_000), tmp_path)
    text, _ = page(tmp_path)
    assert len(text.encode()) < 400_000
    assert all(path.stat().st_size < 300_000 for path in paths)
    assert re.search(r"Triangles: [\d,]+ steps longer", text) and "under each pixel" in text
    assert ", 199,981 steps" in text  # all that are timed are counted


def test_a_damaged_record_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    (bf16,), (nvfp4,) = cases.on_cpu()[1].values()
    steps, losses = nvfp4.train.column("step_time_s"), nvfp4.train.column("loss")
    steps[[5, 60, 61, 62]] = [np.nan, np.inf, -1.0, 0.0]
    losses[40:] = np.nan
    nvfp4.samples[0]["time"] = nvfp4.samples[3]["process_bytes"] = None
    report.write(*cases.compared([bf16], [nvfp4], reproduce="", force=True), tmp_path)
    text, _ = page(tmp_path)
    assert "not finite from iteration 41" in text and "step times are zero, negative or infinite" in text
    assert ">nan" not in text.lower() and ">inf" not in text.lower()


def test_runs_without_a_loss_have_the_other_plots(tmp_path: Path) -> None:
    groups = list(cases.on_cpu()[1].values())
    for (run,) in groups:
        run.train.column("loss")[:] = np.nan
    report.write(*cases.compared(*groups, reproduce="", force=True), tmp_path)
    text, _ = page(tmp_path)
    assert "<h2>Loss</h2>" not in text and "<h2>Step times</h2>" in text


def test_many_arms_are_told_apart() -> None:
    groups = [[cases.make_run("nvfp4", 5.4, iterations=12, seed=seed)] for seed in range(8)]
    result, runs = cases.compared(*groups, reproduce="")
    looks = canvas.looks(result)
    assert len({(look.colour, str(look.dashes)) for look in looks}) == 8
    text = page_module.render(result, runs, {}, [])
    colours = set(re.findall(r"--arm: var\(--(arm-\d)\)", text))
    assert len(colours) == 6 and all(text.count(f"--{colour}: #") == 3 for colour in colours)  # light, dark, print


def test_the_same_comparison_gives_the_same_bytes(written: Callable[[str], Path], tmp_path: Path) -> None:
    first = written("three-arms")
    paths = report.write(*cases.three_arms(), tmp_path)
    assert len(paths) == len([path for path in first.rglob("*") if path.is_file()]) == 11
    for path in paths:
        assert path.read_bytes() == (first / path.relative_to(tmp_path)).read_bytes(), path.name


def test_the_users_own_matplotlib_settings_do_not_matter(
    written: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    report.write(*cases.on_cpu(), tmp_path)
    for path in tmp_path.glob("plots/*.png"):
        assert path.read_bytes() == (written("cpu") / "plots" / path.name).read_bytes()
    assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/project/assets/pretrain_llama.py", "pretrain_llama.py"),
        ("--run-dir=/home/Jane Doe/runs/a/", "--run-dir=a"),
        ("type=bind,source=/home/jane/x,target=/home/jane/x", "type=bind,source=x,target=x"),
        ("nemo_experiments/a", "nemo_experiments/a"),
        ("hf:meta-llama/Llama-3.2-1B", "hf:meta-llama/Llama-3.2-1B"),
        ("/", ""),
    ],
)
def test_a_page_that_is_sent_names_no_folder(text: str, expected: str) -> None:
    assert page_module.folderless(text) == expected


def test_a_cost_and_a_speed_up_have_axes_of_their_own() -> None:
    bf16, fp8 = (cases.make_run(name, 1.6, seed=seed) for seed, name in enumerate(("bf16", "fp8")))
    nvfp4 = cases.make_run("nvfp4", 1.7, seed=3)
    nvfp4.environment["precision"]["arithmetic"] = "emulated"
    result, _ = cases.compared([bf16], [nvfp4], [fp8], reproduce="")
    drawn = {plot.name: plot.title for plot in plots.speed(result, canvas.looks(result))}
    assert drawn == {"speed": "Cost of emulation against A bf16", "speed-up": "Speed-up against A bf16"}


def test_the_sections_lead_from_the_verdict_to_the_environment(written: Callable[[str], Path]) -> None:
    text, _ = page(written("cpu"))
    order = ['class="verdict', "What it rests on</h2>", "Figures</h2>", "Loss</h2>", "Environment</h2>"]
    assert [text.index(each) for each in order] == sorted(text.index(each) for each in order)


def test_the_axis_of_a_gap_is_that_of_its_last_part() -> None:
    (bf16,), (nvfp4,) = cases.on_cpu()[1].values()
    nvfp4.train.column("loss")[:5] *= 6  # a gap of 500 % at first
    result, runs = cases.compared([bf16], [nvfp4], reproduce="")
    plot = plots.loss_gap(result, runs, canvas.looks(result))
    low, high = plot.canvas.axes[0].get_ylim()
    assert -5 < low < 0 < high < 5 and "the first iterations lie beyond it" in plot.caption


def test_on_a_shared_gpu_the_memory_is_the_training_s_and_nothing_of_the_card_is_told() -> None:
    alone, beside = (cases.make_run(name, 9.0, seed=seed) for seed, name in enumerate(("bf16", "nvfp4")))
    for line in beside.samples:
        if line["device"] == 0:
            line["used_bytes"] += 50e9
    result, _ = cases.compared([alone], [beside], reproduce="")
    a, b = result.arms
    assert {a.peak_memory_kind, b.peak_memory_kind} == {"device used by the training"}
    assert b.peak_memory.value == pytest.approx(207.2, abs=0.1)
    assert a.mfu and a.energy_per_step and not (b.mfu or b.energy_per_step or b.joules_per_token or b.mean_power)
    assert any("others used 50.6 GB of its GPU" in said for said in b.runs[0].warnings)
