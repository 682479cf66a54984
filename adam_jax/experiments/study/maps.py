"""The charts of one optimizer over two hyperparameters: heat maps, and points."""

import math
from collections.abc import Sequence

import altair as alt

from adam_jax.experiments.drawing import Panel, to_chart
from adam_jax.experiments.scales import choose_ticks, settings_axis, to_words
from adam_jax.experiments.study.config import MEASURES
from adam_jax.experiments.study.outcomes import Outcome, count_diverged, rank

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

    Args:
      outcomes: What is drawn; of several in a cell the best.
      x: The hyperparameter across.
      y: The one upwards.
      every: What the colours are to have room for, if it is more.
    """
    what, colour, ends, remark = _choose_colours(every or outcomes)
    best: dict[tuple[float, float], Outcome] = {}
    for outcome in rank(outcomes):
        best.setdefault((outcome.setting[x], outcome.setting[y]), outcome)
    across, up = (to_words(sorted(set(v)), 3) for v in zip(*best, strict=True))
    rows = [
        {"x": across[at_x], "y": up[at_y], "score": None, "text": CROSS}
        if outcome.diverged
        else {"x": across[at_x], "y": up[at_y]}
        | {"score": outcome.score, "text": f"{outcome.score:.4g}"}
        for (at_x, at_y), outcome in best.items()
    ]
    kept = [row for row in rows if row["score"] is not None]
    of_a_row = {row["y"]: row for row in reversed(kept)}
    angle = -90 if len(across) > 4 else 0
    axes = (
        alt.X("x:O", title=x, scale=alt.Scale(domain=[*across.values()])),
        alt.Y("y:O", title=y, scale=alt.Scale(domain=[*up.values()][::-1])),
    )
    axes = [
        axis.axis(labelAngle=turned, labelOverlap=True)
        for axis, turned in zip(axes, (angle, 0), strict=True)
    ]
    names = {"x": x, "y": y, "text": what}
    tooltip = [alt.Tooltip(f"{key}:N", title=name) for key, name in names.items()]
    cells = to_chart(rows).encode(*axes, tooltip=tooltip)
    scored = cells.transform_filter("isValid(datum.score)")
    is_wide = len(across) <= WRITTEN
    written = cells if is_wide else cells.transform_filter("!isValid(datum.score)")
    low, high = ends
    is_dark = alt.when(f"datum.score > {math.sqrt(low * high)}")
    ink = is_dark.then(alt.value("white")).otherwise(alt.value("black"))
    dots = to_chart([*of_a_row.values()]).mark_point(
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
    outcomes: Sequence[Outcome],
    x: str,
    y: str,
    every: Sequence[Outcome] | None = None,
) -> Panel:
    """Chart random draws of one optimizer, as points in the colour of their measure.

    Args:
      outcomes: What is drawn.
      x: The hyperparameter across.
      y: The one upwards.
      every: What the colours are to have room for, if it is more.
    """
    what, colour, _, remark = _choose_colours(every or outcomes)
    across, place_x = settings_axis(x, [outcome.setting[x] for outcome in outcomes])
    up, place_y = settings_axis(y, [outcome.setting[y] for outcome in outcomes], alt.Y)
    # The best last, on top of the others.
    ranked = sorted(outcomes, key=lambda outcome: outcome.score, reverse=True)
    rows = [
        {"x": place_x(outcome.setting[x]), "y": place_y(outcome.setting[y])}
        | {"score": None if outcome.diverged else outcome.score}
        for outcome in ranked
    ]
    kept = [row for row in rows if row["score"] is not None]
    lost = [row for row in rows if row["score"] is None]
    points = to_chart(kept).mark_point(filled=True, size=60, opacity=1)
    cross = to_chart(lost).mark_text(text=CROSS, fontSize=16, color="#888888")
    ring = to_chart(kept[-1:]).mark_point(size=260, color=FRAME, strokeWidth=2)
    chart = alt.layer(
        points.encode(across, up, color=colour),
        cross.encode(across, up),
        ring.encode(across, up),
    )
    return Panel(f"Final {what} of {outcomes[0].optimizer}", remark, chart)


def _choose_colours(
    outcomes: Sequence[Outcome],
) -> tuple[str, alt.Color, tuple[float, float], str]:
    """Give the measure's name, its colours, where these end, and a remark on that."""
    what = MEASURES[outcomes[0].measure]
    finite = [o.score for o in outcomes if 0 < o.score < math.inf] or [1.0]
    low, most = min(finite), max(finite)
    high = max(min(most, SPAN * low), 1.01 * low)
    ends = {"domain": [low, high], "nice": False, "clamp": True}
    scale = alt.Scale(type="log", scheme="viridis", reverse=True, **ends)
    legend = alt.Legend(values=choose_ticks(low, high), format=".10~g")
    colour = alt.Color("score:Q", title=what, scale=scale, legend=legend)
    remark = f" The colours end at {SPAN} times the best." if most > high else ""
    return what, colour, (low, high), remark
