"""`adam-jax family`: the optimizers as a tree, and their chains side by side."""

import inspect
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from adam_jax.experiments.options import FamilyOptions
from adam_jax.family.table import OPTIMIZERS, PARENTS
from adam_jax.family.tree import children, compare_lines, expect_name

SHAPE = (1024, 1024)


def prepare(options: FamilyOptions) -> Callable[[], None]:
    """Look up what is to be shown.

    Raises:
      ValueError: if there is no such optimizer, or there are more than two.
    """
    names = list(options.names)
    for name in names:
        expect_name(name)
    if not names:
        return lambda: print_table(tabulate())
    if len(names) > 2:
        raise ValueError(f"two chains go side by side, got {len(names)} names")
    other: str = names[1] if names[1:] else PARENTS.get(names[0], names[0])
    return lambda: print_table(set_side_by_side(names[0], other))


def print_table(table: Table) -> None:
    """Print a table as wide as it is."""
    Console(highlight=False, markup=False, width=1000).print(table)


def tabulate() -> Table:
    """Make the table of all optimizers, each below the one that it changes."""
    table = Table("optimizer", box=None, pad_edge=False)
    table.add_column("lines", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("what it is")

    def add(name: str, depth: int) -> None:
        lines = str(count_changes(name)) if name in PARENTS else "-"
        cells = "  " * depth + name, lines, f"{count_bytes(name):.2f}", summary(name)
        table.add_row(*cells)
        for child in children(name):
            add(child, depth + 1)

    add("sgd", 0)
    table.caption = (
        f"{len(OPTIMIZERS)} optimizers\n"
        "lines: those of its chain that differ from its parent's\n"
        f"bytes: of state a parameter, for a float32 matrix of {SHAPE[0]} x {SHAPE[1]}"
    )
    table.caption_justify = "left"
    return table


def set_side_by_side(name: str, other: str) -> Table:
    """Make the table of two chains, with a mark where they differ."""
    table = Table(name, "", other, box=None, pad_edge=False)
    for line, beside, differs in compare_lines(name, other):
        table.add_row(line, "|" if differs else "", beside)
    return table


def count_changes(name: str) -> int:
    """Count the lines in which a chain differs from that of its parent."""
    return sum(differs for _, _, differs in compare_lines(name, PARENTS[name]))


def count_bytes(name: str) -> float:
    """Measure the bytes of state a parameter of a large matrix."""
    params = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    state = jax.eval_shape(OPTIMIZERS[name](1e-3).init, params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / params.size


def paragraph(name: str, head: str) -> str:
    """Give a paragraph of an optimizer's docstring, such as "When"; "" without one."""
    text = inspect.getdoc(OPTIMIZERS[name]) or ""
    found = re.search(rf"^{head}: (.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def summary(name: str) -> str:
    """Give the first line of an optimizer's docstring, without its verb."""
    first = (inspect.getdoc(OPTIMIZERS[name]) or "").split("\n\n")[0]
    return " ".join(first.split()).removeprefix("Build ").removesuffix(".")
