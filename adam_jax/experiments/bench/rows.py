"""The rows of the benchmark: shown and kept as they come, in tables at the end."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adam_jax.experiments.bench.plan import Cell
from adam_jax.experiments.progress import Display

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


class BenchReport:
    """Show, keep and write the rows, and what is left out."""

    def __init__(self, machine: dict[str, Any], total: int, file: Path | None):
        """Take what `describe_machine` returned, how many rows come, and their file."""
        self.machine, self.file = machine, file
        self.rows: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self._done = 0  # rows, also those that were skipped
        self.display = Display("row", total, transient=True)
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
        self.display.tell(f"{machine['cpu']}, {machine['cores']} cores; {versions}")
        load = machine["load_average"][0]
        if load > 0.5:
            self.display.tell(
                f"The machine is busy (load {load:.1f}): trust ratios, not times."
            )

    def skip(self, name: str, why: str, rows: int = 0) -> None:
        """Say and keep what is left out, why, and how many rows that are."""
        self.skipped[name] = why
        self.display.tell(f"without {name}: {why}")
        self._advance(rows)

    def start(self, cell: Cell) -> None:
        """Tell what is measured now."""
        self.display.label(f"{cell.problem.name} {cell.candidate}, {cell.format}")

    def show(self, row: dict[str, Any]) -> None:
        """Show a row that is measured."""
        self._advance(1)
        if "milliseconds" in row:
            found = f"{row['milliseconds']:.3g} ms, {row['speed']:.2f} x {row['base']}"
        else:
            found = f"{row['moved_bytes_per_parameter']:.2f} bytes a parameter moved"
        self.display.note(f"{row['size']} {row['candidate']}, {row['format']}: {found}")

    def _advance(self, rows: int) -> None:
        self._done += rows
        self.display.reach(self._done)

    def write(self) -> None:
        """Write all that there is: a run that is interrupted has measured something."""
        if self.file is not None:
            content = {"machine": self.machine, "skipped": self.skipped}
            content |= {"rows": self.rows}
            self.file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    def print_tables(self) -> None:
        """Print a table for each problem, if there are rows."""
        if not self.rows:
            return
        console = self.display.console
        console.width = max(console.width, TABLE_WIDTH)
        for size in dict.fromkeys(row["size"] for row in self.rows):
            console.print(_make_table([x for x in self.rows if x["size"] == size]))
        console.print(
            "speed: how many times as fast as the step it is measured beside, median "
            "and quartiles of the pairs; of limit: the bare loop's time over this one's"
            if "speed" in self.rows[0]
            else "B: bytes a parameter of a chip, as compiled, not run; +: and what is "
            "moved inside of branches, which is not counted"
        )


def _make_table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of one size."""
    first = rows[0]
    title = f"{first['size']}: {first['parameters']:,} parameters"
    if "speed" in first:
        columns = TIMED
        limits = [row for row in rows if row["candidate"] == "bare_loop"]
        cells = [_describe_timed(row, limits) for row in rows]
    else:
        columns = COMPILED
        title += f", for {first['compiled_for']}"
        cells = [_describe_compiled(row) for row in rows]
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name, (_, spec) in columns.items():
        table.add_column(name, justify="right" if spec else "left", no_wrap=True)
    base = first["base"]
    for row in cells:
        if row["base"] != base:
            table.add_section()
            base = row["base"]
        found = [(row[key], spec) for key, spec in columns.values()]
        table.add_row(*("" if x is None else f"{x:{spec}}" for x, spec in found))
    return table


def _describe_timed(
    row: dict[str, Any], limits: list[dict[str, Any]]
) -> dict[str, Any]:
    """Add the quartiles in words, and the share of the limit's speed."""
    low, high = row["speed_quartiles"]
    # Ratios of ratios hold only beside the same base.
    alike = [limit for limit in limits if limit["base"] == row["base"]]
    share = row["speed"] / alike[0]["speed"] if alike else None
    return row | {"quartiles": f"{low:.2f} {high:.2f}", "of_limit": share}


def _describe_compiled(row: dict[str, Any]) -> dict[str, Any]:
    """Add the bytes that are moved and the collectives in words."""
    collectives = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
    moved = f"{row['moved_bytes_per_parameter']:.2f}" + "+" * bool(row["branches"])
    return row | {"moved": moved, "collectives": collectives or "none"}
