"""Two steppers side by side: pairs of turns, and what their ratios say."""

import math
import statistics
import time
from typing import NamedTuple

from adam_jax.experiments.bench.steppers import Stepper

# Of the base, in a turn: in training, too, a step is dispatched while another runs.
TURN_SECONDS = 30e-3
FEWEST_PAIRS = 3
# Threads of XLA and PyTorch spin for some ms after their work, on cores that the other
# needs: unless it waits, each measures the other's waiting.
PAUSE_SECONDS = 10e-3


class Timing(NamedTuple):
    """What the pairs say: medians, and the quartiles of the ratios."""

    seconds: float  # of a step
    base_seconds: float  # of a step of the base
    speed: float  # how many times as fast as the base
    quartiles: tuple[float, float]
    pairs: int
    steps: int  # in a turn


def compare(
    base: Stepper, other: Stepper, cycle: int, repeats: int, budget: float
) -> Timing:
    """Let both take turns, each of a multiple of `cycle` steps, in `repeats` pairs.

    After `budget` seconds fewer pairs will do, but not fewer than three.
    """
    for stepper in (base, other):
        stepper.run(1)  # touches the memory
    needed = TURN_SECONDS / min(_seconds_per_step(base, 1) for _ in range(3))
    steps = cycle * math.ceil(max(needed, 1) / cycle)
    start = time.perf_counter()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < repeats and (
        len(pairs) < FEWEST_PAIRS or time.perf_counter() - start < budget
    ):
        pairs.append((_seconds_per_step(base, steps), _seconds_per_step(other, steps)))
    # The other method would go beyond the extremes of two or three.
    low, middle, high = statistics.quantiles(
        (a / b for a, b in pairs), n=4, method="inclusive"
    )
    base_seconds, seconds = map(statistics.median, zip(*pairs, strict=True))
    return Timing(seconds, base_seconds, middle, (low, high), len(pairs), steps)


def _seconds_per_step(stepper: Stepper, steps: int) -> float:
    time.sleep(PAUSE_SECONDS)
    start = time.perf_counter()
    stepper.run(steps)
    return (time.perf_counter() - start) / steps
