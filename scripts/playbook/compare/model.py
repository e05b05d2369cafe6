"""What a comparison comes to: plain dataclasses that become `comparison.json`.

`playbook.compare.comparison` fills them in; `playbook.report` renders them. Only the standard library: a dry run asks,
too, which iterations would be timed.

A comparison has two or more *arms*. An arm is one configuration, such as BF16, with one *run* for each repeat. One arm
is the baseline, and every other is set against it in a *contrast*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretraining.errors import UsageError
from pretraining.request.precisions import PRECISIONS, default_tail
from pretraining.request.recipe import nvfp4_recipe

if TYPE_CHECKING:
    from playbook.compare.stats import Figure

SCHEMA = 2  # 1 had two sides of one run each
UNKNOWN = "unknown precision"  # of a raw log that does not tell
WARMUP = 20  # iterations 20 to the end are timed, as in the playbook's published figures
FEWEST_TIMED = 5  # iterations; fewer have no quartiles worth the name
UNUSABLE = 0.25  # interquartile range over median of step times that allow no statement of speed
KIND = "nvfp4-playbook-comparison"  # how a comparison.json is told from somebody else's file


def label(precision: str, arithmetic: str, emulator: str = "", setting: str = "") -> str:
    """The precision as a person says it: "nvfp4", "nvfp4, emulated", "nvfp4 rht=off, triton-emulated"."""
    emulated = f"{emulator}-emulated" if emulator else "emulated"
    said = f"{precision} {setting}".rstrip()
    return f"{said}, {emulated}" if arithmetic == "emulated" else said


@dataclass(frozen=True)
class Window:
    """The iterations that are timed, both ends included; `first` > `last` where there are none."""

    first: int
    last: int
    reason: str


def timing_window(start: int, last: int) -> Window:
    """The iterations to time of a training that began after iteration `start` and got to `last`.

    Iterations 20 to the end; of a run too short for that, its second half. Never the first one, which pays for
    compilation, allocation and autotuning. Evaluations and checkpoints lie between two steps, in a record's step times
    as in those that Megatron prints.
    """
    done = last - start
    half = done // 2 + 1
    first = max(2, min(WARMUP, half))
    reason = "iterations 20 to the end" if first == WARMUP else "the second half, as the run is short"
    return Window(start + first, last, reason)


def check_long_enough(iterations: int) -> None:
    """Raise UsageError before two trainings whose comparison would be refused for too few timed iterations."""
    window = timing_window(0, iterations)
    if window.last - window.first + 1 < FEWEST_TIMED:
        raise UsageError(
            f"ITERS={iterations} leaves fewer than {FEWEST_TIMED} iterations to time, the second half of "
            f"the run: compare over at least {2 * FEWEST_TIMED}"
        )


@dataclass(frozen=True)
class Distribution:
    """Step times over the timed iterations, seconds; outliers by a modified z-score over 3.5 (Iglewicz and Hoaglin)."""

    median: float
    mean: float
    standard_deviation: float
    first_quartile: float
    third_quartile: float
    minimum: float
    maximum: float
    outliers: int
    count: int

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        return (self.third_quartile - self.first_quartile) / self.median


@dataclass(frozen=True, kw_only=True)
class Figured:
    """What has the figures of `figures.METRICS` by name, None where not known; each is an attribute too."""

    figures: dict[str, Figure | None]

    def __getattr__(self, name: str) -> Figure | None:
        try:
            return self.__dict__["figures"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name}") from None


@dataclass(frozen=True, kw_only=True)
class RunResult(Figured):
    """One run: where it is and its figures.

    Attributes:
        source: "run folder" or "raw log".
        device: "cpu", "gpu", or "".
        memory: peak bytes as figures in GB, by what they measure: "torch allocated", "device used" and so on.
        warnings: what a reader of its figures has to know, each with what to do.
        facts: the parity facts.
    """

    path: str
    source: str
    verdict: str
    cause: str
    device: str
    iterations: int
    timed: Window
    step_times: Distribution | None
    validated_at: int | None
    memory: dict[str, Figure]
    warnings: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm(Figured):
    """One configuration and its repeats.

    The figures are the middle of the runs' own, spread over the repeats where there are several and over the
    iterations of the one run where there is one; `Figure.spread` says which.

    Attributes:
        name: "A", "B", ... in the order given.
        arithmetic: "native" or "emulated".
        emulator: which one on a GPU; "" on the CPU, which has its own, of a raw log, and where it is native.
        ingredients: of the NVFP4 recipe, as `Nvfp4Recipe.facts` has them; empty where not known or another precision.
        runs: in the order in which they ran.
        setting: what tells it from another arm of its precision, such as "rht=off"; see `comparison.told_apart`.
    """

    name: str
    precision: str
    arithmetic: str
    emulator: str
    bf16_head_layers: int | None
    bf16_tail_layers: int | None
    ingredients: dict[str, bool | str]
    runs: list[RunResult]
    mfu_peak: str  # which peak of which precision, and its source; "" where there is no figure
    peak_memory_kind: str
    setting: str = ""

    @property
    def label(self) -> str:
        """What it is called in the comparison, see `label`."""
        return label(self.precision, self.arithmetic, self.emulator, self.setting)

    @property
    def recipe(self) -> str:
        """How much of the NVFP4 recipe is on: "full", "without stochastic rounding"; "" where not known."""
        return nvfp4_recipe.differs(self.ingredients) or ("full" if self.ingredients else "")

    @property
    def changed(self) -> str:
        """What of its recipe is not as its precision has it, as it is asked for: "rht=off tail=0"."""
        words = nvfp4_recipe.Nvfp4Recipe.recorded(self.ingredients).changed()
        kept = {"head": self.bf16_head_layers, "tail": self.bf16_tail_layers}
        usual: dict[str, int] = {}
        if (row := PRECISIONS.get(self.precision)) and (layers := self.runs[0].facts.get("num_layers")):
            usual = {"head": row.bf16_head, "tail": default_tail(row, layers)}
        words |= {name: str(count) for name, count in kept.items() if count is not None and count != usual.get(name)}
        return nvfp4_recipe.as_text(words)

    @property
    def computes_natively(self) -> bool:
        """Whether its FLOP/s say anything of a GPU."""
        return self.arithmetic == "native" and self.runs[0].device != "cpu"

    @property
    def called(self) -> str:
        """Its label in a sentence: "NVFP4, emulated"."""
        return self.label.replace(self.precision, self.precision.upper(), 1)

    @property
    def unusable(self) -> list[str]:
        """The labels of its runs whose step times spread too far for any statement of speed."""
        runs = [(self.run_label(at), run.step_times) for at, run in enumerate(self.runs)]
        return [label for label, times in runs if times and times.spread > UNUSABLE]

    def run_label(self, index: int) -> str:
        """What one of its runs is called: "B", or "B2" where there are several."""
        return f"{self.name}{index + 1}" if len(self.runs) > 1 else self.name


@dataclass(frozen=True)
class Ratio:
    """Step times of two arms against each other; `what` is never "speed-up" where one is emulated or both unknown.

    Attributes:
        figure: the ratio with its 95 % interval, which `figure.spread` names; "within this run only" where
            repeats are too few to see how runs differ.
        differs: whether the interval leaves 1 out by more than `smallest`; None without an interval.
        smallest: the smallest difference that is called one, relative: over repeats 0.5 %, or what their iterations
            leave open; without enough of them what two runs of the same differ by anyway.
        shown: the difference that repeats with this spread call one in eight of ten comparisons, relative; None
            without enough of them to know.
    """

    what: str
    figure: Figure
    sentence: str
    differs: bool | None
    smallest: float = 0.0
    shown: float | None = None


@dataclass(frozen=True)
class EqualLoss:
    """What an arm needs for the baseline's loss.

    Attributes:
        tokens: those that the arm needs over the baseline's, for the same smoothed training loss.
        validation_tokens: the same for the validation loss, where it was evaluated on the way.
        loss: at which, nats; the mean over the seeds.
        effective_speed_up: a speed-up over the ratio of tokens: how much sooner the arm has that loss.
        projected: whether that speed-up is not these runs' own.
        holds_rate: whether the learning rate is held after the warm-up; None where that was not recorded.
        said: sentences: what was found and what it rests on, or why nothing was.
    """

    tokens: Figure | None
    validation_tokens: Figure | None
    loss: float | None
    effective_speed_up: Figure | None
    projected: bool
    holds_rate: bool | None
    said: list[str]


@dataclass(frozen=True, kw_only=True)
class Contrast(Figured):
    """One arm against the baseline.

    Attributes:
        candidate: the arm's name.
        step_time: None where an arm has none, or some that are unusable (`speedup.unusable`).
        training_loss_gap: per cent over the last tenth, on the same tokens: the mean of the seeds, with an interval
            where they are enough; else its `spread` says why not. None on mock data, whose losses mean nothing.
        gap_by_seed: the training loss gap of each seed, per cent; under "None" where it is not known.
        gap_iterations: how many iterations each of them rests on.
        loss_differs: whether the training losses are told apart; None where nothing judges them.
        loss_within_margin: whether they are shown to be equal within the margin asked for; None where none was, or
            where nothing judges them.
        loss: what the gap shows, and what would show more, in sentences; "" where there is no gap.
        published_gap: what NVFP4 was published to cost at this position of a schedule; "" where these two have no
            such gap.
        equal_loss: the tokens it needs for the baseline's loss; None on mock data and where the work is not the same.
    """

    candidate: str
    step_time: Ratio | None
    training_loss_gap: Figure | None
    validation_loss_gap: Figure | None
    gap_by_seed: dict[str, float] = field(default_factory=dict)
    gap_iterations: int = 0
    loss_differs: bool | None = None
    loss_within_margin: bool | None = None
    loss: str = ""
    published_gap: str = ""
    equal_loss: EqualLoss | None = None


@dataclass(frozen=True)
class Difference:
    """One thing that differs, and the way out; `of` is what the two runs are called, such as "A" and "B2".

    Attributes:
        void: whether it makes the comparison void; otherwise it is only to be known.
    """

    name: str
    a: Any
    b: Any
    way_out: str
    of: tuple[str, str] = ("A", "B")
    void: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.of[0]} {self.a}, {self.of[1]} {self.b}"


@dataclass(frozen=True)
class Comparison:
    """The result.

    Attributes:
        verdict: one or two sentences to put on top.
        scope: one sentence on what these runs can and cannot show.
        differences: facts that differ; those that void a comparison are in one that was forced alone.
        unchecked: facts that were not known of all.
        not_known: those of them without which nobody can say that the work was the same (`parity.MUST_BE_KNOWN`).
        doubt: sentences on whether the work was the same; "" where it was. The verdict begins with them.
        warnings: of the comparison as a whole; each run has its own.
        bands: where a run lies against published figures for its hardware, and what usually explains it.
    """

    created: str
    forced: bool
    verdict: str
    arms: list[Arm]
    baseline: str
    contrasts: list[Contrast]
    scope: str
    bigram_entropy: Figure | None
    differences: list[Difference]
    unchecked: list[str]
    warnings: list[str]
    bands: list[str] = field(default_factory=list)
    reproduce: str = ""
    not_known: list[str] = field(default_factory=list)
    doubt: str = ""
    kind: str = KIND
    schema: int = SCHEMA

    def arm(self, name: str) -> Arm:
        """The arm called `name`. Raises KeyError."""
        return {arm.name: arm for arm in self.arms}[name]
