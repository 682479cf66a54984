"""How near does each optimizer come to others' code? `python benchmarks/family.py`

Runs every optimizer in float64 beside its oracle (a loop transcribed from the paper, in
tests/oracle), beside Optax where that has it, and beside the trajectories of other
libraries in tests/reference; writes what it finds, with the chains, to docs/family.md
and the tree to docs/family.png. `make family` runs it (5 min).
"""

import inspect
import itertools
import json
import pathlib
import re
import sys

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from adam_jax import OPTIMIZERS
from adam_jax.experiments.family import (
    SHAPE,
    count_bytes,
    count_changes,
    paragraph,
    summary,
)
from adam_jax.experiments.pictures.drawing import to_chart, to_picture
from adam_jax.family.table import PARENTS
from adam_jax.family.tree import chain_lines, children, compare_lines, lineage

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cases import ARRAY_CASES, CASES, beside_oracle, from_json, leaf_gradients, run  # noqa: E402

STEPS = 200
LR = 1e-2
MADE = "<!-- made by `make family`: do not edit -->"
INTRO = f"""\
{MADE}

# The family

Every optimizer of the table, below the one that it changes. Each is one chain, and the
lines in which it differs from its parent's are marked, as `adam-jax family NAME` prints
them. With its chain it has all that the parts bring: moments in bfloat16 and 8 bits,
guards, figures, sharding, files. Only in a shard_map that cuts a leaf, those that work
on whole matrices (SOAP, Shampoo, GaLore, Muon and its children) refuse the step.

What a paper claims is said to be its claim: it was not repeated here.

![the family tree](family.png)

*lines*: how many lines of the chain differ from the parent's. *bytes*: of state a
parameter, counted for a float32 matrix of {SHAPE[0]} x {SHAPE[1]}. *oracle*: the
largest error of an update over {STEPS} steps in float64, beside a loop transcribed from
the paper. *others*: the largest error of a parameter beside other people's code, for
the nearest of the libraries that the section lists. Errors are relative to the size of
a step.
"""


def error(found, expected, start):
    """Return the largest difference of two trajectories, in mean steps."""
    step = np.abs(np.diff(expected, axis=0, prepend=start[None])).mean(0)
    return float(np.max(np.abs(found - expected) / np.maximum(step, 1e-300)))


def follow(make, kwargs, grads, start):
    """Return the parameters after every step, in float64."""
    with jax.enable_x64(True):
        return run(make(**kwargs), jnp.asarray(grads), jnp.asarray(start))[1]


def measure_oracle(name):
    """Return the largest error of an update in all cases that the tests have."""
    errors = []
    for case in itertools.chain(CASES, ARRAY_CASES):
        if case[0] == name:
            updates, expected = beside_oracle(case, STEPS)
            largest = np.maximum(np.abs(expected), LR)
            errors.append(np.max(np.abs(updates - expected) / largest))
    return max(errors, default=None)


def measure_others(name):
    """Return (library, error) of every other implementation, the nearest first."""
    found = []
    for module in (optax, optax.contrib):
        theirs = getattr(module, name, None)
        if theirs is not None and name != "lookahead":  # a wrapper there
            start, grads = leaf_gradients((4, 6), STEPS)
            makers = theirs, OPTIMIZERS[name]
            rate = {"learning_rate": LR}
            expected, ours = (follow(make, rate, grads, start) for make in makers)
            found.append(
                (f"{module.__name__} {optax.__version__}", ours, expected, start)
            )
    for file in ("torch", "family"):
        with np.load(ROOT / f"tests/reference/{file}.npz") as stored:
            reference = dict(stored)
        for key, case in json.loads(reference["cases"].item()).items():
            if case["optimizer"] == name:
                leaf = f"/{case['leaf']}" if "leaf" in case else ""
                start = reference[f"params0{leaf}"]
                kwargs = from_json(case["kwargs"])
                grads = reference[f"grads{leaf}"]
                ours = follow(OPTIMIZERS[name], kwargs, grads, start)
                library = case.get("library", "torch.optim")
                found.append((library, ours, reference[f"params/{key}"], start))
    nearest = {}
    for library, ours, expected, start in found:
        near = error(ours, expected, start)
        nearest[library] = max(near, nearest.get(library, 0.0))
    return sorted(nearest.items(), key=lambda item: item[1])


def in_order(name="sgd"):
    """Yield every optimizer after the one that it changes."""
    yield name
    for child in children(name):
        yield from in_order(child)


def to_section(name, near, others):
    """Return what the page says of one optimizer."""
    lines = [f"## {name}", "", f"{summary(name)}.", ""]
    parent = PARENTS.get(name)
    pairs = compare_lines(name, parent) if parent else []
    lines += ["```diff"]
    lines += [f"  {line}" for line in chain_lines(name)] if not parent else []
    for line, other, differs in pairs:
        if differs:
            lines += [f"- {other}"] * bool(other) + [f"+ {line}"] * bool(line)
        else:
            lines += [f"  {line}"]
    lines += ["```", ""]
    above = f"Changes [{parent}](#{parent}). " if parent else ""
    lines += [
        f"{above}{count_bytes(name):.2f} bytes a parameter. {paragraph(name, 'When')}"
    ]
    checks = [f"the oracle {near:.0e}"] if near is not None else []
    checks += [f"{library} {err:.0e}" for library, err in others]
    lines += ["", f"Checked against: {', '.join(checks)}."]
    lines += ["", f"Reference: {paragraph(name, 'Reference')}"]
    for differs in re.findall(
        r"^Differs .*?(?=\n\n|\Z)", inspect.getdoc(OPTIMIZERS[name]), re.M | re.S
    ):
        lines += [" ".join(differs.split())]
    return "\n".join(lines) + "\n"


def draw(rows):
    """Draw the tree: a row each, with what of its chain differs from the one above."""
    place, names, edges = {}, [], []
    for row, (name, _, _) in enumerate(rows):
        x = 10 + 22 * (len(lineage(name)) - 1)
        place[name] = x, row
        words = ""
        if name in PARENTS:
            above, height = place[PARENTS[name]]
            edges += [{"x": above + 5, "x2": above + 5, "y": height + 0.45, "y2": row}]
            edges += [{"x": above + 5, "x2": x - 2, "y": row, "y2": row}]
            pairs = compare_lines(name, PARENTS[name])
            new = [a.strip() for a, _, differs in pairs if differs and a]
            gone = [b.strip() for a, b, differs in pairs if differs and not a]
            gone = [f"(no {line.partition('(')[0]})" for line in gone]
            words = "   ".join([*new, *gone])
            words = words if len(words) < 150 else words[:147] + "..."
        names.append(
            {"x": x, "y": row, "name": name, "bytes": f"{count_bytes(name):.2f}"}
            | {"words": words}
        )
    heads = {"name": "optimizer", "bytes": "bytes"}
    heads["words"] = "what differs from the chain above"
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, 1200], nice=False))
    ends = [-1.5, len(rows) - 0.5]
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=ends, reverse=True, nice=False))
    tree = to_chart(edges).mark_rule(color="#b0b0b0").encode(x, y, x2="x2", y2="y2")
    texts = to_chart([*names, {"x": 10, "y": -1, **heads}])
    left = {"align": "left", "fontSize": 12}
    blue = {"font": "DejaVu Sans Mono", "color": "#1f4e8c", "fontSize": 10}
    chart = alt.layer(
        tree,
        texts.mark_text(fontWeight="bold", **left).encode(x, y, text="name:N"),
        texts.mark_text(align="right").encode(y, x=alt.value(350), text="bytes:N"),
        texts.mark_text(**left | blue).encode(y, x=alt.value(365), text="words:N"),
    )
    return chart.properties(width=1300, height=20 * len(rows)).configure_view(
        stroke=None
    )


def main():
    rows = []
    for name in in_order():
        rows.append((name, measure_oracle(name), measure_others(name)))
        near, others = rows[-1][1:]
        shown = "-" if near is None else f"{near:.0e}"
        print(
            f"{name:24}{shown:>8}  " + ", ".join(f"{x} {e:.0e}" for x, e in others),
            flush=True,
        )
    both = sum(near is not None and bool(others) for _, near, others in rows)
    table = [
        "| optimizer | lines | bytes | oracle | others | what it is |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, near, others in rows:
        indent = "&nbsp;" * 3 * (len(lineage(name)) - 1)
        lines = count_changes(name) if name in PARENTS else "-"
        cells = f"{indent}[{name}](#{name})", f"{lines}", f"{count_bytes(name):.2f}"
        cells += (
            "-" if near is None else f"{near:.0e}",
            f"{others[0][1]:.0e}" if others else "-",
        )
        table.append("| " + " | ".join([*cells, summary(name)]) + " |")
    counted = f"{len(rows)} optimizers; {both} of them have both references"
    lacking = [name for name, near, others in rows if near is None or not others]
    counted += f" (not {', '.join(lacking)})." if lacking else "."
    page = [INTRO, counted, "", *table, ""]
    page += [to_section(*row) for row in rows]
    (ROOT / "docs/family.md").write_text("\n".join(page), "utf-8")
    (ROOT / "docs/family.png").write_bytes(to_picture(draw(rows)))
    print(counted)


if __name__ == "__main__":
    main()
