"""What pictures and pages share: lines, how they look, and panels of them."""

import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import vl_convert

# Each has a contrast of 3 or more to white and to the dark page, and differs from the
# others for the colour-blind (after Okabe and Ito).
COLOURS = ("#1f7fc4", "#d55e00", "#009e73", "#8c7300", "#c4689b", "#8a6fd1")
DASHES = ((1, 0), (6, 3), (2, 2))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down")
FEW, MARKED = 30, 8  # points of a line that are all marked; else so many of them are
WIDTH, HEIGHT = 460, 250  # of a panel in a picture
SCALE = 1.25  # pixels of a PNG for each of the chart
PICTURES = (".png", ".svg", ".pdf")
LETTER, ENTRY = 6.2, 18  # width of a letter in a legend, and height of an entry
BELOW = 44  # from a panel to its legend: room for the horizontal axis
CONFIG: dict[str, Any] = {
    "font": "DejaVu Sans, sans-serif",
    "background": "white",
    "title": {"anchor": "start", "fontSize": 13, "subtitleColor": "#5b6472"},
    "axis": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
    "concat": {"spacing": 26},
}


class Look(NamedTuple):
    """Say how a line looks: colour as #rrggbb, dash and gap, width, and marks."""

    colour: str = COLOURS[0]
    dash: tuple[int, int] = DASHES[0]
    width: float = 2.0
    shape: str = SHAPES[0]


LIMIT = Look("#7f7f7f", (4, 4), 1.2)  # of a value that lines are held against


class Line(NamedTuple):
    """Say what is drawn as one line; lines of one name are switched together."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    look: Look = Look()
    bands: Sequence[tuple[Sequence[float], Sequence[float]]] = ()  # lower, upper edges
    listed: bool = True  # in the legend
    joined: bool = True  # by a line; if not, there are dots alone
    marked: bool = True  # by dots


def limit_line(name: str, ends: Sequence[float], value: float) -> Line:
    """Give the line of a value that others are held against, not in the legend."""
    return Line(name, ends, [value, value], LIMIT, listed=False, marked=False)


class Panel(NamedTuple):
    """Hold a chart with the words above it, and the looks that explain its lines."""

    title: str
    caption: str
    chart: Any  # Altair does not type what its charts add up to
    legend: Mapping[str, Look] = {}


def choose_looks(count: int) -> list[Look]:
    """Give the look of each line: where some coincide, the first ones still show."""
    widths = np.linspace(3.4, 1.4, count).tolist() if count > 1 else [2.0]
    looks = itertools.cycle(itertools.product(DASHES, COLOURS))
    return [
        Look(colour, dash, width, shape)
        for width, (dash, colour), shape in zip(
            widths, looks, itertools.cycle(SHAPES), strict=False
        )
    ]


def draw_panel(title: str, caption: str, lines: Sequence[Line], *axes: Any) -> Panel:
    """Draw lines, and their legend; the axes are as for `draw_lines`."""
    return Panel(title, caption, draw_lines(lines, *axes), list_lines(lines))


def draw_lines(
    lines: Sequence[Line],
    x: alt.X,
    y_title: str,
    y: Mapping[str, Any],
    digits: str = ".4g",
) -> Any:
    """Draw lines, each with its bands; where one points, it shows the value.

    The horizontal axis is of the field x; scale and axis of the vertical one are as
    `scale_log` and the like give them. Lines whose names are in the parameter `hidden`
    are not drawn.
    """
    is_log = y["scale"].type == "log"

    def place(value: float) -> float | None:
        has_place = math.isfinite(value) and (value > 0 or not is_log)
        return value if has_place else None

    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        every = 1 if len(line.x) <= FEW else round(len(line.x) / MARKED)
        # Lines that coincide are told apart by where they are marked.
        first = number * every // len(lines) % every
        about = {"key": number, "line": line.name, **line.look._asdict()}
        about |= {"joined": line.joined, "pointed": line.marked}
        about |= {"size": 28 if line.joined else 90}
        for n, (at, value) in enumerate(zip(line.x, line.y, strict=True)):
            row = about | {"x": at, "y": place(value), "n": n}
            row |= {"marked": n % every == first}
            row |= {"words": f"{line.name}, {x['title']} {at}: {value:{digits}}"}
            for layer, edges in enumerate(line.bands):
                low, high = (edge[n] for edge in edges)
                if layer == 0:
                    row["words"] += f" ({low:{digits}} to {high:{digits}})"
                if place(low) is not None and place(high) is not None:
                    row |= {f"low{layer}": low, f"high{layer}": high}
            rows.append(row)
    shown = to_chart(rows).transform_filter("indexof(hidden, datum.line) < 0")
    # Each layer says the scale: of those that are merged, the first one's is taken.
    shown = shown.encode(x, color=alt.Color("colour:N", scale=None), detail="key:N")
    point = shown.encode(alt.Y("y:Q", title=y_title, **y))
    bands = range(max((len(line.bands) for line in lines), default=0))
    return alt.layer(
        *(
            shown.mark_area(opacity=0.2, clip=True).encode(
                alt.Y(f"low{n}:Q", title=y_title, **y), y2=f"high{n}"
            )
            for n in bands
        ),
        point.transform_filter("datum.joined")
        .mark_line(clip=True, strokeJoin="round")
        .encode(
            order="n:Q",
            strokeDash=alt.StrokeDash("dash:N", scale=None),
            strokeWidth=alt.StrokeWidth("width:Q", scale=None),
        ),
        point.transform_filter("datum.pointed && datum.marked")
        .mark_point(clip=True, filled=True, opacity=1)
        .encode(
            shape=alt.Shape("shape:N", scale=None),
            size=alt.Size("size:Q", scale=None),
        ),
        point.transform_filter("datum.pointed")
        .mark_point(clip=True, filled=True, size=90, opacity=0)
        .encode(tooltip="words:N"),
    )


def to_chart(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """Give a chart that holds rows, as text: Altair copies it again and again."""
    text = json.dumps(rows, allow_nan=False)
    return alt.Chart(alt.Data(values=text, format=alt.JsonDataFormat(type="json")))


def list_lines(lines: Sequence[Line]) -> dict[str, Look]:
    """Give the legend of lines."""
    return {line.name: line.look for line in lines if line.listed}


def compose(
    title: str,
    panels: Sequence[Panel],
    columns: int,
    about: str = "",
    width: int = WIDTH,
    height: int = HEIGHT,
) -> alt.VConcatChart:
    """Put panels side by side and below each other, under a title and what it is about.

    A legend that several of them have is drawn once, below all.
    """
    legends = [panel.legend for panel in panels]
    shared = next((x for x in legends if x and legends.count(x) > 1), {})
    charts = []
    for panel in panels:
        lines = textwrap.wrap(panel.caption, int(width / LETTER))
        subtitle: dict[str, Any] = {"subtitle": lines} if lines else {}
        heading = alt.TitleParams(panel.title, **subtitle)
        chart = panel.chart.properties(title=heading, width=width, height=height)
        if panel.legend and panel.legend != shared:
            chart += _draw_legend(panel.legend, width, height + BELOW)
        charts.append(chart)
    rows: list[Any] = [alt.concat(*charts, columns=columns)]
    if shared:
        total = columns * (width + 60)
        legend = _draw_legend(shared, total, 8).properties(width=total, height=ENTRY)
        rows.append(legend.properties(view=alt.ViewConfig(stroke=None)))
    heading = alt.TitleParams(title, subtitle=about, fontSize=15, anchor="middle")
    return alt.vconcat(*rows, title=heading).configure(**CONFIG)


def _draw_legend(looks: Mapping[str, Look], width: float, top: float) -> Any:
    """Draw a legend at a height in pixels, in as many columns as there is room for."""
    column = 60 + LETTER * max(map(len, looks), default=0)
    columns = max(1, int(width / column))
    layers = []
    for number, (name, look) in enumerate(looks.items()):
        x, y = number % columns * column, top + number // columns * ENTRY
        one = to_chart([{}]).encode(y=alt.value(y))
        line = {"strokeDash": list(look.dash), "strokeWidth": look.width}
        size = 28 if look.width else 90
        mark = {"shape": look.shape, "filled": True, "size": size, "opacity": 1}
        layers += [
            one.mark_rule(color=look.colour, **line).encode(
                x=alt.value(x), x2=alt.value(x + 30)
            ),
            one.mark_point(color=look.colour, **mark).encode(x=alt.value(x + 15)),
            one.mark_text(text=name, align="left").encode(x=alt.value(x + 36)),
        ]
    return alt.layer(*layers)


def frame_panel(panel: Panel, width: int, height: int) -> tuple[Any, int, int]:
    """Give a panel with its legend, and how far from the left and the top it begins."""
    left, top = 50, 40
    legend = _draw_legend(panel.legend, width, height + BELOW)
    below = 54 + ENTRY * math.ceil(len(legend.layer) / 3 / 2)
    chart = (panel.chart + legend).properties(
        width=width,
        height=height,
        autosize=alt.AutoSizeParams(type="none"),
        padding={"left": left, "top": top, "right": 14, "bottom": below},
    )
    return chart.configure(**CONFIG), left, top


def to_spec(chart: Any) -> dict[str, Any]:
    """Give what Vega-Lite draws, with the parameter that names hidden lines."""
    spec = chart.to_dict()
    spec.setdefault("params", []).append({"name": "hidden", "value": []})
    return spec


def to_picture(chart: Any, suffix: str = ".png", scale: float = SCALE) -> bytes:
    """Draw a chart for a file of one of the PICTURES; the scale is that of a PNG."""
    spec = to_spec(chart)
    if suffix == ".png":
        return vl_convert.vegalite_to_png(spec, scale=scale)
    if suffix == ".pdf":
        return vl_convert.vegalite_to_pdf(spec)
    return vl_convert.vegalite_to_svg(spec).encode()


def to_page(panel: Panel) -> dict[str, Any]:
    """Give the chart of a panel for a page: as wide, with values to point at."""
    spec = to_spec(panel.chart.properties(width="container", height=HEIGHT))
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    pointing = {"on": "pointerover", "clear": "pointerout", "nearest": True}
    for layer in spec["layer"]:
        if layer["mark"].get("opacity") == 0:
            select = {"type": "point", **pointing}
            layer["params"] = [{"name": "pointed", "select": select}]
            pointed = {"param": "pointed", "empty": False, "value": 1}
            layer["encoding"]["opacity"] = {"condition": pointed, "value": 0}
    return spec
