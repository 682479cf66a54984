"""The picture of a benchmark: time per parameter against size, and speeds."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from adam_jax.experiments.pictures.drawing import (
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
from adam_jax.experiments.pictures.scales import scale_log

BARE = "bare_loop"
NAMES = ("fused_step", "adamw", "packed", "torch", "rollfast", "fused_packed")
LOOKS = {name: Look(colour) for name, colour in zip(NAMES, COLOURS, strict=True)}
LOOKS |= {"optax": Look("#7f7f7f"), BARE: Look("#000000", width=3.5)}
# Lines of pure formats would hide the others; bars show them.
FORMATS = dict(zip(("float32", "bfloat16", "8bit"), DASHES, strict=True))
BARS_AT = 2**24

Rows = Sequence[dict[str, Any]]


def draw_rows(rows: Rows, machine: dict[str, Any]) -> alt.VConcatChart:
    """Draw what was measured on a machine.

    On the left is time against the size of one leaf, where at least two sizes were
    measured; on the right are the speeds at 16M parameters, or the nearest size.
    """
    lines = [row for row in rows if row["leaves"] == 1 and row["candidate"] in LOOKS]
    near = min(lines or rows, key=lambda row: abs(row["parameters"] - BARS_AT))
    bars = [row for row in rows if row["size"] == near["size"]]
    panels = [chart_speeds(bars)]
    if len({row["parameters"] for row in lines}) > 1:
        panels.insert(0, chart_times(lines))
    title = (
        f"A step of AdamW on {machine['cpu']}, {machine['cores']} cores, "
        f"jax {machine['versions']['jax']}, {machine['date'][:10]}"
    )
    return compose(title, panels, len(panels), height=max(300, 18 * len(bars)))


def chart_times(rows: Rows) -> Panel:
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


def chart_speeds(rows: Rows) -> Panel:
    """Chart the speeds at one size, with their quartiles."""
    bars = []
    for row in rows:
        speed, (low, high) = row["speed"], row["speed_quartiles"]
        name = f"{row['candidate']}, {row['format']}"
        bars.append(
            {
                "name": f"{name}: {speed:.2f} ({low:.2f} to {high:.2f})",
                "colour": LOOKS.get(row["candidate"], LIMIT).colour,
                "speed": speed,
                "low": low,
                "high": high,
            }
        )
    rules = [{"at": 1, "dash": [4, 4]}]
    rules += [
        {"at": x["speed"], "dash": [1, 0]} for x in rows if x["candidate"] == BARE
    ]
    bases = ", ".join(dict.fromkeys(row["base"] for row in rows))
    title = f"times as fast as float32 {bases}, median and quartiles"
    # Of a noisy pair the quartiles would squeeze the bars.
    scale = alt.Scale(domain=[0, 1.1 * max(1, *(row["speed"] for row in rows))])
    x = alt.X("speed:Q", title=title, scale=scale)
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=0))
    colour, dash = (
        alt.Color("colour:N", scale=None),
        alt.StrokeDash("dash:N", scale=None),
    )
    chart = to_chart(bars).encode(y)
    layers = alt.layer(
        chart.mark_bar(clip=True).encode(x, color=colour),
        chart.mark_rule(clip=True, strokeWidth=1.5).encode(x="low:Q", x2="high:Q"),
        to_chart(rules).mark_rule(color="#555555").encode(x="at:Q", strokeDash=dash),
    )
    return Panel(f"Speed at {rows[0]['size']} parameters", "", layers)
