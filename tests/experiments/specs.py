"""What charts show, read from what Vega-Lite is told."""

import json

from adam_jax.experiments.pictures.drawing import to_spec


class Shown:
    """One panel: its words, its scales, and the data of its lines.

    Attributes:
      spec: The panel in Vega-Lite.
      title: Its title; empty on a page, which writes that in HTML.
      layers: Its layers, each with its marks, its encoding and its rows.
    """

    def __init__(self, spec, title=None, data=None):
        self.spec = spec
        self.title = title or spec.get("title", {}).get("text", "")
        self.layers = list(flatten(spec, data))

    def all(self, mark):
        """Give the layers of a kind of mark."""
        return [layer for layer in self.layers if layer["mark"]["type"] == mark]

    @property
    def rows(self):
        """Give the rows that the lines, or else the points, are drawn from."""
        return (self.all("line") or self.all("point"))[0]["rows"]

    def axis(self, channel):
        """Give the encoding of x, y or another channel."""
        encodings = [layer["encoding"] for layer in self.all("line") or self.layers]
        return next(e[channel] for e in encodings if channel in e)

    def column(self, field):
        """Give a field of each line, by the name of the line."""
        found = {}
        names = {}
        for row in self.rows:
            name = names.setdefault(row["key"], row["line"])
            found.setdefault((row["key"], name), []).append(row.get(field))
        return [(name, values) for (_, name), values in found.items()]

    def lines(self, field="y"):
        """Give the values of the lines by their names."""
        return dict(self.column(field))

    def looks(self):
        """Give colour, dash, width and mark of each line by its name."""
        keys = ("colour", "dash", "width", "shape")
        return {
            row["line"]: (row["colour"], tuple(row["dash"]), row["width"], row["shape"])
            for row in self.rows
            if all(key in row for key in keys)
        }

    def band(self, number=0):
        """Give the places and the edges of a band, where it is drawn."""
        low, high = f"low{number}", f"high{number}"
        return [(row["x"], row[low], row[high]) for row in self.rows if low in row]

    @property
    def legend(self):
        """Give what a picture's own legend says below the panel."""
        texts = [layer["mark"].get("text") for layer in self.all("text")]
        return [text for text in texts if text and len(text) > 1]


def flatten(spec, data=None):
    """Go through the layers, be they nested, each with its rows."""
    data = spec.get("data", data)
    for layer in spec.get("layer", ()):
        yield from flatten(layer, data)
    if "mark" in spec:
        rows = data["values"]
        yield spec | {"rows": json.loads(rows) if isinstance(rows, str) else rows}


def read_picture(chart):
    """Give the title of a picture, its panels, and the legend that they share."""
    spec = to_spec(chart)
    grid, *legend = spec["vconcat"]
    # What all share, Altair says once.
    data = grid.get("data", spec.get("data"))
    panels = [Shown(panel, data=data) for panel in grid["concat"]]
    shared = Shown(legend[0]).legend if legend else []
    return spec["title"]["text"], panels, shared


def read_panels(chart):
    """Give the panels of a picture."""
    return read_picture(chart)[1]
