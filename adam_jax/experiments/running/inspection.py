"""`adam-jax inspect`: the figures of a run as text."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from adam_jax.experiments.metrics import (
    Epoch,
    rank_moved,
    read_epochs,
    to_json,
    to_scalars,
)
from adam_jax.experiments.pictures.tables import Table, tabulate_groups, to_text
from adam_jax.experiments.running.progress import print_whole
from adam_jax.experiments.settings.options import InspectOptions

COLUMNS = 5  # epochs side by side: they fit into 80 characters


def prepare(options: InspectOptions) -> Callable[[], None]:
    """Read the run."""
    epochs = read_epochs(options.run)
    return lambda: print_run(options.run, epochs, options.json)


def print_run(folder: Path, epochs: Sequence[Epoch], as_json: bool) -> None:
    """Print the figures of a run."""
    most, least = rank_moved(epochs[-1].moved)
    if as_json:
        rows = [json.loads(to_json(epoch)) for epoch in epochs]
        ranks = {"moved_most": most, "moved_least": least}
        print(json.dumps({"run": str(folder), "epochs": rows, **ranks}))
        return
    for table in (tabulate_epochs(epochs), tabulate_groups(epochs[-1])):
        print_whole(table, "", box=None, pad_edge=False)
    for words, groups in (("most", most), ("least", least)):
        distances = epochs[-1].moved
        named = ", ".join(f"{group} {to_text(distances[group])}" for group in groups)
        if named:
            print(f"moved {words}: {named}")


def choose_epochs(epochs: Sequence[Epoch]) -> list[Epoch]:
    """Choose the first epoch, the last one, and some evenly spaced in between."""
    last, steps = len(epochs) - 1, COLUMNS - 1
    return [epochs[n] for n in sorted({last * k // steps for k in range(COLUMNS)})]


def tabulate_epochs(epochs: Sequence[Epoch]) -> Table:
    """Make the table of the figures of the whole tree, a row each, over the epochs."""
    chosen = choose_epochs(epochs)
    columns = [to_scalars(epoch) for epoch in chosen]
    of_a_group = tuple(f"/{group}" for group in epochs[-1].moved)
    rows = []
    for name in columns[-1]:
        values = [column.get(name, math.nan) for column in columns]
        if not name.endswith(of_a_group):
            rows.append([name, *map(to_text, values)])
    return Table(["after epoch", *(str(epoch.epoch) for epoch in chosen)], rows)
