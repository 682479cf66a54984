"""One web page, with all that it needs inside: text, charts, the plotting library."""

import datetime
import html
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import NamedTuple
from xml.etree import ElementTree

from plotly.offline import get_plotlyjs

import adam_jax
from adam_jax.experiments import report
from adam_jax.experiments.report.charts import Chart

Element = ElementTree.Element
LONG = 12  # characters of a tile: more are written smaller


class Section(NamedTuple):
    """Hold a part of the page: its heading, a sentence, and what follows."""

    title: str
    about: str
    parts: Sequence[Chart | Element]


class Page(NamedTuple):
    """Hold what a page says.

    Attributes:
      title: What it is about.
      about: The same in a sentence.
      tiles: The numbers that come first, by what they are.
      sections: What follows.
    """

    title: str
    about: str
    tiles: dict[str, str]
    sections: Sequence[Section]


def element(tag: str, *children: str | Element, **attributes: str) -> Element:
    """Build an element of HTML; text is escaped when it is written.

    Args:
      tag: What kind of element.
      children: Texts and elements inside it.
      attributes: Its attributes; `class_` stands for class, `data_x` for data-x.
    """
    names = {key.rstrip("_").replace("_", "-"): x for key, x in attributes.items()}
    made = Element(tag, names)
    for child in children:
        if not isinstance(child, str):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def write_html(page: Page) -> str:
    """Write a page; it loads nothing, and its policy lets it load nothing."""
    charts = [
        part
        for section in page.sections
        for part in section.parts
        if isinstance(part, Chart)
    ]
    ids = {id(chart): f"chart-{number}" for number, chart in enumerate(charts)}
    sections = [_write_section(section, ids) for section in page.sections]
    today = datetime.date.today().isoformat()
    footer = element("footer", f"Made by adam-jax {adam_jax.__version__} on {today}.")
    here = files(report)
    return Template((here / "page.html").read_text("utf-8")).substitute(
        title=html.escape(page.title),
        styles=(here / "page.css").read_text("utf-8"),
        body="".join(map(_to_text, (_head(page), *sections, footer))),
        plotly=get_plotlyjs(),
        # plotly escapes what would end a script.
        charts=f"[{','.join(chart.figure.to_json() or '' for chart in charts)}]",
        script=(here / "page.js").read_text("utf-8"),
    )


def _to_text(written: Element) -> str:
    return ElementTree.tostring(written, "utf-8", method="html").decode()


def _head(page: Page) -> Element:
    tiles = [
        element(
            "div",
            element("dt", name),
            element("dd", value, class_="long" if len(value) > LONG else "short"),
        )
        for name, value in page.tiles.items()
    ]
    links = [
        element("a", section.title, href=f"#{_anchor(section)}")
        for section in page.sections
    ]
    return element(
        "header",
        element("h1", page.title),
        element("p", page.about),
        element("dl", *tiles, class_="tiles"),
        element("nav", *links),
    )


def _write_section(section: Section, ids: dict[int, str]) -> Element:
    heads = [element("h2", section.title)]
    if section.about:
        heads.append(element("p", section.about))
    charts = [_write_chart(p, ids) for p in section.parts if isinstance(p, Chart)]
    others = [part for part in section.parts if not isinstance(part, Chart)]
    if charts:
        heads.append(element("div", *charts, class_="charts"))
    return element("section", *heads, *others, id=_anchor(section))


def _write_chart(chart: Chart, ids: dict[int, str]) -> Element:
    place = element("div", class_="plot", id=ids[id(chart)], role="img")
    place.set("aria-label", chart.title)
    return element(
        "figure",
        element("h3", chart.title),
        element("figcaption", chart.caption),
        place,
    )


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")
