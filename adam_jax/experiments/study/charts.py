"""The charts of a study: curves over seeds, and what came out over the settings."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import numpy as np

from adam_jax.experiments.drawing import (
    LIMIT,
    Line,
    Panel,
    choose_looks,
    compose,
    draw_lines,
    list_lines,
    to_chart,
)
from adam_jax.experiments.metrics import ACCURACY
from adam_jax.experiments.run_charts import draw_metric
from adam_jax.experiments.scales import (
    epochs_axis,
    name_values,
    scale_log,
    settings_axis,
)
from adam_jax.experiments.study.config import MEASURES, CompareConfig, SweepConfig
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
from adam_jax.experiments.study.settings import list_values

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
    """Draw the losses and the metrics over the epochs.

    Args:
      config: The study.
      members: What was trained.
      baselines: As in Problem; one is drawn if a curve comes near.
    """
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

    Args:
      outcomes: What came out.
      most: Of more than so many only the first ones are drawn, which are the best.
      baselines: As for `draw_curves`.
    """
    shown = outcomes[:most]
    few = len(shown) < len(outcomes)
    words = f" The best {most} of {len(outcomes)}." if few else ""
    if any(outcome.diverged for outcome in shown):
        words += " A line ends where one of its seeds diverges."
    names = []
    for outcome in shown:
        diverged = f", {outcome.diverged} diverged" if outcome.diverged else ""
        names.append(label(outcome, outcomes) + diverged)
    looks = choose_looks(len(shown))
    epochs = range(1, len(shown[0].members[0].train_loss) + 1)

    def over_seeds(curve: str) -> list[Line]:
        lines = []
        for name, outcome, look in zip(names, shown, looks, strict=True):
            curves = outcome.curves(curve)
            low, mean, high = (f(curves, axis=0).tolist() for f in SUMMARIES)
            bands = [(low, high)] if len(curves) > 1 else []
            lines.append(Line(name, epochs, mean, look, bands))
        return lines

    panels = []
    for curve in LOSSES:
        lines, title = over_seeds(curve), MEASURES[curve].capitalize()
        # A run that explodes leaves room for the others.
        starts = [line.y[0] for line in lines if 0 < line.y[0] < math.inf]
        ceiling = 10 * float(np.median(starts)) if starts else math.inf
        values = [y for line in lines for y in line.y]
        top = max((y for y in values if 0 < y < ceiling), default=1.0)
        scale = scale_log(filter(None, values), top * RESOLUTION, ceiling)
        chart = draw_lines(lines, epochs_axis(len(epochs)), "loss", scale)
        panels.append(Panel(title, SEEDS + words, chart, list_lines(lines)))
    for name in shown[0].metrics:
        lines, title = over_seeds(name), f"Test {name}"
        values = [y for line in lines for y in line.y if math.isfinite(y)]
        base = (baselines or {}).get(name, math.nan)
        near = 0.05 * (1 if name == ACCURACY else np.ptp(values or [0.0]))
        if values and min(values) - near <= base <= max(values) + near:
            ends, both = [0.5, len(epochs) + 0.5], [base, base]
            lines.append(Line("baseline", ends, both, LIMIT, (), False, marked=False))
            title += "; dashed: without a model"
        chart = draw_metric(lines, epochs_axis(len(epochs)), name)
        panels.append(Panel(title, SEEDS + words, chart, list_lines(lines)))
    return panels


def draw_sweep(config: SweepConfig, members: Sequence[Member]) -> alt.VConcatChart:
    """Draw the final measure, a mean over seeds, over what the sweep varies.

    One hyperparameter gives a curve for each optimizer. Several give a heat map for
    each pair and optimizer, of the best over all others; random draws, their points.

    Args:
      config: The sweep.
      members: What was trained.
    """
    seeds = len(config.seed_list)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    title = f"{config.heading}, {MEASURES[config.measure]}"
    if not config.epochs_shown:
        title += f" after {config.epochs} epochs"
    axes = [config.list_axes(candidate) for candidate in config.optimizers]
    if config.lines or all(len(own) == 1 and own == axes[0] for own in axes):
        return _draw_lines(config, members, title + over)
    outcomes = group_members(members, config.measure)
    groups = split_by_optimizer(outcomes)
    most = max(map(len, axes))
    random = config.draws is not None
    chart = chart_points if random else chart_map
    panels = [
        chart(groups[candidate.title], x, y, outcomes)._replace(
            title=candidate.title, caption=""
        )
        for candidate, own in zip(config.optimizers, axes, strict=True)
        if candidate.title in groups
        for y, x in itertools.combinations(own, 2)
    ]
    key = "ring: the best; x: diverged"
    if not random:
        key = "frame: the best; dot: the best of a row; grey with x: diverged"
        over += ", best over the others" if most > 2 else ""
    if most == 1:  # and each optimizer has another one
        pairs = zip(groups.values(), axes, strict=False)
        panels = [chart_setting(own, next(iter(x)), ringed=True) for own, x in pairs]
    columns = min(COLUMNS, len(panels) if most <= 2 else math.comb(most, 2))
    size = {"width": 330, "height": 300}
    return compose(title + over, panels, columns, key, **size)


def _draw_lines(
    config: SweepConfig, members: Sequence[Member], title: str
) -> alt.VConcatChart:
    """Draw a curve for each optimizer over the first hyperparameter of the grid.

    Each combination of the others has its panel, after each of the epochs shown. An
    optimizer that has a grid of its own is drawn at the best of its settings.
    """
    key, *others = config.grid.axes
    values = [sorted(list_values(config.grid.axes[other])) for other in others]
    names = dict(zip(others, map(name_values, values), strict=True))
    epochs = config.epochs_shown or (config.epochs,)
    shown = [
        group_members([member.until(epoch) for member in members], config.measure)
        for epoch in epochs
    ]
    every = [outcome for outcomes in shown for outcome in outcomes]
    panels = []
    for (epoch, outcomes), chosen in itertools.product(
        zip(epochs, shown, strict=True), itertools.product(*values)
    ):
        fixed = dict(zip(others, chosen, strict=True))
        words = [f"{other} = {names[other][value]}" for other, value in fixed.items()]
        words += [f"after {epoch} epochs"] if config.epochs_shown else []
        here = [x for x in outcomes if fixed.items() <= x.setting.items()]
        panel = chart_setting(here, key, every, ringed=not fixed)
        panels.append(panel._replace(title=", ".join(words), caption=""))
    columns = len(values[-1]) if values else 1
    size = {"width": max(300, 700 // columns), "height": 200 if others else 340}
    lost = any(not outcome.score <= _top(every) for outcome in every)
    key = "x: diverged, or above the scale" if lost else ""
    return compose(title, panels, columns, key, **size)


def chart_settings(outcomes: Sequence[Outcome]) -> list[Panel]:
    """Chart the final losses over the numeric hyperparameters that vary.

    One that varies is drawn as lines, two on a grid as heat maps, and others as dots,
    a chart for each.
    """
    by_key: dict[str, list[Outcome]] = {}
    panels = []
    for optimizer, own in split_by_optimizer(outcomes).items():
        keys = [key for key in varied(outcomes, optimizer) if _is_numeric(own, key)]
        if len(keys) == 2 and _is_grid(own, keys):
            x, y = keys
            panels += [chart_map(_by(own, m), x, y) for m in reversed(LOSSES)]
        else:
            for key in keys:
                by_key.setdefault(key, []).extend(own)
    for key, of_key in by_key.items():
        for measure in reversed(LOSSES):
            panels.append(chart_setting(_by(of_key, measure), key))
    return panels


def _by(outcomes: Iterable[Outcome], measure: str) -> list[Outcome]:
    return [outcome._replace(measure=measure) for outcome in outcomes]


def _is_numeric(outcomes: Sequence[Outcome], key: str) -> bool:
    values = [outcome.setting.get(key) for outcome in outcomes]
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def _is_grid(outcomes: Sequence[Outcome], keys: Sequence[str]) -> bool:
    """Tell whether most pairs of values are there, and each once."""
    pairs = [tuple(outcome.setting[key] for key in keys) for outcome in outcomes]
    across, up = (len(set(values)) for values in zip(*pairs, strict=True))
    return len(set(pairs)) == len(pairs) and 2 * len(pairs) >= across * up


def chart_setting(
    outcomes: Sequence[Outcome],
    key: str,
    every: Sequence[Outcome] | None = None,
    ringed: bool = False,
) -> Panel:
    """Chart the measure over a hyperparameter: a line for each optimizer.

    Args:
      outcomes: What is drawn.
      key: The hyperparameter.
      every: What the axes are to have room for. If it is given, the best is drawn for
        each value; if not, all are drawn, as dots where something else varies as well.
      ringed: Mark and name the best of each optimizer.
    """
    shown = every or outcomes
    what, high = MEASURES[shown[0].measure], _top(shown)
    axis, place = settings_axis(key, [outcome.setting[key] for outcome in shown])
    y = scale_log((x.score for x in shown if x.score > 0), most=high)
    groups = split_by_optimizer(outcomes)
    looks = choose_looks(len(split_by_optimizer(shown)))
    lines, layers = [], []
    for number, ((name, group), look) in enumerate(
        zip(groups.items(), looks, strict=False)
    ):
        joined = every is not None or varied(outcomes, name) == [key]
        ranked = rank(group)
        best = {outcome.setting[key]: outcome for outcome in reversed(ranked)}
        kept = [best[value] for value in sorted(best)] if joined else group
        x = [place(outcome.setting[key]) for outcome in kept]
        spreads = [outcome.final(outcome.measure) for outcome in kept]
        mean, *ends = (list(values) for values in zip(*spreads, strict=True))
        has_band = joined and any(len(outcome.members) > 1 for outcome in kept)
        if ringed and not ranked[0].diverged:
            value = ranked[0].setting[key]
            name += f" (best at {name_values(sorted(best), 3)[value]})"
            ring = to_chart([{"x": place(value), "y": ranked[0].score}])
            ring = ring.mark_point(size=220, color=look.colour, strokeWidth=2.5)
            layers.append(ring.encode(axis, alt.Y("y:Q", title=what, **y)))
        bands = [(ends[0], ends[1])] if has_band else []
        lines.append(Line(name, x, mean, look, bands, len(groups) > 1, joined))
        lost = [{"x": at} for at, o in zip(x, kept, strict=True) if not o.score <= high]
        if lost:
            cross = to_chart(lost).mark_text(text=CROSS, fontSize=16, color=look.colour)
            layers.append(cross.encode(axis, y=alt.value(8 + 12 * number)))
    chart = sum(layers, draw_lines(lines, axis, what, y))
    seeds = SEEDS if all(line.joined for line in lines) else "A dot is one setting."
    caption = f"After the last epoch. {seeds}{count_diverged(outcomes)}"
    return Panel(f"Final {what} over {key}", caption, chart, list_lines(lines))


def _top(outcomes: Iterable[Outcome]) -> float:
    """Give the end of a scale on which what explodes leaves room for the rest."""
    finite = [x.score for x in outcomes if 0 < x.score < math.inf]
    return min(max(finite), 10 * float(np.median(finite))) if finite else 1.0
