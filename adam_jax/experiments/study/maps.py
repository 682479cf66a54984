"""The picture of a sweep: heat maps of what came out over pairs of hyperparameters."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adam_jax.experiments.drawing import label_log, name_values
from adam_jax.experiments.study.config import MEASURES, Range, SweepConfig
from adam_jax.experiments.study.lines import draw_lines
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    group_members,
    split_by_optimizer,
)

DIVERGED = "0.75"
COLUMNS = 4  # panels side by side
TICKS = 12  # numbers along an axis that can be read


def draw_sweep(config: SweepConfig, members: Sequence[Member]) -> Figure:
    """Draw the final measure, a mean over seeds, over what the sweep varies.

    One hyperparameter gives a curve for each optimizer. Several give a heat map for
    each pair and optimizer, of the best over all others; random draws, their points.
    """
    seeds = len(config.seed_list)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    title = f"{config.heading}, {MEASURES[config.measure]}"
    if not config.epochs_shown:
        title += f" after {config.epochs} epochs"
    axes = [config.list_axes(candidate) for candidate in config.optimizers]
    if config.lines or all(
        len(own) == 1 and own.keys() == axes[0].keys() for own in axes
    ):
        return draw_lines(config, members, title + over)
    return _draw_pairs(config, group_members(members, config.measure), title + over)


def _draw_pairs(config: SweepConfig, outcomes: list[Outcome], title: str) -> Figure:
    groups = split_by_optimizer(outcomes)
    axes = {
        candidate.title: config.list_axes(candidate) for candidate in config.optimizers
    }
    cells = [
        (name, pair)
        for name in groups
        for pair in itertools.combinations(axes[name], 2)
    ]
    most = max(map(len, axes.values()))
    columns = min(COLUMNS, len(cells) if most == 2 else math.comb(most, 2))
    rows = math.ceil(len(cells) / columns)
    figure = Figure(
        figsize=(1.2 + 4.6 * columns, 0.9 + 4.2 * rows), layout="constrained"
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    others = ", best over the others" if most > 2 and config.draws is None else ""
    figure.suptitle(title + others, weight="bold")
    finite = [x.score for x in outcomes if 0 < x.score < math.inf] or [1.0]
    # Beyond this all settings are equally useless: the colours are for the others.
    low, high = min(finite), min(max(finite), 30 * min(finite))
    style = {"norm": LogNorm(low, max(high, 1.01 * low)), "cmap": "viridis_r"}
    draw = _draw_map if config.draws is None else _draw_points
    for panel, (name, (y, x)) in zip(panels.flat, cells, strict=False):
        draw(panel, axes[name], groups[name], x, y, style)
        panel.set(xlabel=x, ylabel=y, title=name)
    for panel in panels.flat[len(cells) :]:
        panel.axis("off")
    mappable = panels.flat[0].images or panels.flat[0].collections
    bar = figure.colorbar(
        mappable[0], ax=panels, shrink=0.8, extend="max" if max(finite) > high else None
    )
    bar.set_label(MEASURES[config.measure])
    random = "star: the best; x: diverged"
    key = "frame: the best; dot: the best of a row; grey with x: diverged"
    figure.supxlabel(key if config.draws is None else random, fontsize="medium")
    label_log(bar.ax.yaxis)
    return figure


def _draw_map(
    panel: Axes,
    axes: Mapping[str, Range | list[float]],
    group: Sequence[Outcome],
    x: str,
    y: str,
    style: dict[str, Any],
) -> None:
    columns, rows = (sorted({o.setting[key] for o in group}) for key in (x, y))
    scores = np.full((len(rows), len(columns)), math.inf)
    for outcome in group:
        cell = rows.index(outcome.setting[y]), columns.index(outcome.setting[x])
        scores[cell] = min(scores[cell], outcome.score)
    cmap = colormaps[style["cmap"]].with_extremes(bad=DIVERGED)
    shown = np.ma.masked_invalid(scores)
    panel.imshow(shown, cmap=cmap, norm=style["norm"], aspect="auto", origin="lower")
    for row, column in np.argwhere(np.isinf(scores)):
        panel.text(column, row, "x", ha="center", va="center", color="0.35")
    if np.isfinite(scores).any():
        row, column = np.unravel_index(scores.argmin(), scores.shape)
        corner = (float(column) - 0.5, float(row) - 0.5)
        frame = {"fill": False, "edgecolor": "#d62728", "lw": 2.5, "clip_on": False}
        panel.add_patch(Rectangle(corner, 1, 1, **frame))
    rows_left = np.flatnonzero(np.isfinite(scores).any(axis=1))
    dots = scores[rows_left].argmin(axis=1), rows_left
    panel.scatter(*dots, s=14, color="#d62728", zorder=3)
    for axis, values in ((panel.xaxis, columns), (panel.yaxis, rows)):
        shown_every = math.ceil(len(values) / TICKS)
        places = range(0, len(values), shown_every)
        words = [*name_values(values, 3).values()]
        axis.set_ticks(places, [words[place] for place in places])
    panel.tick_params("x", rotation=90 if len(columns) > 4 else 0)


def _draw_points(
    panel: Axes,
    axes: Mapping[str, Range | list[float]],
    group: Sequence[Outcome],
    x: str,
    y: str,
    style: dict[str, Any],
) -> None:
    # The best last, on top of the others.
    ranked = sorted(group, key=lambda outcome: outcome.score, reverse=True)
    kept = [outcome for outcome in ranked if not outcome.diverged]
    lost = [outcome for outcome in ranked if outcome.diverged]

    # What is listed, such as 0.999 and 0.9999, is evenly spaced: so it is told apart.
    listed = {
        key: sorted(axis) for key in (x, y) if isinstance(axis := axes[key], list)
    }

    def place(outcomes: Sequence[Outcome]) -> list[list[float]]:
        values = [[outcome.setting[key] for outcome in outcomes] for key in (x, y)]
        return [
            list(map(listed[key].index, own)) if key in listed else own
            for key, own in zip((x, y), values, strict=True)
        ]

    colours = [outcome.score for outcome in kept]
    panel.scatter(*place(kept), c=colours, s=45, edgecolor="0.3", lw=0.5, **style)
    panel.scatter(*place(lost), color="0.6", marker="x", s=30)
    marks = {"marker": "*", "s": 260, "edgecolor": "#d62728", "lw": 1.5}
    panel.scatter(*place(kept[-1:]), c=colours[-1:], **marks, **style)
    for key, axis, set_scale in (
        (x, panel.xaxis, panel.set_xscale),
        (y, panel.yaxis, panel.set_yscale),
    ):
        if key in listed:
            names = [*name_values(listed[key]).values()]
            axis.set_ticks(range(len(names)), names)
        elif isinstance(range_ := axes[key], Range) and range_.scale == "log":
            set_scale("log")
            label_log(axis)
    panel.grid(alpha=0.3)
