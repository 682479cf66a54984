"""The picture of a sweep as curves: what came out over one hyperparameter."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adam_jax.experiments.drawing import choose_looks, label_log, name_values
from adam_jax.experiments.study.config import MEASURES, SweepConfig
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    group_members,
    split_by_optimizer,
)
from adam_jax.experiments.study.settings import list_values


def draw_lines(config: SweepConfig, members: Sequence[Member], title: str) -> Figure:
    """Draw a curve for each optimizer over the first hyperparameter of the grid.

    Each combination of the others has its panel, after each of the epochs shown. An
    optimizer that has a grid of its own is drawn at the best of its settings.
    """
    axes = config.grid.axes or config.list_axes(config.optimizers[0])
    key, *others = axes
    values = [sorted(list_values(axes[other])) for other in others]
    names = dict(zip(others, map(name_values, values), strict=True))
    combinations = [
        dict(zip(others, chosen, strict=True)) for chosen in itertools.product(*values)
    ]
    epochs = config.epochs_shown or (config.epochs,)
    shown = [
        group_members([member.until(epoch) for member in members], config.measure)
        for epoch in epochs
    ]
    columns = len(values[-1]) if values else 1
    rows = len(epochs) * len(combinations) // columns
    figure = Figure(
        figsize=(max(9, 4 * columns), 1.6 + (3.9 if rows == 1 else 2.6 * rows)),
        layout="constrained",
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.suptitle(title, weight="bold")
    looks = choose_looks(len(config.optimizers))
    settings = sorted({x.setting[key] for outcomes in shown for x in outcomes})
    is_log = settings[0] > 0 and settings[-1] > 10 * settings[0]
    places = dict(zip(settings, settings, strict=True))
    is_listed = isinstance(axes[key], list) and not is_log
    if is_listed:  # evenly spaced, 0.999 and 0.9999 are told apart
        places = {value: place for place, value in enumerate(settings)}
    low, high = find_limits([x.score for outcomes in shown for x in outcomes])
    cells = itertools.product(zip(epochs, shown, strict=True), combinations)
    for panel, ((epoch, outcomes), fixed) in zip(panels.flat, cells, strict=True):
        here = [x for x in outcomes if fixed.items() <= x.setting.items()]
        for number, group in enumerate(split_by_optimizer(here).items()):
            look = looks[number]
            _draw_line(panel, key, *group, places, number, look, high, not fixed)
        words = [f"{other} = {names[other][value]}" for other, value in fixed.items()]
        words += [f"after {epoch} epochs"] if config.epochs_shown else []
        panel.set_title(", ".join(words), fontsize="medium")
        panel.grid(alpha=0.3)
    panel = panels.flat[0]
    if is_listed:
        panel.set_xticks([*places.values()], [*name_values(settings).values()])
    elif is_log:
        panel.set_xscale("log")
        label_log(panel.xaxis)
    panel.set(yscale="log", ylim=(low / 1.1, high * 1.3))
    label_log(panel.yaxis)
    for row in panels:
        row[0].set_ylabel(MEASURES[config.measure])
    for panel in panels[-1]:
        panel.set_xlabel(key.replace("_", " "))
    lines, labels = panel.get_legend_handles_labels()
    if any(not x.score <= high for outcomes in shown for x in outcomes):
        lines.append(Line2D([], [], ls="", marker="x", color="0.3"))
        labels.append("diverged, or above the scale")
    figure.legend(lines, labels, loc="outside lower center", ncols=3)
    return figure


def find_limits(scores: Sequence[float]) -> tuple[float, float]:
    """Give the ends of a log scale on which what explodes leaves room for the rest."""
    finite = [score for score in scores if 0 < score < math.inf] or [1.0]
    low, high = min(finite), min(max(finite), 10 * float(np.median(finite)))
    return low, max(high, 1.1 * low)


def _draw_line(
    panel: Axes,
    key: str,
    name: str,
    group: list[Outcome],
    places: Mapping[float, float],
    number: int,
    look: dict[str, Any],
    high: float,
    alone: bool,
) -> None:
    best: dict[float, Outcome] = {}
    for outcome in sorted(group, key=lambda outcome: outcome.score):
        best.setdefault(outcome.setting[key], outcome)
    values = sorted(best)
    spreads = np.array([best[value].final(group[0].measure) for value in values])
    colour = look["color"]
    top = min(group, key=lambda outcome: outcome.score)
    marked = alone and not top.diverged
    words = name_values(values, 3)[top.setting[key]]
    label = f"{name} (best at {words})" if marked else name
    x = [places[value] for value in values]
    panel.plot(x, spreads[:, 0], **look, marker=".", label=label)
    panel.fill_between(x, *spreads[:, 1:].T, color=colour, alpha=0.2, lw=0)
    if marked:
        star = {"color": colour, "marker": "*", "s": 220, "zorder": 3}
        panel.scatter(places[top.setting[key]], top.score, **star, edgecolor="k")
    lost = [places[value] for value in values if not best[value].score <= high]
    marks = {"color": colour, "marker": "x", "s": 40}
    height = [0.95 - 0.05 * number] * len(lost)
    panel.scatter(lost, height, **marks, transform=panel.get_xaxis_transform())
