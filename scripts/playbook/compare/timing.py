"""Step times of one run: their distribution, and what in them a reader has to know, each with what to do."""

from __future__ import annotations

import numpy as np

from playbook.compare.model import Distribution

OUTLIER = 3.5  # modified z-score, Iglewicz and Hoaglin (1993)
FLUCTUATION = 0.10  # interquartile range over median
UNUSABLE = 0.25
SLOW_START = 0.05  # how much longer the first tenth takes than the rest
DRIFT = 0.02  # between the first third and the last
DISAGREEMENT = 0.02  # between the record and what Megatron printed
_FEWEST_FOR_TRENDS = 15


def distribution(times: np.ndarray) -> Distribution:
    """The distribution of at least one step time, seconds."""
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return Distribution(
        median=float(middle),
        mean=float(times.mean()),
        standard_deviation=float(times.std(ddof=1)) if len(times) > 1 else 0.0,
        first_quartile=float(low),
        third_quartile=float(high),
        minimum=float(times.min()),
        maximum=float(times.max()),
        outliers=int(outliers(times).sum()),
        count=len(times),
    )


def outliers(times: np.ndarray) -> np.ndarray:
    """Which of them lie beyond a modified z-score of 3.5, [len(times)] of bool.

    The score is 0.6745 times the distance to the median over the median of these distances; over 1.2533 times their
    mean where more than half of all are equal.
    """
    distance = np.abs(times - np.median(times))
    scale = np.median(distance) / 0.6745 or 1.2533 * distance.mean()
    return distance > OUTLIER * scale if scale else np.zeros(len(times), dtype=bool)


def warnings(times: np.ndarray) -> list[str]:
    """What the timed iterations, in their order, say against a figure made of them."""
    spread = distribution(times).spread
    said = []
    if spread > UNUSABLE:
        said.append(
            f"step times are unusable: their interquartile range is {spread:.0%} of the median (over {UNUSABLE:.0%}); "
            "find what else uses the machine (nvidia-smi, top), then train again"
        )
    elif spread > FLUCTUATION:
        said.append(
            f"system fluctuation: the interquartile range is {spread:.0%} of the median step (over {FLUCTUATION:.0%}); "
            "end other work on the machine, or take REPEAT=3 and more"
        )
    if len(times) < _FEWEST_FOR_TRENDS:
        return said
    third, tenth = len(times) // 3, max(3, len(times) // 10)
    start = float(np.median(times[:tenth]) / np.median(times[tenth:]) - 1)
    if start > max(SLOW_START, spread):
        said.append(
            f"slow start: the first {tenth} timed iterations took {start:.0%} longer than the rest; "
            "train for longer, so that they count less (ITERS=)"
        )
    drift = float(np.median(times[-third:]) / np.median(times[tenth : tenth + third]) - 1)
    if abs(drift) > max(DRIFT, spread / 2):
        said.append(
            f"drift: the last third of the timed iterations is {abs(drift):.1%} {'slower' if drift > 0 else 'faster'} "
            "than the first; watch clocks and temperature (nvidia-smi dmon), and interleave repeats (REPEAT=3)"
        )
    return said


def disagreement(iterations: np.ndarray, times: np.ndarray, printed_at: np.ndarray, printed: np.ndarray) -> str:
    """How the record's step times differ from those that Megatron printed, "" where not by more than 2 %.

    Args:
        iterations, times: of the record, timed ones only, seconds.
        printed_at, printed: iteration and seconds of Megatron's own lines, one for every iteration.
    """
    common, ours, theirs = np.intersect1d(iterations, printed_at, return_indices=True)
    if len(common) == 0 or (len(printed_at) > 1 and np.median(np.diff(printed_at)) > 1):
        return ""  # a printed mean of several iterations is another thing
    ratio = float(np.median(printed[theirs]) / np.median(times[ours])) - 1
    if abs(ratio) <= DISAGREEMENT:
        return ""
    return (
        f"Megatron printed {abs(ratio):.1%} {'more' if ratio > 0 else 'less'} time a step than the record has; "
        "what lies between steps (data loading, logging) is only in the printed one: compare the logs too"
    )
