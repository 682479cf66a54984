"""The picture of paths: where they go on the surface, and how soon they arrive."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from adam_jax.experiments.pictures.drawing import (
    LIMIT,
    Line,
    Look,
    Panel,
    choose_looks,
    compose,
    draw_lines,
    to_chart,
)
from adam_jax.experiments.pictures.scales import name_values, scale_log
from adam_jax.experiments.trace.paths import NEAR, Trace
from adam_jax.experiments.trace.surfaces import Surface

STAR = "M0-1 .23-.31 .95-.31 .36.12 .59.81 0 .38-.59.81-.36.12-.95-.31-.23-.31Z"
MARKS = {
    "start": Look("#000000", width=0),
    "minimum": Look("#f0c000", width=0, shape=STAR),
}
WIDTH, HEIGHT = 350, 350  # of a panel
GRID, LEVELS = 2, 12  # greys for each pixel of a panel, along a side; contours
DECADES = 4  # of the loss, below the highest one drawn


def draw_traces(
    title: str, surface: Surface, traces: Mapping[str, Trace]
) -> alt.VConcatChart:
    """Draw the paths on the surface, and beside it two lines each over the steps.

    They are the loss and the distance that is left; where the loss changes from step
    to step, as in [R] Figure 1, x and the average regret.
    """
    legend = list_looks(traces)

    def chart_steps(
        title: str,
        values: Sequence[np.ndarray],
        scale: dict[str, Any],
        *others: Line,
    ) -> Panel:
        lines = [
            Line(name, range(len(own)), own.tolist(), look, marked=False)
            for (name, look), own in zip(legend.items(), values, strict=True)
        ]
        x = alt.X("x:Q", title="step", scale=alt.Scale(nice=False))
        chart = draw_lines([*lines, *others], x, "", scale)
        return Panel(title, "", chart, legend | MARKS)

    panels = [chart_surface(surface, traces)]
    if surface.step_loss is None:
        above = [trace.losses - lowest_loss(surface) for trace in traces.values()]
        left = [trace.distances for trace in traces.values()]
        near = Line("near", [0, surface.steps], [NEAR, NEAR], LIMIT, marked=False)
        name = "Distance to the nearest minimum"
        panels += [
            chart_steps("Loss above the lowest", above, _scale_log(above)),
            chart_steps(name, left, _scale_log(left), near),
        ]
    else:
        places = [trace.points[:, 0] for trace in traces.values()]
        regrets = [trace.regrets for trace in traces.values()]
        # Of the first few steps the mean is high, and of no interest.
        high = 1.2 * max(mean[len(mean) // 20 :].max() for mean in regrets)
        name = "Average regret: loss above the minimum's, so far"
        panels += [
            chart_steps("x: the best is -1, the worst 1", places, _scale(-1.05, 1.05)),
            chart_steps(name, regrets, _scale(0.0, float(high))),
        ]
    return compose(title, panels, 3, width=WIDTH, height=HEIGHT)


def chart_surface(surface: Surface, traces: Mapping[str, Trace]) -> Panel:
    """Chart contours, at equal steps of the loss's logarithm, and paths on them."""
    legend, lines = list_looks(traces), []
    for (name, look), trace in zip(legend.items(), traces.values(), strict=True):
        x, y = trace.points.T.tolist()
        lines.append(Line(name, x, y, look, marked=False))
    for name, points in (("minimum", surface.minima), ("start", (surface.start,))):
        x, y = np.transpose(points).tolist()
        lines.append(Line(name, x, y, MARKS[name], joined=False))
    x, y = (_scale(*ends) for ends in surface.bounds)
    chart = draw_lines(lines, alt.X("x:Q", title="x", **x), "y", y)
    # An image of the greys, which fills the panel.
    middle = {"x": alt.value(WIDTH / 2), "y": alt.value(HEIGHT / 2)}
    size = {"width": WIDTH, "height": HEIGHT, "aspect": False}
    greys = to_chart([{}]).mark_image(url=_paint(surface), **size).encode(**middle)
    title = "Paths, on contours of the loss (log scale)"
    return Panel(title, "", greys + chart, legend | MARKS)


def list_looks(traces: Mapping[str, Trace]) -> dict[str, Look]:
    """Give the look of each path, by its name and its learning rate."""
    rates = name_values(x.optimizer.learning_rate for x in traces.values())
    labels = (f"{k} ({rates[v.optimizer.learning_rate]})" for k, v in traces.items())
    return dict(zip(labels, choose_looks(len(traces)), strict=True))


def lowest_loss(surface: Surface) -> float:
    """Give the loss at the minima."""
    return float(surface.loss(jnp.array(surface.minima[0])))


def _paint(surface: Surface) -> str:
    """Paint the contours in pale greys, on which paths stand out, as a URL."""
    (left, right), (bottom, top) = surface.bounds
    x = jnp.linspace(left, right, GRID * WIDTH)
    y = jnp.linspace(top, bottom, GRID * HEIGHT)
    losses = jax.vmap(jax.vmap(surface.loss))(jnp.stack(jnp.meshgrid(x, y), axis=-1))
    above = np.asarray(losses, np.float64) - lowest_loss(surface)
    allowed = np.abs(x) <= surface.limit
    high = above[:, allowed].max()
    shares = 1 + np.log10(np.maximum(above / high, 10.0**-DECADES)) / DECADES
    levels = np.ceil(shares * LEVELS)
    below, beside = (
        np.diff(levels, axis=n, append=levels.take([-1], n)) for n in (0, 1)
    )
    greys = 255 - 6 * levels - 14 * ((below != 0) | (beside != 0))
    greys[:, ~allowed] = 255
    file = io.BytesIO()
    Image.fromarray(greys.astype(np.uint8)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _scale(low: float, high: float) -> dict[str, Any]:
    return {"scale": alt.Scale(domain=[low, high], nice=False), "axis": alt.Axis()}


def _scale_log(lines: Sequence[np.ndarray]) -> dict[str, Any]:
    """Show no more decades than rounding, and no higher than a divergence, needs."""
    values = np.concatenate(lines)
    first = float(max(line[0] for line in lines) or values.max())
    return scale_log(values[values > 0], 1e-10 * first, 1e3 * first)
