"""The rows of the benchmark in words: each in a line, all of a size in a table."""

import itertools
from operator import itemgetter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 132  # narrower, names and numbers would be cut
# Under each heading, a key of the row and its format; text stands on the left.
TIMED = {
    "step of": ("candidate", ""),
    "format": ("format", ""),
    "ms": ("milliseconds", "#.3g"),
    "ns/param": ("nanoseconds_per_parameter", "#.3g"),
    "speed": ("speed", ".2f"),
    "quartiles": ("quartiles", ">"),
    "beside": ("base", ""),
    "of limit": ("of_limit", ".2f"),
    "state B": ("state_bytes_per_parameter", ".2f"),
    "peak B": ("peak_bytes_per_parameter", ".1f"),
    "compile s": ("compile_seconds", ".2f"),
}
COMPILED = {
    "step of": ("candidate", ""),
    "format": ("format", ""),
    "moved B": ("moved", ">"),
    "beside": ("base", ""),
    "its B": ("base_moved_bytes_per_parameter", ".2f"),
    "temporary B": ("temporary_bytes_per_parameter", ".2f"),
    "not in place B": ("not_in_place_bytes_per_parameter", ".2f"),
    "fusions": ("fusions", "d"),
    "copies": ("copies", "d"),
    "collectives": ("collectives", ""),
    "compile s": ("compile_seconds", ".2f"),
}


def describe_row(row: dict[str, Any]) -> str:
    """Say in a few words what was found."""
    if "milliseconds" in row:
        return f"{row['milliseconds']:.3g} ms, {row['speed']:.2f} x {row['base']}"
    return f"{row['moved_bytes_per_parameter']:.2f} bytes a parameter moved"


def print_tables(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print a table for each problem, if there are rows."""
    if not rows:
        return
    console.width = max(console.width, TABLE_WIDTH)
    for size in dict.fromkeys(row["size"] for row in rows):
        console.print(_make_table([row for row in rows if row["size"] == size]))
    console.print(
        "speed: how many times as fast as the step it is measured beside, median "
        "and quartiles of the pairs; of limit: the bare loop's time over this one's"
        if "speed" in rows[0]
        else "B: bytes a parameter of a chip, as compiled, not run; +: and what is "
        "moved inside of branches, which is not counted"
    )


def _make_table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of one size."""
    first = rows[0]
    title = f"{first['size']}: {first['parameters']:,} parameters"
    if "speed" in first:
        columns = TIMED
        limit = next((row for row in rows if row["candidate"] == "bare_loop"), None)
        cells = [_describe_timed(row, limit) for row in rows]
    else:
        columns = COMPILED
        title += f", for {first['compiled_for']}"
        cells = [_describe_compiled(row) for row in rows]
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name, (_, spec) in columns.items():
        table.add_column(name, justify="right" if spec else "left", no_wrap=True)
    for _, group in itertools.groupby(cells, key=itemgetter("base")):
        for row in group:
            found = [(row[key], spec) for key, spec in columns.values()]
            table.add_row(*("" if x is None else f"{x:{spec}}" for x, spec in found))
        table.add_section()
    return table


def _describe_timed(
    row: dict[str, Any], limit: dict[str, Any] | None
) -> dict[str, Any]:
    """Add the quartiles in words, and the share of the limit's speed."""
    low, high = row["speed_quartiles"]
    # Ratios of ratios hold only beside the same base.
    is_alike = limit is not None and limit["base"] == row["base"]
    share = row["speed"] / limit["speed"] if limit and is_alike else None
    return row | {"quartiles": f"{low:.2f} {high:.2f}", "of_limit": share}


def _describe_compiled(row: dict[str, Any]) -> dict[str, Any]:
    """Add the bytes that are moved and the collectives in words."""
    collectives = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
    moved = f"{row['moved_bytes_per_parameter']:.2f}" + "+" * bool(row["branches"])
    return row | {"moved": moved, "collectives": collectives or "none"}
