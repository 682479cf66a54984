"""`adam-jax sweep`: one or several optimizers over a grid of hyperparameters."""

from collections.abc import Callable, Sequence
from typing import Any

from adam_jax.experiments.study.charts import draw_sweep
from adam_jax.experiments.study.config import MEASURES, SweepConfig
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    find_best,
    find_border,
    group_members,
    tabulate,
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
    seeds = len(config.seed_list)
    over = f", mean (min to max) over {seeds} seeds" if seeds > 1 else ""
    smallest = f"smallest {MEASURES[config.measure]} after {config.epochs} epochs"

    def view(_task: Task, members: Sequence[Member]) -> tuple[Any, list[Any]]:
        outcomes = group_members(members, config.measure)
        best = find_best(outcomes)
        title = f"{config.run_name}: {smallest}{over}"
        table = tabulate(title, best, outcomes, whole=True)
        return draw_sweep(config, members), [table, *note_borders(config, best)]

    return prepare_study("sweep", config, settings, view)


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
