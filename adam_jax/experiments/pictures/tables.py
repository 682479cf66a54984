"""Tables whose rows are made once, for the terminal and for the page."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import table as rich_table

from adam_jax.experiments.metrics import Epoch, write_metric

# What the table of groups shows, and the heads of its columns.
BY_GROUP = {
    "param_norm": "norm",
    "gradient_norm": "gradient",
    "update_ratio": "update/norm",
    "effective_step": "step",
    "signal_to_noise_quantiles/q50": "SNR",
    "swallowed": "swallowed",
    "nonfinite": "nonfinite",
}


class Table(NamedTuple):
    """Hold a table; if there are no heads of columns, the first cells are heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: int = 1  # columns of text; the others, after these, are numbers
    folded: bool = False  # on a page: its title alone, until one asks for more


def to_rich(table: Table, **style: Any) -> rich_table.Table:
    """Make a table for the terminal, in any style that Rich's tables take."""
    made = rich_table.Table(title=table.title or None, **style)
    for number, head in enumerate(table.heads):
        made.add_column(head, justify="left" if number < table.texts else "right")
    for row in table.rows:
        made.add_row(*row)
    return made


def tabulate_groups(last: Epoch) -> Table:
    """Make the table of the last epoch's figures, a row for each parameter group."""
    shown = [name for name in BY_GROUP if name in last.figures]
    rows = []
    for group, moved in last.moved.items():
        values = [last.figures.get(f"{name}/{group}", math.nan) for name in shown]
        rows.append([group, *map(to_text, (*values, moved))])
    heads = ["parameter group", *(BY_GROUP[name] for name in shown), "moved"]
    return Table(heads, rows)


def describe_last(last: Epoch, epochs: Any, loss: str = "") -> dict[str, str]:
    """Say how well a run has learned, and how many of its epochs are done."""
    rows = {f"test {x}": write_metric(x, value) for x, value in last.metrics.items()}
    rows["test loss"] = to_loss(last.test_loss) + (f" ({loss})" if loss else "")
    rows["training loss"] = to_loss(last.train_loss)
    rows["epochs"] = f"{last.epoch} of {epochs}"
    if last.skipped:
        rows["skipped"] = f"{last.skipped:,} of {last.step:,} steps"
    return rows


def to_text(value: float) -> str:
    """Give three digits of a number."""
    return f"{value:.3g}"


def to_loss(value: float) -> str:
    """Give four digits of a loss, if it is one."""
    return f"{value:.4g}" if math.isfinite(value) else "diverged"
