"""What is shown while the benchmark runs, and the tables that close it."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from adam_jax.experiments.bench.plan import Cell

TABLE_WIDTH = 132  # narrower, names and numbers would be cut
COLUMNS = (
    *("step of", "format", "ms", "ns/param", "speed", "quartiles", "beside"),
    *("of limit", "state B", "peak B", "compile s"),
)
COMPILED_COLUMNS = (
    *("step of", "format", "moved B", "beside", "its B", "temporary B"),
    *("not in place B", "fusions", "copies", "collectives", "compile s"),
)
TEXTS = ("step of", "format", "beside", "collectives")


class BenchReport:
    """Show progress as a bar on a terminal, as plain lines elsewhere."""

    def __init__(self, machine: dict[str, Any], total: int):
        """Take what `describe_machine` returned, and the number of rows to come."""
        self.console = Console(highlight=False)
        self.bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.skipped: dict[str, str] = {}
        self.task = self.bar.add_task("", total=total)
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
        self._say(f"{machine['cpu']}, {machine['cores']} cores; {versions}")
        load = machine["load_average"]
        if load and load[0] > 0.5:
            self._say(
                f"The machine is busy (load {load[0]:.1f}): trust ratios, not times."
            )

    def __enter__(self) -> "BenchReport":
        """Start the bar."""
        self.bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop the bar."""
        self.bar.stop()

    def skip(self, name: str, why: str, rows: int = 0) -> None:
        """Say and keep what is left out, why, and how many rows that are."""
        self.skipped[name] = why
        self._say(f"without {name}: {why}")
        self.bar.advance(self.task, rows)

    def start(self, cell: Cell) -> None:
        """Tell what is measured now."""
        name = f"{cell.problem.name} {cell.candidate}, {cell.format}"
        self.bar.update(self.task, description=name)

    def show(self, row: dict[str, Any]) -> None:
        """Show a measured row."""
        self.bar.advance(self.task)
        if self.bar.disable:
            found = (
                f"{row['milliseconds']:.3g} ms, {row['speed']:.2f} x {row['base']}"
                if "milliseconds" in row
                else f"{row['moved_bytes_per_parameter']:.2f} bytes a parameter moved"
            )
            self._say(f"{row['size']} {row['candidate']}, {row['format']}: {found}")

    def print_tables(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print a table for each problem, if there are rows."""
        if not rows:
            return
        self.console.width = max(self.console.width, TABLE_WIDTH)
        for size in dict.fromkeys(row["size"] for row in rows):
            of_size = [row for row in rows if row["size"] == size]
            table = _make_table if "speed" in rows[0] else _make_compiled_table
            self.console.print(table(size, of_size))
        self.console.print(
            "speed: how many times as fast as the step it is measured beside, median "
            "and quartiles of the pairs; of limit: the bare loop's time over this one's"
            if "speed" in rows[0]
            else "B: bytes a parameter of a chip, as compiled, not run; +: and what is "
            "moved inside of branches, which is not counted"
        )

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _new_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in columns:
        is_text = name in TEXTS
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    return table


def _make_compiled_table(size: str, rows: Sequence[dict[str, Any]]) -> Table:
    title = f"{size}: {rows[0]['parameters']:,} parameters"
    table = _new_table(f"{title}, for {rows[0]['compiled_for']}", COMPILED_COLUMNS)
    for row in rows:
        collectives = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
        table.add_row(
            row["candidate"],
            row["format"],
            f"{row['moved_bytes_per_parameter']:.2f}" + "+" * bool(row["branches"]),
            row["base"],
            f"{row['base_moved_bytes_per_parameter']:.2f}",
            f"{row['temporary_bytes_per_parameter']:.2f}",
            f"{row['not_in_place_bytes_per_parameter']:.2f}",
            str(row["fusions"]),
            str(row["copies"]),
            collectives or "none",
            f"{row['compile_seconds']:.2f}",
        )
    return table


def _make_table(size: str, rows: Sequence[dict[str, Any]]) -> Table:
    limits = [r["speed"] for r in rows if r["candidate"] == "bare_loop"]
    limit = limits[0] if limits else None
    beside = next((r["base"] for r in rows if r["candidate"] == "bare_loop"), None)
    table = _new_table(f"{size}: {rows[0]['parameters']:,} parameters", COLUMNS)
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous and previous["base"] != row["base"]:
            table.add_section()
        # Ratios of ratios hold only beside the same base.
        share = row["speed"] / limit if limit and row["base"] == beside else None
        low, high = row["speed_quartiles"]
        table.add_row(
            row["candidate"],
            row["format"],
            f"{row['milliseconds']:#.3g}",
            f"{row['nanoseconds_per_parameter']:#.3g}",
            f"{row['speed']:.2f}",
            f"{low:.2f} {high:.2f}",
            row["base"],
            "" if share is None else f"{share:.2f}",
            f"{row['state_bytes_per_parameter']:.2f}",
            f"{row['peak_bytes_per_parameter']:.1f}",
            "" if row["compile_seconds"] is None else f"{row['compile_seconds']:.2f}",
        )
    return table
