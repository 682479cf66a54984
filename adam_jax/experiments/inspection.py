"""`adam-jax inspect`: the figures of a run as text."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adam_jax.experiments.metrics import (
    Epoch,
    rank_moved,
    read_epochs,
    to_json,
    to_scalars,
)
from adam_jax.experiments.options import InspectOptions

COLUMNS = 5  # epochs side by side: they fit into 80 characters
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


def prepare(options: InspectOptions) -> Callable[[], None]:
    """Read the run.

    Raises:
      ValueError: if the folder holds no run that can be read.
    """
    epochs = read_epochs(options.run)
    return lambda: print_run(options.run, epochs, options.json)


def print_run(folder: Path, epochs: Sequence[Epoch], as_json: bool) -> None:
    """Print the figures of a run."""
    most, least = rank_moved(epochs[-1].moved)
    # Wide enough to hold each table whole: folded, it could not be read.
    console = Console(highlight=False, markup=False, width=1000)
    if as_json:
        rows = [json.loads(to_json(epoch)) for epoch in epochs]
        ranks = {"moved_most": most, "moved_least": least}
        console.out(json.dumps({"run": str(folder), "epochs": rows, **ranks}))
        return
    console.print(tabulate_epochs(epochs), "", tabulate_groups(epochs[-1]), "")
    for words, groups in (("most", most), ("least", least)):
        distances = epochs[-1].moved
        named = ", ".join(f"{group} {to_text(distances[group])}" for group in groups)
        console.print(f"moved {words}: {named}")


def choose_epochs(epochs: Sequence[Epoch]) -> list[Epoch]:
    """Choose the first epoch, the last one, and some evenly spaced in between."""
    last, steps = len(epochs) - 1, COLUMNS - 1
    return [epochs[n] for n in sorted({last * k // steps for k in range(COLUMNS)})]


def tabulate_epochs(epochs: Sequence[Epoch]) -> Table:
    """Make the table of the figures of the whole tree, a row each, over the epochs."""
    table = Table("after epoch", box=None, pad_edge=False)
    columns = []
    for epoch in choose_epochs(epochs):
        table.add_column(str(epoch.epoch), justify="right")
        columns.append(to_scalars(epoch))
    of_a_group = tuple(f"/{group}" for group in epochs[-1].moved)
    for name in columns[-1]:
        values = [column.get(name, math.nan) for column in columns]
        has_none = name == "accuracy" and all(map(math.isnan, values))
        if not name.endswith(of_a_group) and not has_none:
            table.add_row(name, *map(to_text, values))
    return table


def tabulate_groups(last: Epoch) -> Table:
    """Make the table of the last epoch's figures, a row for each parameter group."""
    table = Table("parameter group", box=None, pad_edge=False)
    shown = [name for name in BY_GROUP if name in last.figures]
    for head in (*(BY_GROUP[name] for name in shown), "moved"):
        table.add_column(head, justify="right")
    for group, moved in last.moved.items():
        values = [last.figures.get(f"{name}/{group}", math.nan) for name in shown]
        table.add_row(group, *map(to_text, (*values, moved)))
    return table


def to_text(value: float) -> str:
    """Give three digits of a number."""
    return f"{value:.3g}"
