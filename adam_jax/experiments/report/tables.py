"""The tables of the page."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from adam_jax.experiments.inspection import BY_GROUP, to_text
from adam_jax.experiments.metrics import Epoch
from adam_jax.experiments.report.page import Element, element


def tabulate(
    heads: Sequence[str], rows: Sequence[Sequence[str | float]], texts: int = 1
) -> Element:
    """Make a table whose rows become cards on a phone.

    Args:
      heads: What the columns are.
      rows: Their cells; the first one names the row.
      texts: How many columns are text; the others, after these, are numbers.
    """
    kinds = ["text" if n < texts else "number" for n in range(len(heads))]
    head = [element("th", head, class_=k) for head, k in zip(heads, kinds, strict=True)]
    body = []
    for first, *others in rows:
        cells = [
            element("td", _write(cell), class_=kind, data_label=head)
            for cell, kind, head in zip(others, kinds[1:], heads[1:], strict=True)
        ]
        body.append(element("tr", element("th", _write(first), scope="row"), *cells))
    parts = (element("thead", element("tr", *head)), element("tbody", *body))
    return _frame(element("table", *parts, class_="wide"))


def tabulate_pairs(pairs: Mapping[str, Any]) -> Element:
    """Make a table of keys and values."""
    rows = [
        element("tr", element("th", key, scope="row"), element("td", to_plain(value)))
        for key, value in pairs.items()
    ]
    return _frame(element("table", element("tbody", *rows), class_="pairs"))


def compare_pairs(columns: Mapping[str, Mapping[str, Any]]) -> list[Element]:
    """Make a table of what differs, and a folded one of what is the same in all.

    Args:
      columns: For each name its keys and values; if there is but one, all is shown.
    """
    tables = list(columns.values())
    if len(tables) == 1:
        return [tabulate_pairs(tables[0])]
    keys = dict.fromkeys(key for table in tables for key in table)
    same = {
        key: tables[0].get(key)
        for key in keys
        if all(key in table and table[key] == tables[0].get(key) for table in tables)
    }
    differing = [key for key in keys if key not in same]
    parts = []
    if differing:
        rows = [
            [key, *(to_plain(table.get(key, "-")) for table in tables)]
            for key in differing
        ]
        parts.append(tabulate(["key", *columns], rows, texts=len(columns) + 1))
    if same:
        summary = element("summary", f"{len(same)} that are the same in all")
        parts.append(element("details", summary, tabulate_pairs(same)))
    return parts


def tabulate_groups(last: Epoch) -> Element:
    """Make the table of the last epoch's figures, a row for each parameter group."""
    shown = [name for name in BY_GROUP if name in last.figures]
    rows = [
        [
            group,
            *(last.figures.get(f"{name}/{group}", math.nan) for name in shown),
            moved,
        ]
        for group, moved in last.moved.items()
    ]
    heads = ["parameter group", *(BY_GROUP[name] for name in shown), "moved"]
    return tabulate(heads, rows)


def to_plain(value: Any) -> str:
    """Write a value of a config: text as it is, all else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _write(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return to_text(cell) if math.isfinite(cell) else "-"


def _frame(table: Element) -> Element:
    return element("div", table, class_="table")
