"""`adam-jax family`: the optimizers as a tree, and their chains side by side."""

import inspect
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from adam_jax.experiments.pictures.tables import Table
from adam_jax.experiments.running.progress import print_whole
from adam_jax.experiments.settings.config import suggest
from adam_jax.experiments.settings.options import FamilyOptions
from adam_jax.family.table import OPTIMIZERS, PARENTS
from adam_jax.family.tree import children, compare_lines

SHAPE = (1024, 1024)
NOTE = f"""\
{len(OPTIMIZERS)} optimizers
lines: those of its chain that differ from its parent's
bytes: of state a parameter, for a float32 matrix of {SHAPE[0]} x {SHAPE[1]}"""


def prepare(options: FamilyOptions) -> Callable[[], None]:
    """Look up what is to be shown."""
    names = list(options.names)
    if unknown := [x for x in names if x not in OPTIMIZERS]:
        cure = suggest(OPTIMIZERS, *unknown) or ": adam-jax family lists them"
        raise ValueError(
            f"there is no optimizer {' or '.join(map(repr, unknown))}{cure}"
        )
    if not names:
        return lambda: print_whole(tabulate(), NOTE, box=None, pad_edge=False)
    if len(names) > 2:
        raise ValueError(f"two chains go side by side, got {len(names)} names")
    other: str = names[1] if names[1:] else PARENTS.get(names[0], names[0])
    table = set_side_by_side(names[0], other)
    return lambda: print_whole(table, box=None, pad_edge=False)


def tabulate() -> Table:
    """Make the table of all optimizers, each below the one that it changes."""
    rows = []

    def add(name: str, depth: int) -> None:
        lines = count_changes(name) if name in PARENTS else "-"
        numbers = f"{lines:>5}", f"{count_bytes(name):5.2f}"
        rows.append(["  " * depth + name, *numbers, summary(name)])
        for child in children(name):
            add(child, depth + 1)

    add("sgd", 0)
    return Table(["optimizer", "lines", "bytes", "what it is"], rows, texts=4)


def set_side_by_side(name: str, other: str) -> Table:
    """Make the table of two chains, with a mark where they differ."""
    rows = [
        [line, "|" if differs else "", beside]
        for line, beside, differs in compare_lines(name, other)
    ]
    return Table([name, "", other], rows, texts=3)


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
