"""`adam-jax sweep`: one or several optimizers over a grid of hyperparameters."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.table import Table

from adam_jax.experiments.drawing import name_values
from adam_jax.experiments.study.compare import to_text
from adam_jax.experiments.study.config import MEASURES, SweepConfig
from adam_jax.experiments.study.maps import draw_sweep
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    find_border,
    group_members,
    split_by_optimizer,
)
from adam_jax.experiments.study.settings import list_settings
from adam_jax.experiments.study.study import prepare_study
from adam_jax.experiments.tasks import Task


def prepare(config: SweepConfig) -> Callable[[], None]:
    """Build what the config describes, or what is left of the study to resume.

    Raises:
      ValueError: if a value in it is wrong, or the study cannot be resumed.
    """
    settings = [list_settings(config, candidate) for candidate in config.optimizers]

    def view(
        _task: Task, members: Sequence[Member]
    ) -> tuple[Figure, list[RenderableType]]:
        outcomes = group_members(members, config.measure)
        notes = note_borders(config, find_best(outcomes))
        return draw_sweep(config, members), [tabulate(config, members), *notes]

    return prepare_study("sweep", config, settings, view)


def find_best(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Find each optimizer's setting of the smallest mean measure, best first."""
    groups = split_by_optimizer(outcomes).values()
    best = [min(group, key=lambda outcome: outcome.score) for group in groups]
    return sorted(best, key=lambda outcome: outcome.score)


def tabulate(config: SweepConfig, members: Sequence[Member]) -> Table:
    """Make the table of each optimizer's best setting."""
    outcomes = group_members(members, config.measure)
    metrics = list(members[0].metrics)
    seeds = len(config.seed_list)
    over = f", mean (min to max) over {seeds} seeds" if seeds > 1 else ""
    what = MEASURES[config.measure]
    table = Table(
        title=f"{config.run_name}: smallest {what} after {config.epochs} epochs{over}"
    )
    table.add_column("optimizer")
    axes = [config.list_axes(candidate) for candidate in config.optimizers]
    keys = list(dict.fromkeys(key for own in axes for key in own))
    heads = [*keys, *(["training loss"] if config.measure == "train_loss" else [])]
    heads += ["test loss", *(f"test {name}" for name in metrics)]
    for head in [*heads, "diverged"]:
        table.add_column(head, justify="right")
    words = {
        key: name_values([x.setting[key] for x in outcomes if key in x.setting])
        for key in keys
    }
    groups = split_by_optimizer(outcomes)
    for best in find_best(outcomes):
        own = groups[best.optimizer]
        lost = sum(outcome.diverged for outcome in own)
        varied = [] if best.diverged else own[0].setting
        cells = [
            words[key][best.setting[key]] if key in varied else "-" for key in keys
        ]
        if config.measure == "train_loss":
            cells += [to_text(best.final("train_loss"))]
        cells += [to_text(best.final("test_loss"))]
        cells += [to_text(best.final(name), name) for name in metrics]
        runs = sum(len(outcome.members) for outcome in own)
        table.add_row(best.optimizer, *cells, f"{lost} of {runs}")
    return table


def note_borders(config: SweepConfig, best: Sequence[Outcome]) -> list[str]:
    """Say which of the best settings lie at the end of the grid."""
    if config.draws is not None:
        return []
    axes = {
        candidate.title: config.list_axes(candidate) for candidate in config.optimizers
    }
    return [
        f"{outcome.optimizer}: {note}; the best may lie beyond"
        for outcome in best
        if not outcome.diverged
        for note in find_border(outcome.setting, axes[outcome.optimizer])
    ]
