"""The picture of a benchmark: time per parameter against size, and speeds."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LIMIT = "bare_loop"
COLORS = {
    "optax": "0.45",
    LIMIT: "black",
    "fused_step": "C0",
    "fused_update": "C9",
    "adamw": "C1",
    "packed": "C2",
    "torch": "C3",
    "rollfast": "C4",
}
LINES = {
    "float32": "-",
    "bfloat16": "--",
    "8bit": ":",
    "pure_bfloat16": "-.",
    "pure_8bit": (0, (3, 1, 1, 1, 1, 1)),
}
BARS_AT = 2**24


def draw_rows(rows: Sequence[dict[str, Any]], machine: dict[str, Any]) -> Figure:
    """Draw what was measured.

    On the left is time against the size of one leaf, where at least two sizes were
    measured; on the right are the speeds at 16M parameters, or the nearest size.
    """
    lines = [row for row in rows if row["leaves"] == 1 and row["candidate"] in COLORS]
    sizes = sorted({row["parameters"] for row in lines})
    figure = Figure(figsize=(15, 9), layout="constrained")
    versions = machine["versions"]
    figure.suptitle(
        f"A step of AdamW on {machine['cpu']}, {machine['cores']} cores, "
        f"jax {versions['jax']}, {machine['date'][:10]}",
        weight="bold",
    )
    if len(sizes) > 1:
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        _draw_times(left, lines)
    else:
        right = figure.subplots()
    count = min(
        (row["parameters"] for row in (lines or rows)),
        key=lambda size: abs(size - BARS_AT),
    )
    size = next(row["size"] for row in (lines or rows) if row["parameters"] == count)
    _draw_speeds(right, [row for row in rows if row["size"] == size])
    return figure


def _draw_times(panel: Axes, rows: Sequence[dict[str, Any]]) -> None:
    panel.set(title="Time of a step: one leaf", xlabel="parameters", xscale="log")
    panel.set(ylabel="ns per parameter", yscale="log")
    panel.set_xscale("log", base=2)
    for name, color in COLORS.items():
        for format, style in LINES.items():
            points = sorted(
                (row["parameters"], row["nanoseconds_per_parameter"])
                for row in rows
                if (row["candidate"], row["format"]) == (name, format)
            )
            if not points:
                continue
            is_limit = name == LIMIT
            panel.plot(
                *zip(*points, strict=True),
                color=color,
                ls=style,
                lw=3 if is_limit else 1.6,
                marker="" if is_limit else "o",
                ms=4,
                label="limit: bare C++ loop" if is_limit else f"{name}, {format}",
            )
            if is_limit:
                panel.fill_between(*zip(*points, strict=True), alpha=0.08, color=color)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small", ncols=2)


def _draw_speeds(panel: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows))
    speeds = [row["speed"] for row in rows]
    spans = [
        [max(row["speed"] - row["speed_quartiles"][0], 0) for row in rows],
        [max(row["speed_quartiles"][1] - row["speed"], 0) for row in rows],
    ]
    colors = [COLORS.get(row["candidate"], "0.7") for row in rows]
    panel.barh(places, speeds, color=colors, xerr=spans, ecolor="0.2", height=0.7)
    labels = [f"{row['candidate']}, {row['format']}" for row in rows]
    panel.set_yticks(places, labels, fontsize="small")
    panel.invert_yaxis()
    panel.axvline(1, color="0.3", lw=1, ls="--")
    for row in rows:
        if row["candidate"] == LIMIT:
            panel.axvline(row["speed"], color=COLORS[LIMIT], lw=1)
    for place, row, over in zip(places, rows, spans[1], strict=True):
        text = f" {row['speed']:.2f}"
        panel.text(row["speed"] + over, place, text, va="center", fontsize="small")
    panel.set(xlabel="times as fast as its base (optax, optax_grads or adamw, float32)")
    panel.set_title(f"Speed at {rows[0]['size']} parameters")
    panel.margins(x=0.12, y=0.01)
    panel.grid(alpha=0.3, axis="x")
