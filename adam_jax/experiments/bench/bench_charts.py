"""The picture of a benchmark: time per parameter against size, and speeds."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from adam_jax.experiments.drawing import (
    COLOURS,
    DASHES,
    LIMIT,
    Line,
    Look,
    Panel,
    compose,
    draw_lines,
    list_lines,
    to_chart,
)
from adam_jax.experiments.scales import scale_log

BARE = "bare_loop"
NAMES = ("fused_step", "adamw", "packed", "torch", "rollfast", "fused_packed")
LOOKS = {name: Look(colour) for name, colour in zip(NAMES, COLOURS, strict=True)}
LOOKS |= {"optax": Look("#7f7f7f"), BARE: Look("#000000", width=3.5)}
# Lines of pure formats would hide the others; bars show them.
FORMATS = dict(zip(("float32", "bfloat16", "8bit"), DASHES, strict=True))
BARS_AT = 2**24


def draw_rows(
    rows: Sequence[dict[str, Any]], machine: dict[str, Any]
) -> alt.VConcatChart:
    """Draw what was measured.

    On the left is time against the size of one leaf, where at least two sizes were
    measured; on the right are the speeds at 16M parameters, or the nearest size.

    Args:
      rows: What was measured.
      machine: What it was measured on.
    """
    lines = [row for row in rows if row["leaves"] == 1 and row["candidate"] in LOOKS]
    panels = []
    if len({row["parameters"] for row in lines}) > 1:
        panels.append(chart_times(lines))
    near = min(lines or rows, key=lambda row: abs(row["parameters"] - BARS_AT))
    bars = [row for row in rows if row["size"] == near["size"]]
    panels.append(chart_speeds(bars))
    versions = machine["versions"]
    title = (
        f"A step of AdamW on {machine['cpu']}, {machine['cores']} cores, "
        f"jax {versions['jax']}, {machine['date'][:10]}"
    )
    return compose(title, panels, len(panels), height=max(300, 18 * len(bars)))


def chart_times(rows: Sequence[dict[str, Any]]) -> Panel:
    """Chart the time of a step against the size of one leaf."""
    lines = []
    for name, look in LOOKS.items():
        for format, dash in FORMATS.items():
            points = sorted(
                (row["parameters"], row["nanoseconds_per_parameter"])
                for row in rows
                if (row["candidate"], row["format"]) == (name, format)
            )
            if points:
                label = f"{name}, {format}" if name != BARE else "limit: bare C++ loop"
                sizes, times = zip(*points, strict=True)
                lines.append(Line(label, sizes, times, look._replace(dash=dash)))
    sizes = sorted({row["parameters"] for row in rows})
    scale = alt.Scale(type="log", base=2, domain=[sizes[0], sizes[-1]])
    power = "'2^' + round(log(datum.value) / log(2))"
    axis = alt.Axis(labelExpr=power, values=sizes)
    x = alt.X("x:Q", title="parameters", scale=scale, axis=axis)
    y = scale_log(row["nanoseconds_per_parameter"] for row in rows)
    chart = draw_lines(lines, x, "ns per parameter", y)
    return Panel("Time of a step: one leaf", "", chart, list_lines(lines))


def chart_speeds(rows: Sequence[dict[str, Any]]) -> Panel:
    """Chart the speeds at one size, with their quartiles."""
    bars = []
    for row in rows:
        low, high = row["speed_quartiles"]
        words = f"{row['speed']:.2f} ({low:.2f} to {high:.2f})"
        name = f"{row['candidate']}, {row['format']}"
        colour = LOOKS.get(row["candidate"], LIMIT).colour
        bars.append(
            {"name": f"{name}: {words}", "speed": row["speed"], "colour": colour}
            | {"low": low, "high": high}
        )
    bases = ", ".join(dict.fromkeys(row["base"] for row in rows))
    title = f"times as fast as float32 {bases}, median and quartiles"
    # Of a noisy pair the quartiles would squeeze the bars.
    most = 1.1 * max(1, *(row["speed"] for row in rows))
    scale = alt.Scale(domain=[0, most])
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=0))
    chart = to_chart(bars).encode(y)
    colour = alt.Color("colour:N", scale=None)
    reached = to_chart(
        [{"at": 1, "dash": [4, 4]}]
        + [{"at": r["speed"], "dash": [1, 0]} for r in rows if r["candidate"] == BARE]
    )
    layers = alt.layer(
        chart.mark_bar(clip=True).encode(
            alt.X("speed:Q", title=title, scale=scale), color=colour
        ),
        chart.mark_rule(clip=True, strokeWidth=1.5).encode(x="low:Q", x2="high:Q"),
        reached.mark_rule(color="#555555").encode(
            x="at:Q", strokeDash=alt.StrokeDash("dash:N", scale=None)
        ),
    )
    return Panel(f"Speed at {rows[0]['size']} parameters", "", layers)
