"""The verdict of a comparison, one or two sentences to put on top, and where it lies against published figures."""

from __future__ import annotations

from playbook.compare import paired, parity, published, speedup
from playbook.compare.intervals import FEWEST_REPEATS
from playbook.compare.loss_gap import Gap
from playbook.compare.model import Arm, Contrast, Difference, Ratio
from playbook.compare.stats import Figure


def work(void: list[Difference], not_known: list[str]) -> str:
    """Whether the runs did the same work, "" where they did.

    Args:
        void: what differs, which only a forced comparison has.
        not_known: the facts of `parity.MUST_BE_KNOWN` that were not checked.
    """
    said = []
    if any(each.name != parity.SETTINGS for each in void):
        said.append("Forced: these runs did not do the same work.")
    elif void:
        said.append("Forced: whether these runs did the same work is not known.")
    elif not_known:
        said.append("Whether these runs did the same work is not known.")
    if not_known:
        everything = any(parity.NO_SIZE in (each.a, each.b) for each in void if each.name == parity.SETTINGS)
        names = ", ".join(not_known)
        said.append(f"Not checked: all settings ({names})." if everything else f"Not checked: {names}.")
    return " ".join(said)


def verdict(arms: list[Arm], contrasts: list[Contrast], base: Arm, *, doubt: str, mock: bool, losses: bool) -> str:
    """What the comparison comes to.

    Args:
        doubt: what `work` says, which comes first.
        mock: whether the data is, whose losses are no part of it.
        losses: whether the losses are of the same tokens, as far as the runs tell.
    """
    by_name = {arm.name: arm for arm in arms}
    losses = losses and not mock
    said = [part for each in contrasts for part in _of_contrast(each, by_name[each.candidate], base, losses=losses)]
    if mock and any(arm.training_loss for arm in arms):
        said.append("The data is mock: its losses say nothing about accuracy.")
    return " ".join(filter(None, [doubt, *said]))


def _of_contrast(contrast: Contrast, arm: Arm, base: Arm, *, losses: bool) -> list[str]:
    said = []
    if contrast.step_time:
        said.append(_speed(contrast.step_time, arm, base))
    elif labels := speedup.unusable(arm, base):
        said.append(f"Nothing is said of the speed of {arm.name}: step times of {', '.join(labels)} are unusable.")
    if contrast.loss and losses:
        said.append(contrast.loss)
    return said


def _speed(ratio: Ratio, arm: Arm, base: Arm) -> str:
    pair = f"{arm.name} ({arm.label}) and {base.name} ({base.label})"
    interval = between(ratio.figure)
    repeats = min(len(arm.runs), len(base.runs))
    more = "" if repeats >= FEWEST_REPEATS else f"; {_few(repeats)}"
    if ratio.what == "step-time ratio":
        if ratio.differs:
            return f"A difference in speed: {arm.name} takes {ratio.sentence} {interval}{more}."
        ends = [end for end in (ratio.figure.low, ratio.figure.high) if end is not None]
        least = f"above {100 * max([ratio.smallest, *(abs(end - 1) for end in ends)]):.1f} %"
        more += _power(ratio, repeats)
        return f"No difference in speed {least}: {arm.name} takes {ratio.sentence} {interval}{more}."
    if ratio.what == "cost of emulation":
        took, _, remark = ratio.sentence.partition("; ")
        return f"{arm.name} ({arm.label}) takes {took} {interval}; {remark}."
    if ratio.differs and ratio.what == "speed ratio":
        return f"{arm.name} is {ratio.sentence} {interval}{more}."
    if not ratio.differs:
        more += _power(ratio, repeats)
        return f"No difference in speed is shown between {pair}: {ratio.sentence} {interval}{more}."
    return f"{_called(arm)} is {_faster(ratio.figure.value)} {_called(base)} {interval}{more}."


def _few(repeats: int) -> str:
    """What so few repeats are, and what to do about it."""
    are = "one run" if repeats == 1 else "two runs"
    return f"{are} cannot tell how runs differ: REPEAT={FEWEST_REPEATS}"


def _power(ratio: Ratio, repeats: int) -> str:
    """How large a difference such repeats would have shown; "" of too few to know."""
    if ratio.shown is None:
        return ""
    return f"; {repeats} repeats that spread so show {100 * ratio.shown:.2g} % eight times in ten"


def _called(arm: Arm) -> str:
    return arm.label.replace(arm.precision, arm.precision.upper(), 1)


def _faster(value: float) -> str:
    return f"{value:.2f} times as fast as" if value >= 1 else f"slower, at {value:.2f} of the speed of"


def loss(gap: Gap, arm: Arm, base: Arm, *, differs: bool | None, margin: float | None) -> str:
    """What a gap in training loss shows, and what would show more.

    Args:
        differs: whether it is a difference; None where nothing judges it.
        margin: the smallest difference that matters, per cent, where one was asked for.
    """
    new, old = (arm.name, base.name) if arm.label == base.label else (_called(arm), _called(base))
    figure, over = gap.figure, gap.over_seeds
    if differs is None or over is None:
        said = f"The training loss of {new} lies {figure.value:+.2f} % from {old}, {gap.unjudged or 'no verdict'}"
        if gap.repeats:
            said += f" (repeats of one seed, {gap.repeats[0]:+.2f} to {gap.repeats[1]:+.2f} %, show what last bits do)"
        return said + ("; SEEDS='1 2 3' judges it." if gap.unjudged else ".")
    if differs:
        said = f"The training loss of {new} lies {figure.value:+.2f} % from {old} {between(figure)}."
    else:
        shown = f"{figure.count} seeds that spread so show {over.smallest_shown():.2g} % eight times in ten"
        said = f"No difference in training loss is shown between {new} and {old}: {figure.value:+.2f} % "
        said += f"{between(figure)}; {shown}."
    if margin is None:
        return said
    low, high = over.ends(2 * paired.LEVEL)
    equal = "They are equal" if over.within(margin) else "They are not shown to be equal"
    return f"{said} {equal} within {margin:g} % (two one-sided tests; 90 % interval {low:+.2f} to {high:+.2f})."


def between(figure: Figure) -> str:
    """ "(95 % interval 1.62 to 1.74, 3 repeats)", with as many digits as tell its ends apart."""
    if figure.low is None or figure.high is None:
        return "(no interval: too few iterations)"
    if "t-interval" in figure.spread:
        over = figure.spread.partition(" over ")[2]
    else:
        over = "within these runs only" if "these runs" in figure.spread else "within this run only"
    sign = "+" if figure.unit == "%" else ""
    digits = 2 if figure.high - figure.low >= 0.05 else 3
    return f"(95 % interval {figure.low:{sign}.{digits}f} to {figure.high:{sign}.{digits}f}, {over})"


def against_published(arms: list[Arm], contrasts: list[Contrast], baseline: Arm) -> list[str]:
    """A sentence for each figure that has a published band, then their sources.

    None for emulated arms or unknown hardware.
    """
    said: list[str] = []
    sources: dict[str, None] = {}
    for arm in arms:
        entry = published.band(arm.runs[0].facts)
        limits = entry and entry["tflops"].get(arm.precision)
        if limits and arm.model_tflops_per_gpu and arm.computes_natively and not speedup.unusable(arm):
            value = arm.model_tflops_per_gpu.value
            said.append(_sentence(f"{arm.name}: {value:,.0f} MODEL_TFLOP/s/GPU", value, limits, "tflops"))
            sources[f"{entry['name']}: {entry['source']}"] = None
    for contrast in contrasts:
        arm = next(arm for arm in arms if arm.name == contrast.candidate)
        entry = published.band(arm.runs[0].facts)
        is_speed_up = contrast.step_time is not None and contrast.step_time.what == "speed-up"
        if entry and is_speed_up and (arm.precision, baseline.precision) == ("nvfp4", "bf16"):
            value = contrast.step_time.figure.value
            said.append(
                _sentence(f"{arm.name} over {baseline.name}: {value:.2f}x", value, entry["speed_up"], "speed_up")
            )
            sources[f"{entry['name']}: {entry['source']}"] = None
    return [*said, *sources]


def _sentence(figure: str, value: float, limits: list[float], kind: str) -> str:
    where, why = published.outside(value, limits, kind)
    said = f"{figure}, {where} the published {limits[0]:,.4g} to {limits[1]:,.4g}"
    return f"{said}; usually {why}." if why else f"{said}."
