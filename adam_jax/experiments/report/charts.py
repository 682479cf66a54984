"""Interactive charts: lines over epochs or settings, their bands, their axes."""

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

# Each has a contrast of 3 or more to white and to the dark page, and differs from the
# others for the colour-blind (after Okabe and Ito).
COLOURS = ("#1f7fc4", "#d55e00", "#009e73", "#b98000", "#c4689b", "#8a6fd1")
GREY = "#7f7f7f"
DASHES = ("solid", "dot")
LEGEND_CHARACTERS = 40  # in a line: more do not fit into the width of a phone
FEW = 30  # points of a line: with more, their marks would be a second line
NARROW = 0.04  # that a share of examples must climb to be no straight line
MANY = 6  # lines: with more, what is shown while hovering hides them


class Chart(NamedTuple):
    """Hold a figure with the words above and below it."""

    title: str
    caption: str
    figure: go.Figure


class Line(NamedTuple):
    """Say what is drawn as one line.

    Attributes:
      name: What the legend calls it; lines of one name are switched together.
      x: Its places on the horizontal axis.
      y: A value for each place.
      colour: As #rrggbb.
      dash: How it is dashed, in plotly's words.
      bands: Pairs of lower and upper edges, drawn behind it.
      listed: Whether it is in the legend.
      joined: Draw a line; if not, dots alone.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    colour: str
    dash: str = "solid"
    bands: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    listed: bool = True
    joined: bool = True


def style(number: int) -> tuple[str, str]:
    """Give a colour and a dash to the line of a number: 12 pairs in all."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return COLOURS[number % len(COLOURS)], dash


def draw_lines(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    log: bool = True,
    digits: str = ".4~g",
) -> go.Figure:
    """Draw lines, each with its bands.

    Args:
      lines: What is drawn.
      x_title: What the horizontal axis is.
      y_title: What the vertical axis is.
      log: Use a log scale for y, if any value has a place on it.
      digits: How values are written where one points at them, in the words of d3.
    """
    figure = go.Figure()
    many = len(lines) > MANY or not all(line.joined for line in lines)
    for line in lines:
        for low, high in line.bands:
            _add_band(figure, line, low, high, log)
    for line in lines:
        figure.add_scatter(
            x=list(line.x),
            y=list(line.y),
            name=to_plotly(line.name),
            legendgroup=line.name,
            showlegend=line.listed,
            mode=_mode(line),
            line={"color": line.colour, "dash": line.dash, "width": 2},
            marker={"size": 5 if line.joined else 8},
            **_hover(line, f"{to_plotly(x_title)} %{{x}}: " if many else "", digits),
        )
    figure.update_layout(
        hovermode="closest" if many else "x unified",
        legend={
            **{"orientation": "h", "x": 0, "y": 0, "yref": "container"},
            "maxheight": 10_000,  # pixels: it never scrolls
        },
        template={},
        xaxis={"title": {"text": x_title}},
        yaxis={"title": {"text": y_title}} | _scale(lines, log),
    )
    return figure


def draw_shares(lines: Sequence[Line], x_title: str) -> go.Figure:
    """Draw lines of shares, in percent; what hardly changes looks flat."""
    figure = draw_lines(lines, x_title, "", log=False, digits=".2%")
    figure.update_yaxes(tickformat=".4~%")
    shown = [y for line in lines for y in line.y if math.isfinite(y)]
    if shown and max(shown) - min(shown) < NARROW:
        middle = (max(shown) + min(shown)) / 2
        figure.update_yaxes(range=[middle - NARROW / 2, middle + NARROW / 2])
    return figure


def to_plotly(text: str) -> str:
    """Write a name for plotly, which takes text for HTML, in lines that fit a phone."""
    lines = textwrap.wrap(text, LEGEND_CHARACTERS, break_on_hyphens=False)
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _scale(lines: Sequence[Line], log: bool) -> dict[str, Any]:
    """Choose a scale, and ticks that can be read as numbers."""
    edges = [edge for line in lines for band in line.bands for edge in band]
    values = [y for ys in (*(line.y for line in lines), *edges) for y in ys]
    shown = [y for y in values if 0 < y < math.inf]
    if not (log and shown):
        return {"exponentformat": "power"}
    low, high = min(shown), max(shown)
    scale = {"type": "log", "minorloglabels": "complete"}
    scale |= {"exponentformat": "none" if low > 1e-5 and high < 1e5 else "power"}
    if high < 1.05 * low:  # the last digit of a loss is no fall
        return scale | {"range": [math.log10(low / 1.05), math.log10(high * 1.05)]}
    if high > 1000 * low:
        return scale | {"dtick": 1}
    return scale | ({"dtick": "D2"} if high > 10 * low else {})


def _mode(line: Line) -> str:
    if not line.joined:
        return "markers"
    return "lines+markers" if len(line.x) <= FEW else "lines"


def _hover(line: Line, place: str, digits: str) -> dict[str, Any]:
    if not line.bands:
        return {"hovertemplate": f"{place}%{{y:{digits}}}"}
    edges = " to ".join(f"%{{customdata[{n}]:{digits}}}" for n in (0, 1))
    return {
        "customdata": [list(pair) for pair in zip(*line.bands[0], strict=True)],
        "hovertemplate": f"{place}%{{y:{digits}}} ({edges})",
    }


def _add_band(
    figure: go.Figure,
    line: Line,
    low: Sequence[float],
    high: Sequence[float],
    log: bool,
) -> None:
    """Fill what is between two edges, in pieces where one has no place."""
    least = 0.0 if log else -math.inf
    xs: list[Any] = []
    ys: list[float | None] = []
    piece: list[Any] = []
    for place in [*zip(line.x, low, high, strict=True), (None, math.nan, math.nan)]:
        if least < place[1] <= place[2] < math.inf:
            piece.append(place)
        elif piece:
            there, back = piece, piece[::-1]
            xs += [p[0] for p in (*there, *back)] + [None]
            ys += [p[1] for p in there] + [p[2] for p in back] + [None]
            piece = []
    figure.add_scatter(
        x=xs,
        y=ys,
        legendgroup=line.name,
        showlegend=False,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_transparent(line.colour),
        hoverinfo="skip",
    )


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"
