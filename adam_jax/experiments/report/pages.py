"""What the pages say: of one run, of several side by side, of a study."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adam_jax.experiments.config import BUILT_IN
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.metrics import write_metric
from adam_jax.experiments.report.page import Element, Page, Section, element
from adam_jax.experiments.report.reading import Run, flatten
from adam_jax.experiments.report.run_charts import chart_figures, chart_learning
from adam_jax.experiments.report.study import (
    LOSSES,
    Member,
    Trial,
    describe_setting,
    gather,
    label,
)
from adam_jax.experiments.report.study_charts import (
    SHOWN,
    chart_curves,
    chart_settings,
)
from adam_jax.experiments.report.tables import (
    compare_pairs,
    tabulate,
    tabulate_groups,
)

Environment = Mapping[str, Any] | None
ALL_DIVERGED = {"Best": "none: all have diverged"}
GROUP_WORDS = (
    "After the last epoch. Norm: length of the parameters; update/norm: by which share "
    "the last step changed them; step: mean of |update| / learning rate; SNR: median "
    "signal-to-noise ratio; swallowed: share of updates lost to rounding; nonfinite: "
    "elements of the gradient; moved: root mean square of the distance from the start."
)


def describe_runs(runs: Sequence[Run]) -> Page:
    """Make the page of one run, or of several side by side."""
    alone = len(runs) == 1
    names = [run.name for run in runs]
    return Page(
        title=names[0] if alone else f"{len(runs)} runs side by side",
        about=_describe_run(runs[0]) if alone else ", ".join(names),
        tiles=_tile_run(runs[0]) if alone else _tile_best(runs),
        sections=[
            Section("Learning", "", chart_learning(runs)),
            *([] if alone else [Section("Results", "", [_tabulate_results(runs)])]),
            Section(
                "Diagnostics",
                "What the optimizer did in the last step of each epoch.",
                chart_figures(runs),
            ),
            Section("Parameter groups", GROUP_WORDS, _group_tables(runs)),
            Section(
                "Config", "", compare_pairs({run.name: run.config for run in runs})
            ),
            _describe_environment({run.name: run.environment for run in runs}),
        ],
    )


def describe_study(
    name: str,
    config: Mapping[str, Any],
    environment: Environment,
    members: Sequence[Member],
) -> Page:
    """Make the page of a study."""
    trials = gather(members)
    seeds = len({member.seed for member in members})
    optimizers = len({trial.optimizer for trial in trials})
    settings = chart_settings(trials)
    over = [Section("Settings", "The loss after the last epoch.", settings)]
    return Page(
        title=name,
        about=f"{_count(optimizers, 'optimizer')}, {_count(len(trials), 'setting')}, "
        f"{_count(seeds, 'seed')}: {_count(len(members), 'run')} in all",
        tiles=_tile_trial(trials),
        sections=[
            Section("Learning", "", chart_curves(trials)),
            *(over if settings else []),
            Section("Results", _rank_words(trials), [_tabulate_trials(trials)]),
            Section("Config", "", compare_pairs({name: config})),
            _describe_environment({name: environment}),
        ],
    )


def _describe_run(run: Run) -> str:
    def of(key: str) -> Any:
        return run.config.get(key, "?")

    problem = of("problem")
    subject = f"{of('model.name')} on {problem}" if problem in BUILT_IN else problem
    return (
        f"{subject}, trained by {of('optimizer.name')}, "
        f"learning rate {of('optimizer.learning_rate')} ({of('optimizer.schedule')}), "
        f"seed {of('seed')}"
    )


def _tile_run(run: Run) -> dict[str, str]:
    last = run.epochs[-1]
    tiles = {}
    for name, value in last.metrics.items():
        tiles[f"Test {name}"] = write_metric(name, value)
    tiles |= {
        "Test loss": _number(last.test_loss),
        "Training loss": _number(last.train_loss),
        "Epochs": _epochs(run),
        "Steps": f"{last.step:,}",
    }
    if last.skipped:
        tiles["Skipped steps"] = f"{last.skipped:,}"
    return tiles


def _tile_best(runs: Sequence[Run]) -> dict[str, str]:
    finite = [run for run in runs if math.isfinite(run.epochs[-1].test_loss)]
    if not finite:
        return ALL_DIVERGED
    best = min(finite, key=lambda run: run.epochs[-1].test_loss)
    return {"Smallest test loss": best.name} | _tile_run(best)


def _tile_trial(trials: Sequence[Trial]) -> dict[str, str]:
    best = trials[0]
    if not math.isfinite(best.final("test_loss")):
        return ALL_DIVERGED
    tiles = {"Best": label(best, trials), "Test loss": _number(best.final("test_loss"))}
    for name in best.metrics:
        tiles[f"Test {name}"] = write_metric(name, best.final(name))
    return tiles | {"Training loss": _number(best.final("train_loss"))}


def _tabulate_results(runs: Sequence[Run]) -> Element:
    heads = ["run", "optimizer", "learning rate", "seed", "epochs"]
    metrics = list(dict.fromkeys(x for run in runs for x in run.epochs[-1].metrics))
    heads += ["training loss", "test loss", *metrics]
    rows = []
    for run in runs:
        keys = ("optimizer.name", "optimizer.learning_rate", "seed")
        settings = [str(run.config.get(key, "-")) for key in keys]
        last = run.epochs[-1]
        losses = (_number(last.train_loss), _number(last.test_loss))
        others = [
            write_metric(name, last.metrics[name]) if name in last.metrics else "-"
            for name in metrics
        ]
        rows.append([run.name, *settings, _epochs(run), *losses, *others])
    return tabulate(heads, rows, texts=2)


def _tabulate_trials(trials: Sequence[Trial]) -> Element:
    heads = ["optimizer", "setting", "seeds", *("training loss", "test loss")]
    curves = [*LOSSES, *trials[0].metrics]
    heads += trials[0].metrics
    rows = []
    for trial in trials[:SHOWN]:
        setting = describe_setting(trial, trials, trial.setting)
        results = [_spread(trial, curve) for curve in curves]
        seeds = len(trial.curves["test_loss"])
        rows.append([trial.optimizer, setting, str(seeds), *results])
    return tabulate(heads, rows, texts=2)


def _rank_words(trials: Sequence[Trial]) -> str:
    more = len(trials) > SHOWN
    which = f"The best {SHOWN} of {len(trials)} settings" if more else "All settings"
    return f"{which} by test loss at the end: the mean (lowest to highest seed)."


def _spread(trial: Trial, curve: str) -> str:
    ends = trial.curves[curve][:, -1]
    mean = trial.final(curve)
    if not math.isfinite(mean):
        lost = sum(not math.isfinite(end) for end in ends)
        return f"{lost} of {len(ends)} diverged"
    if len(ends) == 1:
        return write_metric(curve, mean)
    low, high = (write_metric(curve, end) for end in (min(ends), max(ends)))
    return f"{write_metric(curve, mean)} ({low} to {high})"


def _group_tables(runs: Sequence[Run]) -> list[Element]:
    if len(runs) == 1:
        return [tabulate_groups(runs[0].epochs[-1])]
    tables = {run.name: tabulate_groups(run.epochs[-1]) for run in runs}
    return [
        element("details", element("summary", name), table)
        for name, table in tables.items()
    ]


def _describe_environment(environments: Mapping[str, Environment]) -> Section:
    known = {name: table for name, table in environments.items() if table}
    missing = [name for name in environments if name not in known]
    if not known:
        words = "Not recorded: this is what has made the page."
        known = {"this page": flatten(describe_machine())}
    elif missing:
        words = f"Not recorded by {', '.join(missing)}."
    else:
        words = "Recorded when training began."
    return Section("Environment", words, compare_pairs(known))


def _epochs(run: Run) -> str:
    return f"{run.epochs[-1].epoch} of {run.config.get('epochs', '?')}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "diverged"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
