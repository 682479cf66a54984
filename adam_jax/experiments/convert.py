"""`adam-jax convert`: optimizer states in files, from and to other programs."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from adam_jax.experiments.pictures.tables import Table
from adam_jax.experiments.running.progress import print_whole
from adam_jax.experiments.settings.options import ConvertOptions
from adam_jax.experiments.state_files import SAME, Read, choose_writer, read_file
from adam_jax.states.parts import iterate_nodes, own_fields, stored_moments


def prepare(options: ConvertOptions) -> Callable[[], None]:
    """Read the old file, and choose how the new one is written."""
    old = read_file(options.old, options)
    folder = Path(options.new or ".").parent
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    new = options.new
    if new is None:
        if options.to != SAME:
            raise ValueError("--to needs the name of the file to write, after the old")
        return lambda: print_state(options.old, old)
    write = choose_writer(options, old)

    def convert() -> None:
        print_state(options.old, old)
        write(new)
        read = read_file(new, options)
        print_state(new, read)
        print_losses(old, read)

    return convert


def print_state(path: Path, read: Read) -> None:
    """Print the moments of a file, a row for each moment of a node."""
    rows = []
    for node in iterate_nodes(read.nodes):
        for name, stored in stored_moments(node).items():
            arrays = jax.tree.leaves(stored.values)
            numbers = sum(x.size for x in arrays)
            dtypes = ", ".join(sorted({str(x.dtype) for x in arrays}))
            size = sum(x.nbytes for x in jax.tree.leaves(stored))
            steps = own_fields(node).get("count", "")
            cells = len(arrays), f"{numbers:,}", dtypes, f"{size:,}", steps
            rows.append([name, *map(str, cells)])
    heads = ["moment", "parameters", "numbers", "stored as", "bytes", "steps"]
    others = ["beside them: " + ", ".join(read.others)] if read.others else []
    lines = f"{path} ({read.kind})", Table(heads, rows), *others, ""
    print_whole(*lines, box=None, pad_edge=False)


def print_losses(old: Read, new: Read) -> None:
    """Print what the new file lacks of the old one, and how far moments differ."""
    lost = [x for x in old.others if x not in new.others]
    for name, tree in old.held.moments.items():
        there = new.held.moments.get(name, {})
        lost += [f"{name}/{path}" for path in tree if path not in there]
        off = [_compare(x, there[path]) for path, x in tree.items() if path in there]
        if off:
            print(f"{name}: off by at most {max(off):.2g} of the largest in its array")
    if old.held.counts != new.held.counts:
        lost.append("counts")
    print(f"lost: {', '.join(lost) or 'nothing'}")


def _compare(x: np.ndarray, y: np.ndarray) -> float:
    """Give the largest difference of two arrays, in units of the largest element."""
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0, np.abs(x - y))
    largest = np.nanmax(np.abs(x), initial=0)
    return float(off.max(initial=0) / (largest or 1))
