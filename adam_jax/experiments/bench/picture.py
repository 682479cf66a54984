"""The picture of a benchmark: time per parameter against size, and speeds."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adam_jax.experiments.drawing import label_log

LIMIT = "bare_loop"
COLORS = {
    "optax": "0.45",
    LIMIT: "black",
    "fused_step": "C0",
    "fused_packed": "C9",
    "adamw": "C1",
    "packed": "C2",
    "torch": "C3",
    "rollfast": "C4",
}
LINES = {
    "float32": "-",
    "bfloat16": "--",
    "8bit": ":",
}  # lines of pure formats would hide the others; bars show them
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
    panel.set(title="Time of a step: one leaf", xlabel="parameters")
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
                sizes, times = zip(*points, strict=True)
                panel.fill_between(sizes, times, alpha=0.08, color=color)
    label_log(panel.yaxis)
    panel.grid(alpha=0.3, which="both")
    # Below the panel: lines cross all of it.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08)}
    panel.legend(fontsize="small", ncols=3, handlelength=3.5, **below)


def _draw_speeds(panel: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows))
    colors = [COLORS.get(row["candidate"], "0.7") for row in rows]
    panel.barh(places, [row["speed"] for row in rows], color=colors, height=0.7)
    labels = [f"{row['candidate']}, {row['format']}" for row in rows]
    panel.set_yticks(places, labels, fontsize="small")
    panel.set_ylim(len(rows) - 0.4, -0.6)
    # Of a noisy pair the quartiles would squeeze the bars.
    panel.set_xlim(0, 1.15 * max(1, *(row["speed"] for row in rows)))
    panel.axvline(1, color="0.3", lw=1, ls="--")
    for place, row in zip(places, rows, strict=True):
        low, high = row["speed_quartiles"]
        panel.plot((low, high), (place, place), color="0.2", lw=1.5)
        text = f"{row['speed']:.2f} ({low:.2f} to {high:.2f})"
        at = panel.get_yaxis_transform()
        panel.text(1.01, place, text, va="center", fontsize="small", transform=at)
        if row["candidate"] == LIMIT:
            panel.axvline(row["speed"], color=COLORS[LIMIT], lw=1)
    bases = ", ".join(dict.fromkeys(row["base"] for row in rows))
    panel.set(xlabel=f"times as fast as float32 {bases}, median and quartiles")
    panel.set_title(f"Speed at {rows[0]['size']} parameters")
    panel.grid(alpha=0.3, axis="x")
