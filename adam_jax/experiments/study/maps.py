"""The picture of a sweep: the final loss over one hyperparameter, or over pairs."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adam_jax.experiments.study.config import Range, SweepConfig
from adam_jax.experiments.study.curves import COLOURS, label_decades
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import Outcome, group_members

DIVERGED = "0.75"
COLUMNS = 4  # panels side by side
TICKS = 12  # numbers along an axis that can be read


def draw_sweep(config: SweepConfig, members: Sequence[Member]) -> Figure:
    """Draw the final test loss, a mean over seeds, over what the sweep varies.

    One hyperparameter gives a curve for each optimizer. Several give a heat map for
    each pair and optimizer, of the best over all others; random draws, their points.
    """
    outcomes = group_members(members)
    keys = list(config.grid.axes)
    if len(keys) == 1:
        return _draw_lines(config, keys[0], outcomes)
    return _draw_pairs(config, keys, outcomes)


def _title(config: SweepConfig, what: str) -> str:
    seeds = len(config.seed_list)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    return (
        f"{config.name}: {config.model.name} on {config.data}, {what} after "
        f"{config.epochs} epochs{over}"
    )


def _split(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Group by optimizer, in order."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.optimizer, []).append(outcome)
    return groups


def _draw_lines(config: SweepConfig, key: str, outcomes: list[Outcome]) -> Figure:
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panel = figure.subplots()
    figure.suptitle(_title(config, "test loss"), weight="bold")
    finite = [x.score for x in outcomes if 0 < x.score < math.inf]
    top = 2 * max(finite, default=1.0)
    for number, (name, group) in enumerate(_split(outcomes).items()):
        group = sorted(group, key=lambda outcome: outcome.setting[key])
        colour = COLOURS[number % len(COLOURS)]
        values = [outcome.setting[key] for outcome in group]
        spreads = np.array([outcome.final("test_loss") for outcome in group])
        panel.plot(values, spreads[:, 0], ".-", color=colour, label=name)
        panel.fill_between(values, *spreads[:, 1:].T, color=colour, alpha=0.2, lw=0)
        lost = [outcome.setting[key] for outcome in group if outcome.diverged]
        marks = {"color": colour, "marker": "x", "s": 40, "clip_on": False}
        label = f"{name}, diverged" if lost else None
        panel.scatter(lost, [top * 1.1**number] * len(lost), **marks, label=label)
        best = min(group, key=lambda outcome: outcome.score)
        if not best.diverged:
            star = {"color": colour, "marker": "*", "s": 220, "zorder": 3}
            label = f"{name}, best: {best.setting[key]:.3g}"
            panel.scatter(
                best.setting[key], best.score, **star, edgecolor="k", label=label
            )
    if _spans_decades([outcome.setting[key] for outcome in outcomes]):
        panel.set_xscale("log")
    panel.set(xlabel=key, ylabel="test loss", yscale="log")
    label_decades(panel.yaxis, min(finite, default=1.0), top)
    panel.grid(alpha=0.3)
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    return figure


def _draw_pairs(
    config: SweepConfig, keys: Sequence[str], outcomes: list[Outcome]
) -> Figure:
    pairs = list(itertools.combinations(keys, 2))
    groups = _split(outcomes)
    cells = [(name, pair) for name in groups for pair in pairs]
    columns = min(COLUMNS, len(cells) if len(pairs) == 1 else len(pairs))
    rows = math.ceil(len(cells) / columns)
    figure = Figure(
        figsize=(1.2 + 4.6 * columns, 0.9 + 4.2 * rows), layout="constrained"
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    others = ", best over the others" if len(keys) > 2 and config.draws is None else ""
    figure.suptitle(_title(config, "test loss") + others, weight="bold")
    finite = [x.score for x in outcomes if 0 < x.score < math.inf] or [1.0]
    # Beyond this all settings are equally useless: the colours are for the others.
    low, high = min(finite), min(max(finite), 30 * min(finite))
    style = {"norm": LogNorm(low, max(high, 1.01 * low)), "cmap": "viridis_r"}
    draw = _draw_map if config.draws is None else _draw_points
    for panel, (name, (y, x)) in zip(panels.flat, cells, strict=False):
        draw(panel, config, groups[name], x, y, style)
        panel.set(xlabel=x, ylabel=y, title=name)
    for panel in panels.flat[len(cells) :]:
        panel.axis("off")
    mappable = panels.flat[0].collections or panels.flat[0].images
    bar = figure.colorbar(
        mappable[0], ax=panels, shrink=0.8, extend="max" if max(finite) > high else None
    )
    bar.set_label("test loss (framed or starred: the best; grey with x: diverged)")
    label_decades(bar.ax.yaxis, low, high)
    return figure


def _draw_map(
    panel: Axes,
    config: SweepConfig,
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
    for axis, values in ((panel.xaxis, columns), (panel.yaxis, rows)):
        shown_every = math.ceil(len(values) / TICKS)
        places = range(0, len(values), shown_every)
        axis.set_ticks(places, [f"{values[place]:.4g}" for place in places])
    panel.tick_params("x", rotation=90 if len(columns) > 4 else 0)


def _draw_points(
    panel: Axes,
    config: SweepConfig,
    group: Sequence[Outcome],
    x: str,
    y: str,
    style: dict[str, Any],
) -> None:
    # The best last, on top of the others.
    ranked = sorted(group, key=lambda outcome: outcome.score, reverse=True)
    kept = [outcome for outcome in ranked if not outcome.diverged]
    lost = [outcome for outcome in ranked if outcome.diverged]

    def place(outcomes: Sequence[Outcome]) -> list[list[float]]:
        return [[outcome.setting[key] for outcome in outcomes] for key in (x, y)]

    colours = [outcome.score for outcome in kept]
    panel.scatter(*place(kept), c=colours, s=45, edgecolor="0.3", lw=0.5, **style)
    panel.scatter(*place(lost), color="0.6", marker="x", s=30)
    marks = {"marker": "*", "s": 260, "edgecolor": "#d62728", "lw": 1.5}
    panel.scatter(*place(kept[-1:]), c=colours[-1:], **marks, **style)
    for key, set_scale in ((x, panel.set_xscale), (y, panel.set_yscale)):
        axis = config.grid.axes[key]
        if isinstance(axis, Range) and axis.scale == "log":
            set_scale("log")
    panel.grid(alpha=0.3)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 10 * min(values)
