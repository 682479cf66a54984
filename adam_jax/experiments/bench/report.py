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

    def skip(self, sentence: str, rows: int = 0) -> None:
        """Say what is left out, and of how many rows."""
        self._say(sentence)
        self.bar.advance(self.task, rows)

    def start(self, cell: Cell) -> None:
        """Tell what is measured now."""
        name = f"{cell.problem.name} {cell.candidate}, {cell.format}"
        self.bar.update(self.task, description=name)

    def show(self, row: dict[str, Any]) -> None:
        """Show a measured row."""
        self.bar.advance(self.task)
        if self.bar.disable:
            self._say(
                f"{row['size']} {row['candidate']}, {row['format']}: "
                f"{row['milliseconds']:.3g} ms, {row['speed']:.2f} x {row['base']}"
            )

    def print_tables(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print a table for each problem, if there are rows."""
        if not rows:
            return
        self.console.width = max(self.console.width, TABLE_WIDTH)
        for size in dict.fromkeys(row["size"] for row in rows):
            of_size = [row for row in rows if row["size"] == size]
            self.console.print(_make_table(size, of_size))
        self.console.print(
            "speed: how many times as fast as the step it is measured beside, median "
            "and quartiles of the pairs; of limit: the bare loop's time over this one's"
        )

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _make_table(size: str, rows: Sequence[dict[str, Any]]) -> Table:
    limits = [r["speed"] for r in rows if r["candidate"] == "bare_loop"]
    limit = limits[0] if limits else None
    beside = next((r["base"] for r in rows if r["candidate"] == "bare_loop"), None)
    count = rows[0]["parameters"]
    title = f"{size}: {count:,} parameters"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in COLUMNS:
        is_text = name in ("step of", "format", "beside")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
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
