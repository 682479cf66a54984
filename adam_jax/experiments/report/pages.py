"""What the pages say: of one run, of several side by side, of a study."""

import datetime
import functools
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

import adam_jax
from adam_jax.experiments import report
from adam_jax.experiments.drawing import Panel, to_page
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.metrics import write_metric
from adam_jax.experiments.report.reading import Run, flatten
from adam_jax.experiments.run_charts import chart_figures, chart_learning
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    group_members,
    label,
    rank,
    tabulate,
)
from adam_jax.experiments.study.study_charts import SHOWN, chart_curves, chart_settings
from adam_jax.experiments.tables import (
    Table,
    describe_last,
    tabulate_groups,
    to_loss,
)

Machine = Mapping[str, Any] | None
SNIPPET = "window.vegaEmbed = vegaEmbed;"
ALL_DIVERGED = {"best": "none: all have diverged"}
GROUP_WORDS = (
    "After the last epoch. Norm: length of the parameters; update/norm: by which share "
    "the last step changed them; step: mean of |update| / learning rate; SNR: median "
    "signal-to-noise ratio; swallowed: share of updates lost to rounding; nonfinite: "
    "elements of the gradient; moved: root mean square of the distance from the start."
)


class Section(NamedTuple):
    """Hold a part of the page: its heading, a sentence, charts, and tables."""

    title: str
    about: str = ""
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()


class Page(NamedTuple):
    """Hold what a page says.

    Attributes:
      title: What it is about.
      about: The same in a sentence.
      tiles: The numbers that come first, by what they are.
      sections: What follows.
    """

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
    here = files(report)
    return environment.get_template("page.html").render(
        page=page,
        charts=[to_page(panel) for part in page.sections for panel in part.panels],
        styles=Markup((here / "page.css").read_text("utf-8")),
        script=Markup((here / "page.js").read_text("utf-8")),
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
    return Page(
        title=runs[0].name if alone else f"{len(runs)} runs side by side",
        about=_describe_run(runs[0]) if alone else ", ".join(epochs),
        tiles=_tile_run(runs[0]) if alone else _tile_best(runs),
        sections=[
            Section("Learning", panels=chart_learning(epochs)),
            *([] if alone else [Section("Results", tables=[_tabulate_results(runs)])]),
            Section("Diagnostics", did, chart_figures(epochs)),
            Section("Parameter groups", GROUP_WORDS, tables=groups),
            _describe_configs({run.name: run.config for run in runs}),
            _describe_machines({run.name: run.environment for run in runs}),
        ],
    )


def describe_study(
    name: str,
    config: Mapping[str, Any],
    environment: Machine,
    members: Sequence[Member],
) -> Page:
    """Make the page of a study."""
    outcomes = rank(group_members(members))
    counts = {
        "optimizer": len({member.optimizer for member in members}),
        "setting": len(outcomes),
        "seed": len({member.seed for member in members}),
    }
    counted = ", ".join(_count(number, thing) for thing, number in counts.items())
    settings = chart_settings(outcomes)
    over = Section("Settings", "The loss after the last epoch.", settings)
    some = f"The best {SHOWN} of {len(outcomes)} settings"
    which = some if len(outcomes) > SHOWN else "All settings"
    ranked = f"{which} by test loss at the end: the mean (lowest to highest seed)."
    table = tabulate("", outcomes[:SHOWN], outcomes)
    best, tiles = outcomes[0], ALL_DIVERGED
    if not best.diverged:
        tiles = {
            "best": label(best, outcomes),
            "test loss": to_loss(best.final("test_loss").mean),
            **{
                f"test {name}": write_metric(name, best.final(name).mean)
                for name in best.metrics
            },
            "training loss": to_loss(best.final("train_loss").mean),
        }
    return Page(
        title=name,
        about=f"{counted}: {_count(len(members), 'run')} in all",
        tiles=tiles,
        sections=[
            Section("Learning", panels=chart_curves(outcomes)),
            *([over] if settings else []),
            Section("Results", ranked, tables=[table]),
            _describe_configs({name: config}),
            _describe_machines({name: environment}),
        ],
    )


def _describe_run(run: Run) -> str:
    def of(key: str) -> Any:
        return run.config.get(key, "?")

    model = run.config.get("arguments.model")
    subject = f"{model} on {of('problem')}" if model else of("problem")
    return (
        f"{subject}, trained by {of('optimizer.name')}, "
        f"learning rate {of('optimizer.learning_rate')} ({of('optimizer.schedule')}), "
        f"seed {of('seed')}"
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
    keys = list(dict.fromkeys(key for own in tiles for key in own))
    heads = ["run", "optimizer", "learning rate", "seed", *keys]
    rows = [
        [
            run.name,
            *(str(run.config.get(key, "-")) for key in settings),
            *(own.get(key, "-") for key in keys),
        ]
        for run, own in zip(runs, tiles, strict=True)
    ]
    return Table(heads, rows, texts=2)


def _describe_configs(configs: Mapping[str, Mapping[str, Any]]) -> Section:
    return Section("Config", tables=compare_pairs(configs))


def _describe_machines(machines: Mapping[str, Machine]) -> Section:
    known = {name: table for name, table in machines.items() if table}
    missing = [name for name in machines if name not in known]
    words = "Recorded when training began."
    if not known:
        words = "Not recorded: this is what has made the page."
        known = {"this page": flatten(describe_machine())}
    elif missing:
        words = f"Not recorded by {', '.join(missing)}."
    return Section("Environment", words, tables=compare_pairs(known))


def compare_pairs(columns: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Make a table of what differs, and a folded one of what is the same in all.

    Args:
      columns: For each name its keys and values; if there is but one, all is shown.
    """
    tables = [{k: _to_plain(v) for k, v in table.items()} for table in columns.values()]
    first = tables[0]
    if len(tables) == 1:
        return [Table([], list(first.items()), texts=2)]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key, "-") for table in tables] for key in keys}
    same = {key: row[0] for key, row in rows.items() if len(set(row)) == 1}
    differing = [[key, *row] for key, row in rows.items() if key not in same]
    parts = []
    if differing:
        parts.append(Table(["key", *columns], differing, texts=len(columns) + 1))
    if same:
        title = f"{len(same)} that are the same in all"
        parts.append(Table([], list(same.items()), title, 2, folded=True))
    return parts


def _to_plain(value: Any) -> str:
    """Write a value of a config: text as it is, all else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
