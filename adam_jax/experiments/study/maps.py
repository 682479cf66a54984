"""The charts of one optimizer over two hyperparameters: heat maps, and points."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from adam_jax.experiments.pictures.drawing import Panel, to_chart
from adam_jax.experiments.pictures.scales import (
    choose_ticks,
    name_values,
    settings_axis,
)
from adam_jax.experiments.study.outcomes import Outcome, count_diverged, rank
from adam_jax.experiments.study.study_config import MEASURES

SPAN = 30  # beyond so many times the best, all settings are equally useless
WRITTEN = 6  # columns of a heat map whose cells have room for numbers
FRAME, LOST, CROSS = "#d62728", "#bdbdbd", "\N{MULTIPLICATION SIGN}"


def chart_map(
    outcomes: Sequence[Outcome],
    x: str,
    y: str,
    every: Sequence[Outcome] | None = None,
) -> Panel:
    """Chart the measure of one optimizer over two hyperparameters, as a heat map.

    A cell shows the best of its outcomes; the colours have room for `every` outcome.
    """
    what = MEASURES[outcomes[0].measure]
    colour, middle, remark = _choose_colours(every or outcomes)
    best: dict[tuple[float, float], Outcome] = {}
    for outcome in rank(outcomes):
        best.setdefault((outcome.setting[x], outcome.setting[y]), outcome)
    across, up = (name_values(sorted(set(v)), 3) for v in zip(*best, strict=True))
    rows: list[dict[str, Any]] = []
    for (at_x, at_y), outcome in best.items():
        score = None if outcome.diverged else outcome.score
        text = CROSS if score is None else f"{score:.4g}"
        rows.append({"x": across[at_x], "y": up[at_y], "score": score, "text": text})
    kept = [row for row in rows if row["score"] is not None]
    best_of_row = {row["y"]: row for row in reversed(kept)}
    listed, listed_up = [*across.values()], [*up.values()][::-1]
    turned = alt.Axis(labelAngle=-90 if len(across) > 4 else 0, labelOverlap=True)
    level = alt.Axis(labelAngle=0, labelOverlap=True)
    axes = (
        alt.X("x:O", title=x, scale=alt.Scale(domain=listed), axis=turned),
        alt.Y("y:O", title=y, scale=alt.Scale(domain=listed_up), axis=level),
    )
    names = {"x": x, "y": y, "text": what}
    tooltip = [alt.Tooltip(f"{key}:N", title=name) for key, name in names.items()]
    cells = to_chart(rows).encode(*axes, tooltip=tooltip)
    scored = cells.transform_filter("isValid(datum.score)")
    is_wide = len(across) <= WRITTEN
    written = cells if is_wide else cells.transform_filter("!isValid(datum.score)")
    is_dark = alt.when(f"datum.score > {middle}")
    ink = is_dark.then(alt.value("white")).otherwise(alt.value("black"))
    dots = to_chart([*best_of_row.values()]).mark_point(
        filled=True, size=30, opacity=1, color=FRAME, yOffset=10 if is_wide else 0
    )
    frame = to_chart(kept[:1]).mark_rect(filled=False, stroke=FRAME, strokeWidth=3)
    chart = alt.layer(
        cells.mark_rect(color=LOST),
        scored.mark_rect().encode(color=colour),
        written.mark_text().encode(text="text:N", color=ink),
        dots.encode(*axes),
        frame.encode(*axes),
    )
    caption = "After the last epoch, the mean over the seeds."
    caption += count_diverged(outcomes) + remark
    caption += f" Framed: the best, {kept[0]['text']}." if kept else ""
    return Panel(f"Final {what} of {outcomes[0].optimizer}", caption, chart)


def chart_points(
    outcomes: Sequence[Outcome], x: str, y: str, every: Sequence[Outcome]
) -> Panel:
    """Chart random draws of one optimizer, as points in the colour of their measure."""
    colour, _, remark = _choose_colours(every)
    across, place_x = settings_axis(x, [outcome.setting[x] for outcome in outcomes])
    up, place_y = settings_axis(y, [outcome.setting[y] for outcome in outcomes], alt.Y)
    kept, lost = [], []
    for outcome in reversed(rank(outcomes)):  # the best last, on top of the others
        row = {"x": place_x(outcome.setting[x]), "y": place_y(outcome.setting[y])}
        if outcome.diverged:
            lost.append(row)
        else:
            kept.append(row | {"score": outcome.score})
    points = to_chart(kept).mark_point(filled=True, size=60, opacity=1)
    cross = to_chart(lost).mark_text(text=CROSS, fontSize=16, color="#888888")
    ring = to_chart(kept[-1:]).mark_point(size=260, color=FRAME, strokeWidth=2)
    chart = alt.layer(
        points.encode(across, up, color=colour),
        cross.encode(across, up),
        ring.encode(across, up),
    )
    return Panel(outcomes[0].optimizer, remark, chart)


def _choose_colours(outcomes: Sequence[Outcome]) -> tuple[alt.Color, float, str]:
    """Give the colours of a measure, its value in the middle, and a remark on them."""
    finite = [o.score for o in outcomes if 0 < o.score < math.inf] or [1.0]
    low, most = min(finite), max(finite)
    high = max(min(most, SPAN * low), 1.01 * low)
    ends = {"domain": [low, high], "nice": False, "clamp": True}
    scale = alt.Scale(type="log", scheme="viridis", reverse=True, **ends)
    legend = alt.Legend(values=choose_ticks(low, high), format=".10~g")
    what = MEASURES[outcomes[0].measure]
    remark = f" The colours end at {SPAN} times the best." if most > high else ""
    colour = alt.Color("score:Q", title=what, scale=scale, legend=legend)
    return colour, math.sqrt(low * high), remark
