"""The picture of paths: where they go on the surface, and how soon they arrive."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adam_jax.experiments.drawing import choose_looks, label_log, name_values
from adam_jax.experiments.trace.paths import NEAR, Trace
from adam_jax.experiments.trace.surfaces import Surface

MARK = {"mec": "black", "ls": ""}
START: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "white", **MARK}
MINIMUM: dict[str, Any] = {"marker": "*", "ms": 16, "mfc": "gold", **MARK}
GRID, LEVELS = 400, 13
DECADES = 4  # of the loss, below the highest one drawn


def draw_traces(title: str, surface: Surface, traces: Mapping[str, Trace]) -> Figure:
    """Draw the paths on the surface, and beside it two lines each over the steps.

    They are the loss and the distance that is left; where the loss changes from step
    to step, as in [R] Figure 1, x and the average regret.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    panels = figure.subplot_mosaic(
        [["paths", "upper"], ["paths", "lower"]], width_ratios=(1.3, 1)
    )
    figure.suptitle(title, weight="bold")
    draw_surface(panels["paths"], surface)
    for line, trace in zip(
        draw_lines(panels["paths"], traces), traces.values(), strict=True
    ):
        line.set_data(*trace.points.T)
    upper, lower = panels["upper"], panels["lower"]
    if surface.step_loss is None:
        above = [trace.losses - lowest_loss(surface) for trace in traces.values()]
        upper.set(title="Loss above the lowest", ylabel="loss - lowest loss")
        _draw_over_steps(upper, above)
        _scale_log(upper, above)
        distances = [trace.distances for trace in traces.values()]
        lower.set(title="Distance to the nearest minimum", ylabel="distance")
        _draw_over_steps(lower, distances)
        _scale_log(lower, distances)
        lower.axhline(NEAR, color="0.3", lw=1, ls="--")
    else:
        upper.set(title="x: the best is -1, the worst 1", ylabel="x")
        _draw_over_steps(upper, [trace.points[:, 0] for trace in traces.values()])
        regrets = [trace.regrets for trace in traces.values()]
        lower.set(title="Average regret: loss above the minimum's, so far")
        lower.set(ylabel="mean over the steps so far")
        _draw_over_steps(lower, regrets)
        # Of the first few steps the mean is high, and of no interest.
        lower.set_ylim(0, 1.2 * max(mean[len(mean) // 20 :].max() for mean in regrets))
    add_legend(figure, traces, columns=8)
    return figure


def draw_surface(panel: Axes, surface: Surface) -> None:
    """Draw contours, at equal steps of the logarithm of the loss, start and minima."""
    (left, right), (bottom, top) = surface.bounds
    allowed = np.clip(surface.bounds, -surface.limit, surface.limit)
    x, y = np.linspace(allowed[:, 0], allowed[:, 1], GRID).T
    points = jnp.stack(jnp.meshgrid(jnp.array(x), jnp.array(y)), axis=-1)
    losses = jax.vmap(jax.vmap(surface.loss))(points)
    above = np.asarray(losses, np.float64) - lowest_loss(surface)
    high = above.max()
    low = high / 10**DECADES
    levels = np.geomspace(low, high, LEVELS)
    # The paler greys: what is drawn on them stands out.
    norm = LogNorm(low, high * (high / low) ** 1.5)
    above = np.maximum(above, low)
    panel.contourf(x, y, above, levels=levels, norm=norm, cmap="Greys")
    panel.contour(x, y, above, levels=levels[2:], colors="0.7", linewidths=0.4)
    panel.plot(*np.transpose(surface.minima), **MINIMUM, zorder=5)
    panel.plot(*surface.start, **START, zorder=5)
    panel.set(
        title="Paths, on contours of the loss (log scale)", xlabel="x", ylabel="y"
    )
    panel.set(xlabel="x", ylabel="y", xlim=(left, right), ylim=(bottom, top))


def lowest_loss(surface: Surface) -> float:
    """Give the loss at the minima."""
    return float(surface.loss(jnp.array(surface.minima[0])))


def draw_lines(panel: Axes, traces: Mapping[str, Trace]) -> list[Line2D]:
    """Draw a line for each path; it has no points yet."""
    return [panel.plot([], [], **style)[0] for style in choose_looks(len(traces))]


def add_legend(figure: Figure, traces: Mapping[str, Trace], columns: int) -> None:
    """Explain the lines and the marks below the panels."""
    rates = name_values(x.optimizer.learning_rate for x in traces.values())
    labels = (f"{k} ({rates[v.optimizer.learning_rate]})" for k, v in traces.items())
    lines = [
        Line2D([], [], **style, label=label)
        for style, label in zip(choose_looks(len(traces)), labels, strict=True)
    ]
    marks = [
        Line2D([], [], **START, label="start"),
        Line2D([], [], **MINIMUM, label="minimum"),
    ]
    figure.legend(
        handles=[*lines, *marks],
        title="optimizer (learning rate)",
        loc="outside lower center",
        ncols=columns,
    )


def _draw_over_steps(panel: Axes, lines: Sequence[np.ndarray]) -> None:
    for style, values in zip(choose_looks(len(lines)), lines, strict=True):
        panel.plot(values, **style)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)


def _scale_log(panel: Axes, lines: Sequence[np.ndarray]) -> None:
    """Show no more decades than rounding, and no higher than a divergence, needs."""
    values = np.concatenate(lines)
    shown = values[values > 0]
    if shown.size:
        first = max(line[0] for line in lines) or shown.max()
        panel.set_yscale("log")
        panel.set_ylim(
            max(shown.min(), 1e-10 * first) / 2, 2 * min(shown.max(), 1e3 * first)
        )
        label_log(panel.yaxis)
