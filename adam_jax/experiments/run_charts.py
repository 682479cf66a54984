"""The charts of runs: how well they learn, and Adam at work; and a run's picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import altair as alt

from adam_jax import QUANTILES
from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.drawing import (
    COLOURS,
    DASHES,
    LIMIT,
    Line,
    Look,
    Panel,
    choose_looks,
    compose,
    draw_lines,
    list_lines,
)
from adam_jax.experiments.metrics import (
    ACCURACY,
    Epoch,
    rank_moved,
    to_scalars,
    write_metric,
)
from adam_jax.experiments.scales import (
    epochs_axis,
    scale_linear,
    scale_log,
    scale_shares,
)

Runs = Mapping[str, Sequence[Epoch]]  # by the name that the page has for each
STEP, RATIO = "effective_step_quantiles", "signal_to_noise_quantiles/q50"
BANDS = (("q25", "q75"), ("q05", "q95"))
GROUPS = 6  # of a model that are shown; of more those that moved most and least
ALL = Look("#7f7f7f", width=4.5)  # wide, and behind: one group's line may be the same


class Topic(NamedTuple):
    """Say what a chart of one figure is about.

    Attributes:
      figure: Its name in adam_jax.FIGURES, or in to_scalars.
      title: What it tells, in plain words.
      caption: How to read it.
      y_title: What the vertical axis measures, on a log scale; if it is empty, the
        title says it, and the scale is linear.
    """

    figure: str
    title: str
    caption: str
    y_title: str = ""


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
    """Draw the picture of a run.

    There is a panel each for loss, test accuracy if the model has one, effective step,
    signal-to-noise ratio if the optimizer has one, relative update and gradient. (The
    step of plain Adam is its ratio, except for eps: the same distribution would say
    nothing new.)

    Args:
      config: That of the run.
      epochs: What is drawn.
      loss_name: What the loss is.
    """
    runs = {config.run_name: epochs}
    panels = [
        *chart_losses(runs, loss_name),
        *_chart_steps(runs),
        *(x for topic in (RATIOS, UPDATES, GRADIENTS) for x in _chart(runs, topic)),
    ]
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
    """Chart the loss, and the test accuracy if there is one.

    Args:
      runs: One run, or several side by side.
      loss: What the loss is.
    """
    lines = []
    for (name, epochs), look in zip(runs.items(), choose_looks(len(runs)), strict=True):
        if len(runs) == 1:
            training, test = choose_looks(2)
            lines.append(_line(epochs, "loss/train", "training", training))
            lines.append(_line(epochs, "loss/test", "test", test))
        else:
            lines.append(_line(epochs, "loss/test", name, look))
            dotted = _line(epochs, "loss/train", name, look._replace(dash=DASHES[2]))
            lines.append(dotted._replace(listed=False))
    several = "Solid: test; dotted: training. " if len(runs) > 1 else ""
    topic = Topic(
        "loss",
        "Loss",
        f"{several}Training: the mean over an epoch's batches, each before its step. "
        "Test: after the epoch.",
        loss,
    )
    panels = [_draw(topic, lines)]
    names = dict.fromkeys(x for own in runs.values() for x in own[-1].metrics)
    axis = epochs_axis(max(map(len, runs.values())))
    for name in names:
        lines = _list_runs(runs, name, COLOURS[2])
        last = write_metric(name, lines[0].y[-1])
        end = f": {last} at the end" if len(runs) == 1 else ""
        chart = draw_metric(lines, axis, name)
        panels.append(Panel(f"Test {name}{end}", "", chart, list_lines(lines)))
    return panels


def draw_metric(lines: Sequence[Line], x: alt.X, name: str) -> Any:
    """Draw lines of a metric: an accuracy in percent."""
    if name == ACCURACY:
        scale = scale_shares(_gather(lines))
        return draw_lines(lines, x, "test labels found", scale, ".2%")
    return draw_lines(lines, x, name, scale_linear())


def chart_figures(runs: Runs) -> list[Panel]:
    """Chart what the optimizer did: of one run in detail, of several side by side."""
    # The step of plain Adam is its ratio, except for eps.
    pairs = zip(_list_runs(runs, STEPS.figure), _list_runs(runs, RATIO), strict=True)
    are_same = len(runs) > 1 and all(_coincide(*pair) for pair in pairs)
    panels = _chart_steps(runs, are_same)
    for topic in (RATIOS, UPDATES, GRADIENTS, NORMS)[are_same:]:
        panels += _chart(runs, topic)
    if len(runs) == 1:
        panels += _chart(runs, MOVED) + _chart(runs, CORRECTIONS, FACTORS)
    for topic in FAULTS:
        if any(y > 0 for line in _list_runs(runs, topic.figure) for y in line.y):
            panels += _chart(runs, topic)
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
        count = max(map(len, runs.values()))
        ends = [0.5, count + 0.5]
        limit = Line("Adam's own bound", ends, [1, 1], LIMIT, (), False, marked=False)
        lines.append(limit)
    return [_draw(STEPS._replace(caption=f"{STEPS.caption} {words}"), lines)]


def _chart(
    runs: Runs, topic: Topic, figures: Mapping[str, str] | None = None
) -> list[Panel]:
    """Chart a figure of the groups of one run, or of the whole tree of several.

    Args:
      runs: One run, or several side by side.
      topic: What the chart is about.
      figures: What is drawn of one run instead, by its name.
    """
    lines = _list_runs(runs, topic.figure)
    if len(runs) == 1:
        [epochs] = runs.values()
        named = {f"{topic.figure}/{x}": y for x, y in _list_groups(epochs[-1]).items()}
        named = {topic.figure: ("all parameters", ALL)} | named
        if figures:
            looks = choose_looks(len(figures))
            named = dict(
                zip(figures.values(), zip(figures, looks, strict=True), strict=True)
            )
        lines = [_line(epochs, figure, *about) for figure, about in named.items()]
    lines = [line for line in lines if _has_values(line)]
    return [_draw(topic, lines)] if lines else []


def _draw(topic: Topic, lines: Sequence[Line]) -> Panel:
    values = _gather(lines)
    # A rate that falls to zero would take all the room at its end.
    least = 1e-5 * max((y for y in values if math.isfinite(y)), default=1.0)
    scale = scale_log(values, least) if topic.y_title else scale_linear()
    count = max(len(line.x) for line in lines)
    chart = draw_lines(lines, epochs_axis(count), topic.y_title, scale)
    return Panel(topic.title, topic.caption, chart, list_lines(lines))


def _gather(lines: Sequence[Line]) -> list[float]:
    """Give all values of lines, and of the edges of their bands."""
    curves = [ys for line in lines for ys in (line.y, *sum(line.bands, ()))]
    return [y for ys in curves for y in ys]


def _list_groups(last: Epoch) -> dict[str, tuple[str, Look]]:
    """Give name and look of the groups shown: the more one has moved, the earlier."""
    most, least = rank_moved(last.moved)
    shown = [*most, *reversed(least)]
    if len(last.moved) <= GROUPS:
        left = [group for group in last.moved if group not in shown]
        shown[len(most) : len(most)] = left
    return {
        group: (
            f"{group} (moved {last.moved[group]:.2g})",
            look._replace(dash=DASHES[group in least], width=2.0),
        )
        for group, look in zip(shown, choose_looks(len(shown)), strict=True)
    }


def _list_runs(runs: Runs, figure: str, colour: str = COLOURS[0]) -> list[Line]:
    """Make a line for each run; the colour is for one that is alone."""
    if len(runs) == 1:
        [(name, epochs)] = runs.items()
        return [_line(epochs, figure, name, Look(colour))._replace(listed=False)]
    looks = choose_looks(len(runs))
    return [
        _line(epochs, figure, name, look)
        for (name, epochs), look in zip(runs.items(), looks, strict=True)
    ]


def _line(epochs: Sequence[Epoch], figure: str, name: str, look: Look) -> Line:
    return Line(name, [e.epoch for e in epochs], _values(epochs, figure), look)


def _values(epochs: Iterable[Epoch], figure: str) -> list[float]:
    return [to_scalars(epoch).get(figure, math.nan) for epoch in epochs]


def _coincide(one: Line, other: Line) -> bool:
    return all(map(partial(math.isclose, rel_tol=0.02), one.y, other.y))


def _has_values(line: Line) -> bool:
    return any(map(math.isfinite, line.y))
