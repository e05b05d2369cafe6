"""Step times as a GPU gives them: runs that differ, iterations that follow each other, and a few outliers."""

import numpy as np
from scipy.signal import lfilter

NOISE = 0.01  # standard deviation of iterations within a run, relative
RUN_TO_RUN = 0.005
OUTLIERS = 0.02
SETTLE = 50  # iterations until AR(1) noise has forgotten its start


def step_times(generator: np.random.Generator, *shape: int, correlation: float) -> np.ndarray:
    """Step times around 1 s, [*shape], the last axis being the iterations of one run.

    AR(1) noise on their logarithm, and 2 % outliers that take half as long again on average. Their true median is a
    little over 1 and the same for every run, so that it cancels in a ratio.
    """
    shocks = generator.normal(scale=NOISE * np.sqrt(1 - correlation**2), size=(*shape[:-1], shape[-1] + SETTLE))
    times = np.exp(lfilter([1.0], [1.0, -correlation], shocks, axis=-1)[..., SETTLE:])
    slow = 1 + generator.exponential(0.5, shape)
    return np.where(generator.random(shape) < OUTLIERS, times * slow, times)


def runs(generator: np.random.Generator, *shape: int, correlation: float = 0.5) -> np.ndarray:
    """The same, each run with a speed of its own."""
    speed = np.exp(generator.normal(scale=RUN_TO_RUN, size=shape[:-1]))
    return step_times(generator, *shape, correlation=correlation) * speed[..., None]
