"""What the pages say: of one run, of several side by side, of a study."""

import collections
import datetime
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

import adam_jax
from adam_jax.experiments import report
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.metrics import Epoch, write_metric
from adam_jax.experiments.pictures.drawing import Panel, to_page
from adam_jax.experiments.pictures.run_charts import chart_figures, chart_learning
from adam_jax.experiments.pictures.tables import (
    Table,
    describe_last,
    tabulate_groups,
    to_loss,
)
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import group_members, label, rank, tabulate
from adam_jax.experiments.study.study_charts import SHOWN, chart_curves, chart_settings

SNIPPET = "window.vegaEmbed = vegaEmbed;"
ALL_DIVERGED = {"best": "none: all have diverged"}
GROUP_WORDS = (
    "After the last epoch. Norm: length of the parameters; update/norm: by which share "
    "the last step changed them; step: mean of |update| / learning rate; SNR: median "
    "signal-to-noise ratio; swallowed: share of updates lost to rounding; nonfinite: "
    "elements of the gradient; moved: root mean square of the distance from the start."
)


class Run(NamedTuple):
    """Hold what a run has left in its folder; the keys of its tables are dotted."""

    name: str  # what the page calls it
    config: Mapping[str, Any]
    environment: Mapping[str, Any] | None  # None where it was not recorded
    epochs: Sequence[Epoch]  # so far; a study has none


class Section(NamedTuple):
    """Hold a part of the page: its heading, a sentence, charts, and tables."""

    title: str
    about: str = ""
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()


class Page(NamedTuple):
    """Hold what a page says: its title, a sentence, the first numbers, and the rest."""

    title: str
    about: str
    tiles: dict[str, str]
    sections: Sequence[Section]


def write_html(page: Page) -> str:
    """Write a page; it loads nothing, and its policy lets it load nothing."""
    environment = Environment(
        loader=PackageLoader(report.__name__, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        charts=[to_page(panel) for part in page.sections for panel in part.panels],
        vega=Markup(_bundle_vega()),
        version=adam_jax.__version__,
        today=datetime.date.today().isoformat(),
    )


@functools.cache
def _bundle_vega() -> str:
    return vl_convert.javascript_bundle(SNIPPET).replace("</script", r"<\/script")


def describe_runs(runs: Sequence[Run]) -> Page:
    """Make the page of one run, or of several side by side."""
    alone = len(runs) == 1
    epochs = {run.name: run.epochs for run in runs}
    groups = [
        tabulate_groups(run.epochs[-1])._replace(title=run.name, folded=not alone)
        for run in runs
    ]
    did = "What the optimizer did in the last step of each epoch."
    results = [] if alone else [Section("Results", tables=[_tabulate_results(runs)])]
    return Page(
        title=runs[0].name if alone else f"{len(runs)} runs side by side",
        about=_describe_config(runs[0].config) if alone else ", ".join(epochs),
        tiles=_tile_run(runs[0]) if alone else _tile_best(runs),
        sections=[
            Section("Learning", panels=chart_learning(epochs)),
            *results,
            Section("Diagnostics", did, chart_figures(epochs)),
            Section("Parameter groups", GROUP_WORDS, tables=groups),
            *_describe_origins(runs),
        ],
    )


def describe_study(study: Run, members: Sequence[Member]) -> Page:
    """Make the page of a study."""
    outcomes = rank(group_members(members))
    settings = chart_settings(outcomes)
    over = Section("Settings", "The loss after the last epoch.", settings)
    some = f"The best {SHOWN} of {len(outcomes)} settings"
    which = some if len(outcomes) > SHOWN else "All settings"
    ranked = f"{which} by test loss at the end: the mean (lowest to highest seed)."
    table = tabulate("", outcomes[:SHOWN], outcomes)
    best, tiles = outcomes[0], ALL_DIVERGED
    if not best.diverged:
        tiles = {"best": label(best, outcomes)}
        tiles["test loss"] = to_loss(best.final("test_loss").mean)
        for name in best.members[0].metrics:
            tiles[f"test {name}"] = write_metric(name, best.final(name).mean)
        tiles["training loss"] = to_loss(best.final("train_loss").mean)
    counts = {
        "optimizer": len({member.optimizer for member in members}),
        "setting": len(outcomes),
        "seed": len({member.seed for member in members}),
    }
    counted = ", ".join(_count(number, thing) for thing, number in counts.items())
    return Page(
        title=study.name,
        about=f"{counted}: {_count(len(members), 'run')} in all",
        tiles=tiles,
        sections=[
            Section("Learning", panels=chart_curves(outcomes)),
            *([over] if settings else []),
            Section("Results", ranked, tables=[table]),
            *_describe_origins([study]),
        ],
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _describe_config(config: Mapping[str, Any]) -> str:
    known = collections.defaultdict(lambda: "?", config)
    problem, model = known["problem"], config.get("arguments.model")
    return (
        f"{f'{model} on {problem}' if model else problem}, trained by "
        f"{known['optimizer.name']}, learning rate {known['optimizer.learning_rate']} "
        f"({known['optimizer.schedule']}), seed {known['seed']}"
    )


def _tile_run(run: Run) -> dict[str, str]:
    last = run.epochs[-1]
    tiles = describe_last(last, run.config.get("epochs", "?"))
    return tiles | {"steps": f"{last.step:,}"}


def _tile_best(runs: Sequence[Run]) -> dict[str, str]:
    finite = [run for run in runs if math.isfinite(run.epochs[-1].test_loss)]
    if not finite:
        return ALL_DIVERGED
    best = min(finite, key=lambda run: run.epochs[-1].test_loss)
    return {"smallest test loss": best.name} | _tile_run(best)


def _tabulate_results(runs: Sequence[Run]) -> Table:
    settings = ("optimizer.name", "optimizer.learning_rate", "seed")
    tiles = [_tile_run(run) for run in runs]
    keys = dict.fromkeys(key for own in tiles for key in own)
    rows = [
        [
            run.name,
            *(str(run.config.get(key, "-")) for key in settings),
            *(own.get(key, "-") for key in keys),
        ]
        for run, own in zip(runs, tiles, strict=True)
    ]
    heads = ["run", "optimizer", "learning rate", "seed", *keys]
    return Table(heads, rows, texts=2)


def _describe_origins(runs: Sequence[Run]) -> list[Section]:
    """Say by which configs runs were made, and on which machines."""
    known = {run.name: run.environment for run in runs if run.environment}
    missing = [run.name for run in runs if not run.environment]
    words = "Recorded when training began."
    if not known:
        words = "Not recorded: this is what has made the page."
        known = {"this page": flatten(describe_machine())}
    elif missing:
        words = f"Not recorded by {', '.join(missing)}."
    configs = {run.name: run.config for run in runs}
    return [
        Section("Config", tables=compare_pairs(configs)),
        Section("Environment", words, tables=compare_pairs(known)),
    ]


def compare_pairs(columns: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Make a table of what differs, and a folded one of what is the same in all.

    If there is but one column, all of it is shown.
    """
    tables = [{k: _to_plain(v) for k, v in table.items()} for table in columns.values()]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key, "-") for table in tables] for key in keys}
    same = [(key, row[0]) for key, row in rows.items() if len(set(row)) == 1]
    if len(tables) == 1:
        return [Table([], same, texts=2)]
    differing = [[key, *row] for key, row in rows.items() if len(set(row)) > 1]
    heads = ["key", *columns]
    title = f"{len(same)} that are the same in all"
    found = [
        Table(heads, differing, texts=len(heads)),
        Table([], same, title, texts=2, folded=True),
    ]
    return [table for table in found if table.rows]


def _to_plain(value: Any) -> str:
    """Write a value of a config: text as it is, all else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values of nested tables under dotted keys, but for None and empty text.

    Tables in a list are numbered, from 1, and written in a line each.
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        elif isinstance(value, list) and any(isinstance(x, dict) for x in value):
            for number, inner in enumerate(value, start=1):
                pairs = (f"{name}={x}" for name, x in flatten(inner).items())
                flat[f"{key}.{number}"] = ", ".join(pairs)
        elif value not in (None, ""):
            flat[key] = value
    return flat
