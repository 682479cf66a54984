"""The charts of a study: curves over seeds, and the final loss over the settings."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from adam_jax.experiments.metrics import ACCURACY
from adam_jax.experiments.report.charts import (
    COLOURS,
    Chart,
    Line,
    draw_lines,
    draw_shares,
    style,
    to_plotly,
)
from adam_jax.experiments.report.study import Trial, label, to_words, varied

SHOWN = 12  # lines that can be told apart in one chart
DECADES = 2  # that the colours of a heat map span, from the best loss on
LOSSES = {"test_loss": "test loss", "train_loss": "training loss"}
SEEDS = "Line: the mean over the seeds; band: from the lowest to the highest."


def chart_curves(trials: Sequence[Trial]) -> list[Chart]:
    """Chart loss and accuracy of the best trials over the epochs."""
    shown = trials[:SHOWN]
    words = f" The best {SHOWN} of {len(trials)}." if len(trials) > SHOWN else ""
    if any(not math.isfinite(trial.final("train_loss")) for trial in shown):
        words += " A line ends where one of its seeds diverges."

    def lines(curve: str) -> list[Line]:
        return [
            _over_seeds(label(trial, trials), trial.curves[curve], number)
            for number, trial in enumerate(shown)
        ]

    charts = [
        Chart(title, SEEDS + words, draw_lines(lines(curve), "epoch", "loss"))
        for title, curve in (
            ("Training loss", "train_loss"),
            ("Test loss", "test_loss"),
        )
    ]
    if ACCURACY in shown[0].curves:
        caption = f"The share of the test labels that are found. {SEEDS}{words}"
        figure = draw_shares(lines(ACCURACY), "epoch")
        charts.append(Chart("Accuracy", caption, figure))
    return charts


def chart_settings(trials: Sequence[Trial]) -> list[Chart]:
    """Chart the final loss over the numeric hyperparameters that vary.

    One that varies is drawn as lines, two on a grid as heat maps, and others as dots,
    a chart for each.
    """
    by_key: dict[str, list[Trial]] = {}
    charts = []
    for optimizer in dict.fromkeys(trial.optimizer for trial in trials):
        own = [trial for trial in trials if trial.optimizer == optimizer]
        keys = [key for key in varied(trials, optimizer) if _is_numeric(own, key)]
        if len(keys) == 2 and _is_grid(own, keys):
            charts += [_draw_heat_map(own, keys, curve) for curve in LOSSES]
        else:
            for key in keys:
                by_key.setdefault(key, []).extend(own)
    for key, of_key in by_key.items():
        charts += [_draw_over_setting(of_key, key, curve) for curve in LOSSES]
    return charts


def _over_seeds(name: str, curve: np.ndarray, number: int) -> Line:
    low, mean, high = (f(axis=0).tolist() for f in (curve.min, curve.mean, curve.max))
    bands = [(low, high)] if len(curve) > 1 else []
    return Line(name, range(1, len(mean) + 1), mean, *style(number), bands=bands)


def _is_numeric(trials: Sequence[Trial], key: str) -> bool:
    values = [trial.setting.get(key) for trial in trials]
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def _is_grid(trials: Sequence[Trial], keys: Sequence[str]) -> bool:
    """Tell whether most pairs of values are there, and each once."""
    pairs = [tuple(trial.setting[key] for key in keys) for trial in trials]
    across, up = (len(set(values)) for values in zip(*pairs, strict=True))
    return len(set(pairs)) == len(pairs) and 2 * len(pairs) >= across * up


def _draw_over_setting(trials: Sequence[Trial], key: str, curve: str) -> Chart:
    """Draw a line for each optimizer, or dots where something else varies as well."""
    places = sorted({trial.setting[key] for trial in trials})
    axis, scale = _choose_axis(places)
    lines = []
    optimizers = list(dict.fromkeys(trial.optimizer for trial in trials))
    for number, optimizer in enumerate(optimizers):
        own = [trial for trial in trials if trial.optimizer == optimizer]
        own.sort(key=lambda trial: trial.setting[key])
        ends = [trial.curves[curve][:, -1] for trial in own]
        low, mean, high = (
            [float(summary(end)) for end in ends]
            for summary in (np.min, np.mean, np.max)
        )
        x = [scale(trial.setting[key]) for trial in own]
        joined = varied(trials, optimizer) == [key]
        bands = [(low, high)] if joined and any(len(end) > 1 for end in ends) else []
        colour, dash = style(number)
        listed = len(optimizers) > 1
        line = Line(optimizer, x, mean, colour, dash, bands, listed, joined)
        lines.append(line)
    figure = draw_lines(lines, key, f"final {LOSSES[curve]}")
    figure.update_xaxes(axis)
    seeds = SEEDS if all(line.joined for line in lines) else "A dot is one setting."
    caption = f"After the last epoch. {seeds}{_count_diverged(trials, curve)}"
    return Chart(f"Final {LOSSES[curve]} over {key}", caption, figure)


def _draw_heat_map(trials: Sequence[Trial], keys: Sequence[str], curve: str) -> Chart:
    """Draw the final loss over two hyperparameters, its best cell framed."""
    across, up = (sorted({trial.setting[key] for trial in trials}) for key in keys)
    losses = {
        tuple(trial.setting[key] for key in keys): trial.final(curve)
        for trial in trials
    }
    cells = [[losses.get((x, y), math.nan) for x in across] for y in up]
    finite = {pair: loss for pair, loss in losses.items() if math.isfinite(loss)}
    best = min(finite, key=finite.__getitem__, default=None)
    log = all(loss > 0 for loss in finite.values())
    figure = go.Figure()
    figure.add_heatmap(
        x=[*to_words(across).values()],
        y=[*to_words(up).values()],
        z=[[math.log10(z) if log and z > 0 else z for z in row] for row in cells],
        text=[
            [f"{losses[x, y]:.4g}" if (x, y) in losses else "" for x in across]
            for y in up
        ],
        colorscale="Viridis",
        xgap=1,
        ygap=1,
        texttemplate="%{text}" if len(across) <= 6 else None,
        hovertemplate=f"{to_plotly(keys[0])} %{{x}}<br>{to_plotly(keys[1])} %{{y}}<br>"
        f"{LOSSES[curve]} %{{text}}<extra></extra>",
        colorbar={"thickness": 12, "title": {"text": "loss"}},
    )
    caption = "After the last epoch, the mean over the seeds."
    caption += _count_diverged(trials, curve)
    if best is not None:
        low, high = finite[best], max(finite.values())
        if log:
            top = min(high, low * 10**DECADES)
            if top < high:
                caption += f" The colours end at {10**DECADES} times the best."
            figure.update_traces(_log_colours(low, top))
        x, y = across.index(best[0]), up.index(best[1])
        figure.add_shape(
            type="rect",
            **{"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5},
            line={"color": COLOURS[1], "width": 4},
        )
        caption += f" Framed: the best, {finite[best]:.4g}."
    figure.update_layout(
        template={},
        xaxis={"title": {"text": to_plotly(keys[0])}, "type": "category"},
        yaxis={"title": {"text": to_plotly(keys[1])}, "type": "category"},
    )
    title = f"Final {LOSSES[curve]} of {trials[0].optimizer}"
    return Chart(title, caption, figure)


def _choose_axis(places: Sequence[Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Choose the axis of a hyperparameter, and how its values are given to it."""
    if places[0] > 0 and places[-1] >= 10 * places[0]:
        return {"type": "log", "exponentformat": "power"}, float
    if len(places) <= SHOWN:  # 0, or 0.9 beside 0.999: evenly spaced they can be told
        names = to_words(places)
        axis = {"type": "category", "categoryarray": [*names.values()]}
        return axis, names.__getitem__
    return {"type": "linear"}, float


def _count_diverged(trials: Sequence[Trial], curve: str) -> str:
    lost = sum(not math.isfinite(trial.final(curve)) for trial in trials)
    return f" {lost} of {len(trials)} settings diverged." if lost else ""


def _log_colours(low: float, high: float) -> dict[str, Any]:
    """Set the range of the colours, and tick them with losses, not their logarithms."""
    ends = math.log10(low), math.log10(high)
    ticks = np.linspace(*ends, 5).tolist()
    words = [f"{10**tick:.3g}" for tick in ticks]
    bar = {"tickvals": ticks, "ticktext": words}
    return {"zmin": ends[0], "zmax": ends[1], "colorbar": bar}
