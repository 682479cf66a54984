"""The charts of runs: how they learn, and what the optimizer does."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from adam_jax.experiments.metrics import ACCURACY, Epoch, rank_moved
from adam_jax.experiments.picture import BANDS, RATIO, STEP
from adam_jax.experiments.report.charts import (
    COLOURS,
    GREY,
    Chart,
    Line,
    draw_lines,
    draw_shares,
    style,
)
from adam_jax.experiments.report.reading import Run


class Topic(NamedTuple):
    """Say what a chart of one figure is about.

    Attributes:
      figure: Its name in adam_jax.FIGURES; for a distribution that of its quantiles.
      title: What it tells, in plain words.
      caption: How to read it.
      y_title: What the vertical axis measures.
      log: Whether that axis is a log scale.
    """

    figure: str
    title: str
    caption: str
    y_title: str
    log: bool = True


STEPS = Topic(
    STEP,
    "How far a step goes",
    "1 where gradients agree, less where they cancel.",
    "|update| / learning rate",
)
RATIOS = Topic(
    RATIO,
    "How far gradients agree",
    "The signal-to-noise ratio: 1 for a steady gradient, 0.18 for pure noise at "
    "b1 = 0.9, less where gradients were larger once. The median parameter.",
    "|mu_hat| / sqrt(nu_hat)",
)
BY_GROUP = (
    Topic(
        "update_ratio",
        "How fast parameters change",
        "By which share a step changes them: its length over that of what it is "
        "added to.",
        "norm of update / norm of parameters",
    ),
    Topic(
        "gradient_norm",
        "What reaches the parameters",
        "The length of the gradient: 0 where nothing is learned.",
        "norm of gradient",
    ),
    Topic(
        "param_norm",
        "How large parameters are",
        "Their length.",
        "norm of parameters",
    ),
)
# Drawn where any of them is not 0: a healthy run has none.
FAULTS = (
    Topic(
        "swallowed",
        "Updates lost to rounding",
        "The share of updates that params + updates rounds away.",
        "share of updates",
        log=False,
    ),
    Topic(
        "nonfinite",
        "Gradients that are not finite",
        "Elements of the gradient that are infinite or NaN.",
        "elements",
        log=False,
    ),
    Topic(
        "at_step_bound",
        "Steps after a long silence",
        "The share of elements that take the longest step there is.",
        "share of elements",
        log=False,
    ),
)
CORRECTIONS = {"first moment": "bias_correction_mu", "second": "bias_correction_nu"}


def chart_learning(runs: Sequence[Run]) -> list[Chart]:
    """Chart loss, accuracy, learning rate and skipped steps, where there are any."""
    losses = [
        line
        for number, run in enumerate(runs)
        for line in _loss_lines(run, number, alone=len(runs) == 1)
    ]
    several = "" if len(runs) == 1 else "Solid: test; dotted: training. "
    charts = [
        Chart(
            "Loss",
            f"{several}Training: the mean over an epoch's batches, each before its "
            "step. Test: after the epoch.",
            draw_lines(losses, "epoch", "loss"),
        )
    ]
    accuracies = _lines(
        runs, lambda epoch: epoch.metrics.get(ACCURACY, math.nan), COLOURS[2]
    )
    if any(map(_has_values, accuracies)):
        figure = draw_shares(accuracies, "epoch")
        charts.append(
            Chart("Accuracy", "The share of the test labels that are found.", figure)
        )
    rates = _lines(runs, lambda epoch: epoch.learning_rate, COLOURS[3])
    if any(len(set(line.y)) > 1 for line in rates):
        figure = draw_lines(rates, "epoch", "learning rate", log=False)
        charts.append(Chart("Learning rate", "That of the epoch's last step.", figure))
    skips = _lines(runs, lambda epoch: epoch.skipped, COLOURS[1])
    if any(any(line.y) for line in skips):
        figure = draw_lines(skips, "epoch", "steps", log=False)
        caption = "How many the guard has skipped since the start."
        charts.append(Chart("Skipped steps", caption, figure))
    return charts


def chart_figures(runs: Sequence[Run]) -> list[Chart]:
    """Chart what the optimizer did: of one run in detail, of several side by side."""
    charts = []
    medians = _lines(runs, _figure(f"{STEP}/q50"), COLOURS[0])
    ratios = _lines(runs, _figure(RATIO), COLOURS[0])
    # The step of plain Adam is its ratio, except for eps.
    are_same = all(map(_coincide, medians, ratios))
    if any(map(_has_values, medians)):
        words = "The median parameter."
        if len(runs) == 1:
            medians = [_add_bands(medians[0], runs[0], STEP)]
            words = "Line: the median parameter; bands: the middle 50% and 90%."
        elif are_same:
            words += " In these runs it is the signal-to-noise ratio, too."
        charts.append(_draw(STEPS, medians, words))
    if len(runs) == 1 or not are_same:
        charts += _chart_groups(runs, RATIOS)
    for topic in BY_GROUP:
        charts += _chart_groups(runs, topic)
    if len(runs) == 1:
        charts += _chart_moved(runs[0]) + _chart_corrections(runs[0])
    for topic in FAULTS:
        of_all = _lines(runs, _figure(topic.figure), COLOURS[0])
        if any(y > 0 for line in of_all for y in line.y):
            charts += _chart_groups(runs, topic)
    return charts


def _chart_groups(runs: Sequence[Run], topic: Topic) -> list[Chart]:
    """Chart a figure of the groups of one run, or of the whole tree of several."""
    lines = _lines(runs, _figure(topic.figure), GREY)
    words = "All parameters of each run." if len(runs) > 1 else ""
    if len(runs) == 1:
        names = {group: f"{topic.figure}/{group}" for group in _choose_groups(runs[0])}
        lines = [lines[0]._replace(name="all parameters", listed=True)]
        lines += _group_lines(runs[0], {key: _figure(x) for key, x in names.items()})
    lines = [line for line in lines if _has_values(line)]
    return [_draw(topic, lines, words)] if lines else []


def _chart_moved(run: Run) -> list[Chart]:
    topic = Topic(
        "moved",
        "How far parameters have come",
        "The root mean square of a group's distance from where it started.",
        "distance",
    )

    def moved(group: str) -> Callable[[Epoch], float]:
        return lambda epoch: epoch.moved.get(group, math.nan)

    lines = _group_lines(run, {group: moved(group) for group in _choose_groups(run)})
    return [_draw(topic, lines, "")] if lines else []


def _chart_corrections(run: Run) -> list[Chart]:
    topic = Topic(
        "bias_correction",
        "What the bias correction multiplies by",
        "The factor in force: it falls to 1.",
        "factor",
    )
    lines = [
        _line(run, name, _figure(figure), COLOURS[number])
        for number, (name, figure) in enumerate(CORRECTIONS.items())
    ]
    lines = [line for line in lines if _has_values(line)]
    return [_draw(topic, lines, "")] if lines else []


def _draw(topic: Topic, lines: Sequence[Line], words: str) -> Chart:
    figure = draw_lines(lines, "epoch", topic.y_title, topic.log)
    sentences = [topic.caption, words]
    still = [line.name for line in lines if topic.log and not any(line.y)]
    if still:
        sentences.append(f"0 throughout, so not on a log scale: {', '.join(still)}.")
    return Chart(topic.title, " ".join(filter(None, sentences)), figure)


def _choose_groups(run: Run) -> list[str]:
    """Name the groups; of many those that moved most, then those that moved least."""
    moved = run.epochs[-1].moved
    most, least = rank_moved(moved)
    return list(moved) if len(moved) <= len(COLOURS) else [*most, *least]


def _group_lines(run: Run, figures: dict[str, Callable[[Epoch], float]]) -> list[Line]:
    return [
        _line(run, group, figure, style(number)[0])
        for number, (group, figure) in enumerate(figures.items())
    ]


def _loss_lines(run: Run, number: int, alone: bool) -> list[Line]:
    first, second = (COLOURS[0], COLOURS[1]) if alone else 2 * style(number)[:1]
    training = _line(run, "training", lambda epoch: epoch.train_loss, first)
    test = _line(run, "test", lambda epoch: epoch.test_loss, second)
    if alone:
        return [training, test]
    dotted = training._replace(name=run.name, dash="dot", listed=False)
    return [test._replace(name=run.name), dotted]


def _lines(
    runs: Sequence[Run], value: Callable[[Epoch], float], colour: str
) -> list[Line]:
    """Make a line for each run; the colour is for one that is alone."""
    if len(runs) == 1:
        line = _line(runs[0], runs[0].name, value, colour)
        return [line._replace(listed=False)]
    return [
        _line(run, run.name, value, *style(number)) for number, run in enumerate(runs)
    ]


def _add_bands(line: Line, run: Run, figure: str) -> Line:
    bands = [
        tuple(_values(run, _figure(f"{figure}/{key}")) for key in edges[:2])
        for edges in reversed(BANDS)
    ]
    return line._replace(bands=bands)


def _figure(name: str) -> Callable[[Epoch], float]:
    return lambda epoch: epoch.figures.get(name, math.nan)


def _line(
    run: Run, name: str, value: Callable[[Epoch], float], colour: str, dash="solid"
) -> Line:
    numbers = [epoch.epoch for epoch in run.epochs]
    return Line(name, numbers, _values(run, value), colour, dash)


def _values(run: Run, value: Callable[[Epoch], float]) -> list[float]:
    return [value(epoch) for epoch in run.epochs]


def _coincide(one: Line, other: Line) -> bool:
    return all(map(partial(math.isclose, rel_tol=0.02), one.y, other.y))


def _has_values(line: Line) -> bool:
    return any(map(math.isfinite, line.y))
