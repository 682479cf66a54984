"""The charts of runs: how well they learn, and Adam at work; and a run's picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from adam_jax import QUANTILES
from adam_jax.experiments.metrics import (
    ACCURACY,
    Epoch,
    rank_moved,
    to_scalars,
    write_metric,
)
from adam_jax.experiments.pictures.drawing import (
    COLOURS,
    DASHES,
    Line,
    Look,
    Panel,
    choose_looks,
    compose,
    draw_panel,
    limit_line,
)
from adam_jax.experiments.pictures.scales import (
    epochs_axis,
    scale_linear,
    scale_log,
    scale_shares,
)
from adam_jax.experiments.settings.config import TrainConfig

Runs = Mapping[str, Sequence[Epoch]]  # by the name that the page has for each
STEP, RATIO = "effective_step_quantiles", "signal_to_noise_quantiles/q50"
BANDS = (("q25", "q75"), ("q05", "q95"))
GROUPS = 6  # of a model that are shown; of more those that moved most and least
ALL = Look("#7f7f7f", width=4.5)  # wide, and behind: one group's line may be the same


class Topic(NamedTuple):
    """Say what a chart of one figure is about, and how to read it."""

    figure: str  # its name in adam_jax.FIGURES, or in to_scalars
    title: str
    caption: str
    y_title: str = ""  # of a log scale; if it is empty, the scale is linear


STEPS = Topic(
    f"{STEP}/q50",
    "Effective step: how far the parameters move",
    "1 where gradients agree, less where they cancel.",
    "|update| / learning rate",
)
RATIOS = Topic(
    RATIO,
    "Signal-to-noise ratio: how far the gradients agree",
    "1 for a steady gradient, 0.18 for pure noise at b1 = 0.9, less where gradients "
    "were larger once. The median parameter.",
    "|mu_hat| / sqrt(nu_hat)",
)
UPDATES = Topic(
    "update_ratio",
    "Relative update: how fast a parameter group changes",
    "By which share a step changes it.",
    "norm of update / norm of parameters",
)
GRADIENTS = Topic(
    "gradient_norm",
    "Gradient: what reaches a parameter group",
    "0 where nothing is learned.",
    "norm of gradient",
)
NORMS = Topic("param_norm", "Parameters: how large they are", "", "norm of parameters")
MOVED = Topic(
    "moved",
    "Distance: how far a parameter group has come",
    "The root mean square of its distance from where it started.",
    "distance",
)
# Drawn where any of them is not 0: a healthy run has none.
FAULTS = (
    Topic(
        "swallowed",
        "Updates lost to rounding",
        "The share of updates that params + updates rounds away.",
    ),
    Topic(
        "nonfinite",
        "Gradients that are not finite",
        "Elements of the gradient that are infinite or NaN.",
    ),
    Topic(
        "at_step_bound",
        "Steps after a long silence",
        "The share of elements that take the longest step there is.",
    ),
)
RATE = Topic("learning_rate", "Learning rate", "That of the epoch's last step.")
SKIPS = Topic("skipped", "Skipped steps", "How many the guard has skipped so far.")
CORRECTIONS = Topic(
    "bias_correction",
    "Bias correction: what it multiplies by",
    "The factor in force: it falls to 1.",
    "factor",
)
FACTORS = {"first moment": "bias_correction_mu", "second": "bias_correction_nu"}


def draw_run(
    config: TrainConfig, epochs: Sequence[Epoch], loss_name: str = "loss"
) -> alt.VConcatChart:
    """Draw the picture of a run: how it learns, and what its optimizer does.

    The step of plain Adam is its ratio, except for eps: bands of the ratio would say
    nothing new, so its medians are drawn, by group.
    """
    runs = {config.run_name: epochs}
    panels = [*chart_losses(runs, loss_name), *_chart_steps(runs)]
    panels += _chart_groups(runs, RATIOS, UPDATES, GRADIENTS)
    optimizer = config.optimizer
    title = (
        f"{config.run_name}: {config.subject}, trained by {optimizer.name}, learning "
        f"rate {optimizer.learning_rate} ({optimizer.schedule}), seed {config.seed}"
    )
    return compose(title, panels, columns=2)


def chart_learning(runs: Runs) -> list[Panel]:
    """Chart loss, accuracy, learning rate and skipped steps, where there are any."""
    panels = chart_losses(runs)
    for topic, least in ((RATE, 2), (SKIPS, 1)):
        lines = _list_runs(runs, topic.figure)
        if any(len({*line.y} - {0}) >= least for line in lines):
            panels.append(_draw(topic, lines))
    return panels


def chart_losses(runs: Runs, loss: str = "loss") -> list[Panel]:
    """Chart the loss, which has a name, and what else is measured of a test."""
    is_alone = len(runs) == 1
    caption = "" if is_alone else "Solid: test; dotted: training. "
    caption += (
        "Training: the mean over an epoch's batches, each before its step. Test: after "
        "the epoch."
    )
    tests, trainings = (_list_runs(runs, x) for x in ("loss/test", "loss/train"))
    lines = []
    for test, training in zip(tests, trainings, strict=True):
        dotted = training.look._replace(dash=DASHES[2])
        lines += [test, training._replace(look=dotted, listed=False)]
    if is_alone:
        lines = _list_figures(runs, {"training": "loss/train", "test": "loss/test"})
    panels = [_draw(Topic("loss", "Loss", caption, loss), lines)]
    for name in dict.fromkeys(x for own in runs.values() for x in own[-1].metrics):
        lines = _list_runs(runs, name, COLOURS[2])
        last = write_metric(name, lines[0].y[-1])
        title = f"Test {name}{f': {last} at the end' if is_alone else ''}"
        panels.append(draw_metric(title, "", lines, name))
    return panels


def draw_metric(title: str, caption: str, lines: Sequence[Line], name: str) -> Panel:
    """Draw a metric over the epochs: an accuracy in percent."""
    if name == ACCURACY:
        scale = scale_shares(_gather(lines))
        return draw_epochs(title, caption, lines, "test labels found", scale, ".2%")
    return draw_epochs(title, caption, lines, name, scale_linear())


def draw_epochs(title: str, caption: str, lines: Sequence[Line], *y: Any) -> Panel:
    """Draw lines over the epochs; the vertical axis is as for `draw_lines`."""
    count = int(max(line.x[-1] for line in lines))
    return draw_panel(title, caption, lines, epochs_axis(count), *y)


def chart_figures(runs: Runs) -> list[Panel]:
    """Chart what the optimizer did: of one run in detail, of several side by side."""
    # The step of plain Adam is its ratio, except for eps.
    pairs = zip(_list_runs(runs, STEPS.figure), _list_runs(runs, RATIO), strict=True)
    are_same = len(runs) > 1 and all(
        np.allclose(step.y, ratio.y, rtol=0.02, atol=0) for step, ratio in pairs
    )
    topics = [] if are_same else [RATIOS]
    panels = _chart_steps(runs, are_same)
    panels += _chart_groups(runs, *topics, UPDATES, GRADIENTS, NORMS)
    if len(runs) == 1:
        panels += _chart_groups(runs, MOVED)
        panels += _chart(CORRECTIONS, _list_figures(runs, FACTORS))
    for topic in FAULTS:
        if any(y > 0 for line in _list_runs(runs, topic.figure) for y in line.y):
            panels += _chart_groups(runs, topic)
    return panels


def _chart_steps(runs: Runs, are_ratios: bool = False) -> list[Panel]:
    lines = _list_runs(runs, STEPS.figure)
    if not any(map(_has_values, lines)):
        return []
    words = "The median parameter."
    if len(runs) == 1:
        # Where nothing moves there is no quantile: 0 has no place on a log scale.
        [epochs] = runs.values()
        edges = {
            key: [y or math.nan for y in _values(epochs, f"{STEP}/{key}")]
            for key in QUANTILES
        }
        bands = [(edges[low], edges[high]) for low, high in BANDS]
        lines = [lines[0]._replace(y=edges["q50"], bands=bands)]
        words = "Line: the median parameter; bands: the middle 50% and 90%."
    if are_ratios:
        words += " In these runs it is the signal-to-noise ratio, too."
    if any(map(_has_values, _list_runs(runs, RATIO))):
        ends = [0.5, max(map(len, runs.values())) + 0.5]
        lines.append(limit_line("Adam's own bound", ends, 1))
    return [_draw(STEPS._replace(caption=f"{STEPS.caption} {words}"), lines)]


def _chart_groups(runs: Runs, *topics: Topic) -> list[Panel]:
    charts = (_chart(topic, _list_groups(runs, topic.figure)) for topic in topics)
    return [panel for panels in charts for panel in panels]


def _chart(topic: Topic, lines: Sequence[Line]) -> list[Panel]:
    """Chart the lines that have values, if any have."""
    lines = [line for line in lines if _has_values(line)]
    return [_draw(topic, lines)] if lines else []


def _draw(topic: Topic, lines: Sequence[Line]) -> Panel:
    values = _gather(lines)
    # A rate that falls to zero would take all the room at its end.
    least = 1e-5 * max((y for y in values if math.isfinite(y)), default=1.0)
    scale = scale_log(values, least) if topic.y_title else scale_linear()
    return draw_epochs(topic.title, topic.caption, lines, topic.y_title, scale)


def _gather(lines: Sequence[Line]) -> list[float]:
    """Give all values of lines, and of the edges of their bands."""
    curves = [ys for line in lines for ys in (line.y, *sum(line.bands, ()))]
    return [y for ys in curves for y in ys]


def _list_groups(runs: Runs, figure: str) -> list[Line]:
    """Make a line for each group of one run, or for the whole tree of each of several.

    Of the groups, the more one has moved, the earlier it comes.
    """
    if len(runs) > 1:
        return _list_runs(runs, figure)
    [epochs] = runs.values()
    moved = epochs[-1].moved
    most, least = rank_moved(moved)
    shown = [*most, *reversed(least)]
    if len(moved) <= GROUPS:
        shown[len(most) : len(most)] = [group for group in moved if group not in shown]
    lines = [_line(epochs, figure, "all parameters", ALL)]
    for group, look in zip(shown, choose_looks(len(shown)), strict=True):
        look = look._replace(dash=DASHES[group in least], width=2.0)
        name = f"{group} (moved {moved[group]:.2g})"
        lines.append(_line(epochs, f"{figure}/{group}", name, look))
    return lines


def _list_figures(runs: Runs, figures: Mapping[str, str]) -> list[Line]:
    """Make a line for each figure of the one run, by the name of the line."""
    [epochs] = runs.values()
    looks = choose_looks(len(figures))
    return [
        _line(epochs, figure, name, look)
        for (name, figure), look in zip(figures.items(), looks, strict=True)
    ]


def _list_runs(runs: Runs, figure: str, colour: str = COLOURS[0]) -> list[Line]:
    """Make a line for each run; of one that is alone the colour can be chosen."""
    looks = choose_looks(len(runs)) if len(runs) > 1 else [Look(colour)]
    return [
        _line(epochs, figure, name, look)._replace(listed=len(runs) > 1)
        for (name, epochs), look in zip(runs.items(), looks, strict=True)
    ]


def _line(epochs: Sequence[Epoch], figure: str, name: str, look: Look) -> Line:
    return Line(name, [e.epoch for e in epochs], _values(epochs, figure), look)


def _values(epochs: Sequence[Epoch], figure: str) -> list[float]:
    return [to_scalars(epoch).get(figure, math.nan) for epoch in epochs]


def _has_values(line: Line) -> bool:
    return any(map(math.isfinite, line.y))
