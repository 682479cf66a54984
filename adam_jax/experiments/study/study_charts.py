"""The charts of a study: curves over seeds, and what came out over the settings."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import numpy as np

from adam_jax.experiments.metrics import ACCURACY
from adam_jax.experiments.pictures.drawing import (
    Line,
    Panel,
    choose_looks,
    compose,
    draw_panel,
    limit_line,
    to_chart,
)
from adam_jax.experiments.pictures.run_charts import draw_epochs, draw_metric
from adam_jax.experiments.pictures.scales import name_values, scale_log, settings_axis
from adam_jax.experiments.study.grids import list_values
from adam_jax.experiments.study.maps import CROSS, chart_map, chart_points
from adam_jax.experiments.study.members import LOSSES, Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    count_diverged,
    group_members,
    label,
    rank,
    split_by_optimizer,
    varied,
)
from adam_jax.experiments.study.study_config import MEASURES, CompareConfig, SweepConfig

SEEDS = "Line: the mean over the seeds; band: from the lowest to the highest."
SHOWN = 12  # lines that can be told apart in one chart
RESOLUTION = 1e-8  # of a loss in float32: what is below is rounding
COLUMNS = 4  # panels side by side
SUMMARIES = np.min, np.mean, np.max


def draw_curves(
    config: CompareConfig,
    members: Sequence[Member],
    baselines: Mapping[str, float] | None = None,
) -> alt.VConcatChart:
    """Draw the losses, the metrics, and their baselines over the epochs."""
    seeds = len(config.seed_list)
    over = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    panels = [
        panel._replace(caption="")
        for panel in chart_curves(group_members(members), None, baselines)
    ]
    return compose(f"{config.heading}, {over}", panels, len(panels), height=340)


def chart_curves(
    outcomes: Sequence[Outcome],
    most: int | None = SHOWN,
    baselines: Mapping[str, float] | None = None,
) -> list[Panel]:
    """Chart losses and metrics over the epochs: means, in bands from min to max.

    Of more outcomes than `most` the first ones are drawn, which should be the best; and
    of the baselines, which are as in Problem, those that a curve comes near.
    """
    shown = outcomes[:most]
    caption = SEEDS
    if len(shown) < len(outcomes):
        caption += f" The best {most} of {len(outcomes)}."
    if any(outcome.diverged for outcome in shown):
        caption += " A line ends where one of its seeds diverges."
    names = []
    for outcome in shown:
        diverged = f", {outcome.diverged} diverged" if outcome.diverged else ""
        names.append(label(outcome, outcomes) + diverged)
    looks = choose_looks(len(shown))

    def over_seeds(curve: str) -> list[Line]:
        lines = []
        for name, outcome, look in zip(names, shown, looks, strict=True):
            curves = outcome.curves(curve)
            low, mean, high = (f(curves, axis=0).tolist() for f in SUMMARIES)
            bands = [(low, high)] if len(curves) > 1 else []
            lines.append(Line(name, range(1, len(mean) + 1), mean, look, bands))
        return lines

    panels = []
    for curve in LOSSES:
        lines = over_seeds(curve)
        ceiling = _find_ceiling(line.y[0] for line in lines)
        values = [y for line in lines for y in line.y if y != 0]
        top = max((y for y in values if 0 < y < ceiling), default=1.0)
        scale = scale_log(values, top * RESOLUTION, ceiling)
        title = MEASURES[curve].capitalize()
        panels.append(draw_epochs(title, caption, lines, "loss", scale))
    for name in shown[0].members[0].metrics:
        lines, title = over_seeds(name), f"Test {name}"
        values = [y for line in lines for y in line.y if math.isfinite(y)]
        base = (baselines or {}).get(name, math.nan)
        near = 0.05 * (1 if name == ACCURACY else np.ptp(values or [0.0]))
        if values and min(values) - near <= base <= max(values) + near:
            ends = [0.5, len(lines[0].x) + 0.5]
            lines.append(limit_line("baseline", ends, base))
            title += "; dashed: without a model"
        panels.append(draw_metric(title, caption, lines, name))
    return panels


def draw_sweep(config: SweepConfig, members: Sequence[Member]) -> alt.VConcatChart:
    """Draw the final measure, a mean over seeds, over what the sweep varies.

    One hyperparameter gives a curve for each optimizer. Several give a heat map for
    each pair and optimizer, of the best over all others; random draws, their points.
    """
    seeds = len(config.seed_list)
    title = f"{config.heading}, {MEASURES[config.measure]}"
    if not config.epochs_shown:
        title += f" after {config.epochs} epochs"
    title += f", mean of {seeds} seeds" if seeds > 1 else ""
    axes = {x.title: config.list_axes(x) for x in config.optimizers}
    most, first = max(map(len, axes.values())), next(iter(axes.values()))
    if config.lines:
        return _draw_lines(config, members, title, *config.grid.axes)
    if most == 1 and all(own.keys() == first.keys() for own in axes.values()):
        return _draw_lines(config, members, title, *first)
    outcomes = group_members(members, config.measure)
    groups = split_by_optimizer(outcomes).items()
    key = "ring: the best; x: diverged"
    if most == 1:  # and each optimizer has another one
        panels = [
            chart_setting(own, next(iter(axes[optimizer])), ringed=True)._replace(
                title=optimizer, caption=""
            )
            for optimizer, own in groups
        ]
    else:
        chart = chart_map if config.draws is None else chart_points
        panels = [
            chart(own, x, y, outcomes)._replace(title=optimizer, caption="")
            for optimizer, own in groups
            for y, x in itertools.combinations(axes[optimizer], 2)
        ]
    if config.draws is None and most > 1:
        key = "frame: the best; dot: the best of a row; grey with x: diverged"
        title += ", best over the others" if most > 2 else ""
    columns = min(COLUMNS, len(panels) if most <= 2 else math.comb(most, 2))
    return compose(title, panels, columns, key, width=330, height=300)


def _draw_lines(
    config: SweepConfig, members: Sequence[Member], title: str, key: str, *others: str
) -> alt.VConcatChart:
    """Draw a curve for each optimizer over a hyperparameter.

    Each combination of the others has its panel, after each of the epochs shown. An
    optimizer that has a grid of its own is drawn at the best of its settings.
    """
    values = [sorted(list_values(config.grid.axes[other])) for other in others]
    names = dict(zip(others, map(name_values, values), strict=True))
    shown = {
        epoch: group_members([x.until(epoch) for x in members], config.measure)
        for epoch in config.epochs_shown or (config.epochs,)
    }
    every = [outcome for outcomes in shown.values() for outcome in outcomes]
    panels = []
    combinations = [
        dict(zip(others, chosen, strict=True)) for chosen in itertools.product(*values)
    ]
    for (epoch, outcomes), fixed in itertools.product(shown.items(), combinations):
        words = [f"{other} = {names[other][value]}" for other, value in fixed.items()]
        words += [f"after {epoch} epochs"] if config.epochs_shown else []
        here = [x for x in outcomes if fixed.items() <= x.setting.items()]
        panel = chart_setting(here, key, every, ringed=not fixed)
        panels.append(panel._replace(title=", ".join(words), caption=""))
    columns = len(values[-1]) if values else 1
    size = {"width": max(300, 700 // columns), "height": 200 if others else 340}
    ceiling = _find_ceiling(outcome.score for outcome in every)
    lost = any(not outcome.score <= ceiling for outcome in every)
    about = "x: diverged, or above the scale" if lost else ""
    return compose(title, panels, columns, about, **size)


def chart_settings(outcomes: Sequence[Outcome]) -> list[Panel]:
    """Chart the final losses over the hyperparameters that vary.

    One that varies is drawn as lines, two on a grid as heat maps, and others as dots,
    a chart for each.
    """
    by_key: dict[str, list[Outcome]] = {}
    panels = []
    for optimizer, own in split_by_optimizer(outcomes).items():
        keys = [
            key
            for key in varied(outcomes, optimizer)
            if all(key in outcome.setting for outcome in own)
        ]
        if len(keys) == 2 and _is_grid(own, *keys):
            x, y = keys
            panels += [chart_map(by_loss, x, y) for by_loss in _by_loss(own)]
        else:
            for key in keys:
                by_key.setdefault(key, []).extend(own)
    for key, of_key in by_key.items():
        panels += [chart_setting(by_loss, key) for by_loss in _by_loss(of_key)]
    return panels


def _by_loss(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Give outcomes by their test loss, and by their training loss."""
    return [[x._replace(measure=loss) for x in outcomes] for loss in LOSSES[::-1]]


def _is_grid(outcomes: Sequence[Outcome], x: str, y: str) -> bool:
    """Tell whether most pairs of values are there, and each once."""
    pairs = [(outcome.setting[x], outcome.setting[y]) for outcome in outcomes]
    across, up = map(set, zip(*pairs, strict=True))
    return len(set(pairs)) == len(pairs) and 2 * len(pairs) >= len(across) * len(up)


def chart_setting(
    outcomes: Sequence[Outcome],
    key: str,
    every: Sequence[Outcome] | None = None,
    ringed: bool = False,
) -> Panel:
    """Chart the measure over a hyperparameter: a line for each optimizer.

    Where something else varies as well, all outcomes are dots. But if it is told what
    `every` outcome is that the axes must have room for, the line joins the best of each
    value. If it is `ringed`, the best of each optimizer is marked and named.
    """
    shown = every or outcomes
    what = MEASURES[shown[0].measure]
    ceiling = _find_ceiling(outcome.score for outcome in shown)
    axis, place = settings_axis(key, [outcome.setting[key] for outcome in shown])
    scale = scale_log((o.score for o in shown if o.score > 0), most=ceiling)
    groups, optimizers = split_by_optimizer(outcomes), split_by_optimizer(shown)
    looks = dict(zip(optimizers, choose_looks(len(optimizers)), strict=True))
    lines, marks = [], []
    for number, (name, own) in enumerate(groups.items()):
        look = looks[name]
        joined = every is not None or varied(outcomes, name) == [key]
        ranked = rank(own)
        if joined:
            best = {outcome.setting[key]: outcome for outcome in reversed(ranked)}
            own = [best[value] for value in sorted(best)]
        places = [place(outcome.setting[key]) for outcome in own]
        if ringed and not ranked[0].diverged:
            names = name_values([outcome.setting[key] for outcome in own], 3)
            value = ranked[0].setting[key]
            name += f" (best at {names[value]})"
            ring = to_chart([{"x": place(value), "y": ranked[0].score}])
            ring = ring.mark_point(size=220, color=look.colour, strokeWidth=2.5)
            marks.append(ring.encode(axis, alt.Y("y:Q", title=what, **scale)))
        mean, low, high = zip(*(x.final(x.measure) for x in own), strict=True)
        has_band = joined and any(len(x.members) > 1 for x in own)
        bands = [(low, high)] if has_band else []
        lines.append(Line(name, places, mean, look, bands, len(groups) > 1, joined))
        lost = [place(x.setting[key]) for x in own if not x.score <= ceiling]
        if lost:
            cross = to_chart([{"x": at} for at in lost])
            cross = cross.mark_text(text=CROSS, fontSize=16, color=look.colour)
            marks.append(cross.encode(axis, y=alt.value(8 + 12 * number)))
    seeds = SEEDS if all(line.joined for line in lines) else "A dot is one setting."
    caption = f"After the last epoch. {seeds}{count_diverged(outcomes)}"
    panel = draw_panel(f"Final {what} over {key}", caption, lines, axis, what, scale)
    return panel._replace(chart=sum(marks, panel.chart))


def _find_ceiling(values: Iterable[float]) -> float:
    """Give the end of a scale on which what explodes leaves room for the rest."""
    finite = [x for x in values if 0 < x < math.inf]
    return 10 * float(np.median(finite)) if finite else 1.0
