"""What is shown while the benchmark runs, and the tables that close it."""

from collections.abc import Sequence
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
    """Show what is measured, row by row, and the tables at the end."""

    def __init__(self, machine: dict[str, Any], total: int):
        """Take what `describe_machine` returned, and the number of rows to come."""
        self.display = Display("row", total, transient=True)
        self.console = self.display.console
        self.done = 0  # rows
        self.skipped: dict[str, str] = {}
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
        self.display.tell(f"{machine['cpu']}, {machine['cores']} cores; {versions}")
        load = machine["load_average"]
        if load[0] > 0.5:
            self.display.tell(
                f"The machine is busy (load {load[0]:.1f}): trust ratios, not times."
            )

    def skip(self, name: str, why: str, rows: int = 0) -> None:
        """Say and keep what is left out, why, and how many rows that are."""
        self.skipped[name] = why
        self.display.tell(f"without {name}: {why}")
        self._advance(rows)

    def start(self, cell: Cell) -> None:
        """Tell what is measured now."""
        name = f"{cell.problem.name} {cell.candidate}, {cell.format}"
        self.display.label(name)

    def show(self, row: dict[str, Any]) -> None:
        """Show a measured row."""
        self._advance(1)
        found = (
            f"{row['milliseconds']:.3g} ms, {row['speed']:.2f} x {row['base']}"
            if "milliseconds" in row
            else f"{row['moved_bytes_per_parameter']:.2f} bytes a parameter moved"
        )
        self.display.note(f"{row['size']} {row['candidate']}, {row['format']}: {found}")

    def print_tables(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print a table for each problem, if there are rows."""
        if not rows:
            return
        self.console.width = max(self.console.width, TABLE_WIDTH)
        for size in dict.fromkeys(row["size"] for row in rows):
            of_size = [row for row in rows if row["size"] == size]
            self.console.print(_make_table(of_size))
        self.console.print(
            "speed: how many times as fast as the step it is measured beside, median "
            "and quartiles of the pairs; of limit: the bare loop's time over this one's"
            if "speed" in rows[0]
            else "B: bytes a parameter of a chip, as compiled, not run; +: and what is "
            "moved inside of branches, which is not counted"
        )

    def _advance(self, rows: int) -> None:
        self.done += rows
        self.display.reach(self.done)


def _make_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of one size."""
    is_timed, first = "speed" in rows[0], rows[0]
    columns = TIMED if is_timed else COMPILED
    title = f"{first['size']}: {first['parameters']:,} parameters"
    title += "" if is_timed else f", for {first['compiled_for']}"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name, (_, spec) in columns.items():
        table.add_column(name, justify="right" if spec else "left", no_wrap=True)
    limit = next((row for row in rows if row["candidate"] == "bare_loop"), None)
    for previous, row in zip([first, *rows], rows, strict=False):
        if previous["base"] != row["base"]:
            table.add_section()
        cells = row | (_in_words(row) if not is_timed else _with_limit(row, limit))
        found = [(cells[key], spec) for key, spec in columns.values()]
        table.add_row(*("" if x is None else f"{x:{spec}}" for x, spec in found))
    return table


def _with_limit(row: dict[str, Any], limit: dict[str, Any] | None) -> dict[str, Any]:
    """Return the quartiles in words, and the share of the limit's speed."""
    low, high = row["speed_quartiles"]
    # Ratios of ratios hold only beside the same base.
    is_alike = limit is not None and limit["base"] == row["base"]
    share = row["speed"] / limit["speed"] if limit and is_alike else None
    return {"quartiles": f"{low:.2f} {high:.2f}", "of_limit": share}


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes that are moved and the collectives in words."""
    collectives = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
    moved = f"{row['moved_bytes_per_parameter']:.2f}" + "+" * bool(row["branches"])
    return {"moved": moved, "collectives": collectives or "none"}
