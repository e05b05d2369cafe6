"""The published results: records in `assets/results`, and everything that is made from them, byte for byte.

    assets/results/
        README.md                   the list of comparisons, between its marks
        stacks.md                   what ran with each Megatron-Bridge and Transformer Engine, likewise
        NAME/
            README.md               what was found, in words, with the tables and pictures between its marks
            about.json              {"command": what made the runs}, where that is known; of an ablation "ablation" too
            bf16/ nvfp4/ bf16-2/    run folders, see `publishable.py` for what is left of them
            comparison.json         made from the runs, where two or more of them succeeded; of an ablation
            ablation.json           in its place
            pictures/*.svg          made from the runs

A page shows one of these, a comparison, an ablation or the profile of a run between `<!-- results: NAME -->` and
`<!-- end of results -->`; `make results` fills that in, and leaves the rest of the page alone. Nothing that is made
holds a clock, a path or a name of the machine that made it.
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playbook import PROJECT, report
from playbook.campaign import ablation, ablation_file
from playbook.campaign.ablation import Ablation
from playbook.common import file_sets
from playbook.common.failures import Failure
from playbook.compare import comparison, saved
from playbook.compare.model import Arm, Comparison
from playbook.publish import publishable
from playbook.record import loading
from playbook.report import terminal
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Run, Verdict

if TYPE_CHECKING:
    from playbook.report.canvas import Plot

RESULTS = Path("assets/results")
ABOUT = "about.json"
PICTURES = "pictures"
# Of the report's pictures, those that the pages show.
SHOWN = ("speed", "speed-up", "cost-of-emulation", "step-times", "loss")
ALL, STACKS = "all", "stacks"  # the list of all comparisons, and what ran with each stack, as a mark names them
TESTED = "test-gpu-*.txt"  # what `make test-gpu` printed, and on what
_MARK = re.compile(r"^<!-- results: ", re.MULTILINE)
_MARKED = re.compile(rf"({_MARK.pattern}(\S+) -->\n).*?^(<!-- end of results -->)$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_DIGITS = 9  # significant ones of a figure: what another processor's order of additions does not reach


@dataclass(frozen=True)
class Published:
    """One folder of records.

    Attributes:
        runs: all of them, in the order in which they ran.
        groups: the succeeded ones by arm's name; empty where fewer than two succeeded.
        result: their comparison or ablation, or None; its `reproduce` is `command`.
        command: what made the runs; "" where not known.
    """

    name: str
    runs: list[Run]
    groups: dict[str, Sequence[Run]]
    result: Comparison | Ablation | None
    command: str = ""

    @property
    def profile(self) -> Run | None:
        """The run, where it is one that was profiled."""
        (run, *others) = self.runs
        return run if not others and (run.folder / run_folder.PROFILE).is_file() else None


def read(folder: Path) -> Published:
    """Read a folder of records and compare what succeeded, or make its ablation anew.

    Raises UsageError where it holds no run, or one that cannot be read, and NotComparable.
    """
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and run_folder.holds_run(path)]
    if not found:
        raise UsageError(f"{folder} holds no run; `make results ADD=... TO={folder.name}` puts some there")
    runs = comparison.in_order(loading.load_all(found))
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8")) if (folder / ABOUT).exists() else {}
    groups, result = _result(runs, about)
    return Published(folder.name, runs, groups, result, about.get("command", ""))


def _result(
    runs: Sequence[Run], about: dict[str, Any]
) -> tuple[dict[str, Sequence[Run]], Comparison | Ablation | None]:
    """What the runs come to, without a machine's clock and paths; of a comparison, the runs of each arm by its name."""
    command = about.get("command", "")
    if about.get("ablation"):
        return {}, ablation.of_runs(runs, created=_ended(runs), reproduce=command)
    succeeded = [run for run in runs if run.verdict is Verdict.SUCCEEDED]
    if len(succeeded) < 2:
        return {}, None
    groups = comparison.group(succeeded)
    result = comparison.compare(groups, reproduce=command)

    def moved(arm: Arm) -> Arm:
        return replace(arm, runs=[replace(run, path=Path(run.path).name) for run in arm.runs])

    arms = [moved(arm) for arm in result.arms]
    return comparison.named(groups), replace(result, created=_ended(succeeded), arms=arms)


def _ended(runs: Sequence[Run]) -> str:
    return max((run.outcome.get("ended") or "" for run in runs), default="")


def made_from(project: Path) -> dict[Path, bytes]:
    """Every file that is made from the records of the project in this folder, with its content.

    Raises as `read`, and Failure where a page's mark names nothing that can be shown, or has no end.
    """
    published = {path.name: read(path) for path in sorted((project / RESULTS).glob("[!.]*/"))}
    files: dict[Path, bytes] = {}
    pictures: dict[str, list[Plot]] = {}
    for name, each in published.items():
        folder = project / RESULTS / name
        pictures[name], drawn = _pictures(each)
        files |= {folder / path: svg.encode() for path, svg in drawn.items()}
        if each.result:
            is_ablation = isinstance(each.result, Ablation)
            files[folder / (ablation_file if is_ablation else saved).FILE] = _json(each.result)
    for page in pages_of(project):
        files[page] = _filled(page, published, pictures, project).encode()
    return files


def pages_of(project: Path) -> list[Path]:
    """The pages that may have marks: those beside the records, and what a folder says of its own."""
    return [*sorted((project / RESULTS).glob("*.md")), *sorted((project / RESULTS).glob("[!.]*/README.md"))]


def _pictures(published: Published) -> tuple[list[Plot], dict[str, str]]:
    """What the pages show of the result, none where there is none; and the files of it, by path in the folder."""
    if not published.result:
        return [], {}
    report.prepare_matplotlib()
    from playbook.campaign import ablation_report
    from playbook.report import plots, svg

    with svg.style():
        if isinstance(published.result, Ablation):
            drawn = [ablation_report.picture(published.result)]
        else:
            drawn = [plot for plot in plots.draw(published.result, published.groups) if plot.name in SHOWN]
        elements = [svg.svg(plot.canvas, plot.name, plot.title, plot.description) for plot in drawn]
    files = map(svg.as_file, elements)
    return drawn, {f"{PICTURES}/{plot.name}.svg": file for plot, file in zip(drawn, files, strict=True)}


def _filled(page: Path, published: dict[str, Published], pictures: dict[str, list[Plot]], project: Path) -> str:
    """The page, with what belongs between its marks."""
    report.prepare_matplotlib()
    from playbook.publish import pages, stacks

    def fill(found: re.Match[str]) -> str:
        name, records = found[2], f"{RESULTS / found[2]}/"
        if name == ALL:
            inside = pages.listing([(each.name, each.runs, each.result, each.command) for each in published.values()])
        elif name == STACKS:
            tested = sorted((project / RESULTS).glob(TESTED))
            inside = stacks.table([run for each in published.values() for run in each.runs], tested)
        elif name in published and (run := published[name].profile):
            command = published[name].command
            inside = pages.profiled(run, records=records, command=command)
        elif name in published and (result := published[name].result):
            folder = os.path.relpath(project / RESULTS / name / PICTURES, page.parent)
            shown = [(plot.title, f"{folder}/{plot.name}.svg") for plot in pictures[name]]
            if isinstance(result, Ablation):
                inside = pages.ablated(result, published[name].runs, records=records, pictures=shown)
            else:
                inside = pages.section(result, published[name].groups, records=records, pictures=shown)
        else:
            there = ", ".join(name for name, each in published.items() if each.result or each.profile)
            raise Failure(f"{page}: {RESULTS / name} holds nothing to show; there are: {there}")
        return f"{found[1]}\n{inside}\n\n{found[3]}"

    text = page.read_text(encoding="utf-8")
    if len(_MARK.findall(text)) != len(_MARKED.findall(text)):
        raise Failure(f"{page}: a mark <!-- results: NAME --> has no <!-- end of results --> below it")
    return _MARKED.sub(fill, text)


def _json(result: Comparison | Ablation) -> bytes:
    content = {"kind": result.kind, "schema": result.schema} | asdict(result, dict_factory=saved.flat)
    return (json.dumps(_rounded(content), indent=2, default=str) + "\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def rebuild(project: Path) -> list[Path]:
    """Write what is made from the records, and remove what no longer is. Returns the paths that changed.

    Raises as `made_from`, before anything is written, and OSError.
    """
    files = made_from(project)
    changed = {path: text for path, text in files.items() if not path.is_file() or path.read_bytes() != text}
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
    file_sets.write_files(changed)
    made = (f"[!.]*/{PICTURES}/*.svg", f"[!.]*/{saved.FILE}", f"[!.]*/{ablation_file.FILE}")
    stale = [path for each in made for path in (project / RESULTS).glob(each) if path not in files]
    for path in stale:
        path.unlink()
    return [*changed, *stale]


def add(project: Path, sources: Sequence[Path], name: str) -> list[Path]:
    """Publish runs: their listed fields, in `assets/results/NAME`. Returns the new folders.

    A run that is there already is left out. The runs are compared first, with those that are there.

    Args:
        sources: run folders, or folders of comparisons, which stand for their runs and how they were made; or that of
            an ablation alone.

    Raises UsageError (a name that is none, a source that is neither, a run that has not ended) and NotComparable before
    anything is written, and OSError.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"TO={name!r} names no folder of {RESULTS}: small letters, digits, dots and hyphens")
    folder = project / RESULTS / name
    paths, about = _sources(sources)
    if about.get("ablation") and (len(sources) > 1 or folder.exists()):
        raise UsageError("an ablation is published by itself, in a folder that is not there yet")
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=project / RESULTS) as beside:
        there = [path for path in folder.glob("*/") if run_folder.holds_run(path)]
        copies = []
        for at, run in enumerate(comparison.in_order(loading.load_all(paths))):
            if run.verdict is Verdict.INCOMPLETE:
                raise UsageError(f"{run.folder} has no outcome: it still runs, or its end was not seen")
            copy = Path(beside) / str(at)
            publishable.copy_run(run.folder, copy)
            if not any(_same(copy, other) for other in (*there, *copies)):
                copies.append(copy)
        _result(comparison.in_order(loading.load_all([*there, *copies])), about)
        folder.mkdir(exist_ok=True)
        added = [copy.rename(_free(folder, loading.load(copy))) for copy in copies]
        if about and not (folder / ABOUT).exists():
            run_folder.write_json(folder / ABOUT, about)
    return added


def _sources(given: Sequence[Path]) -> tuple[list[Path], dict[str, Any]]:
    """The run folders meant, and what made them where a comparison or an ablation says so, as `ABOUT` has it."""
    found: list[Path] = []
    about: dict[str, Any] = {}
    for path in given:
        path = loading.named(path)
        if (path / ablation_file.FILE).exists():
            content = json.loads((path / ablation_file.FILE).read_text(encoding="utf-8"))
            about["ablation"] = True
            paths = [path.parent / run["run"] for row in content["rows"] for run in row["runs"]]
        elif saved.is_comparison(path / saved.FILE):
            content = saved.read(path)
            paths = [Path(run["path"]) for arm in content["arms"] for run in arm["runs"]]
            # Copied here from the machine that trained, they lie beside their comparison, as they did there.
            paths = [each if each.is_dir() else path.parent / each.name for each in paths]
        else:
            found.append(path)
            continue
        found += paths
        if command := publishable.command(content["reproduce"]):
            about.setdefault("command", command)
    for path in found:
        if not (path.is_dir() and run_folder.holds_run(path)):
            raise UsageError(f"{path} is not a run folder; only run folders can be published")
    return found, about


def _same(a: Path, b: Path) -> bool:
    files = [run_folder.ENVIRONMENT, run_folder.METRICS + run_folder.PACKED]
    same, _, _ = filecmp.cmpfiles(a, b, files, shallow=False)
    return same == files


def _free(folder: Path, run: Run) -> Path:
    """The next name for such a run: "nvfp4", "nvfp4-2"."""
    precision = run.precision.get("name") or "run"
    emulated = run.precision.get("emulator") is not None
    stem = f"{precision}-emulated" if emulated else precision
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(folder / name for name in names if not (folder / name).exists())


def main(arguments: list[str] | None = None) -> int:
    """Run `make results`; returns its exit code."""
    parser = argparse.ArgumentParser(description="Rebuild the published tables and pictures from their records.")
    parser.add_argument("--add", type=Path, nargs="+", metavar="RUN", default=[], help="publish these first")
    parser.add_argument("--to", default="", metavar="NAME", help="of the comparison that they belong to")
    given = parser.parse_args(arguments)
    if bool(given.add) != bool(given.to):
        raise UsageError('ADD= and TO= go together: make results ADD="RUN RUN" TO=NAME')
    added: list[Path] = []
    try:
        added = add(PROJECT, given.add, given.to) if given.add else []
        changed = rebuild(PROJECT)
    except comparison.NotComparable as refusal:
        there = ", ".join(str(path.relative_to(PROJECT)) for path in added)
        written = f"Added: {there}; nothing that is made from the records was written." if added else ""
        terminal.print_refusal(refusal, sys.stderr, written or "Nothing was written.")
        return 1
    for path in (*added, *changed):
        print(path.relative_to(PROJECT))
    if not (added or changed):
        print("everything is as its records make it")
    return 0
