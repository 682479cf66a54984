"""What `adam-jax compare` and `adam-jax sweep` show of what they have trained."""

from collections.abc import Sequence
from typing import Any

from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    find_best,
    group_members,
    rank,
    tabulate,
)
from adam_jax.experiments.study.settings import find_border
from adam_jax.experiments.study.study_charts import draw_curves, draw_sweep
from adam_jax.experiments.study.study_config import (
    MEASURES,
    CompareConfig,
    StudyConfig,
    SweepConfig,
)
from adam_jax.experiments.tables import Table
from adam_jax.experiments.tasks import Task

View = tuple[Any, Table, list[str]]  # a picture, a table, and what is printed below it


def view_study(config: StudyConfig, task: Task, members: Sequence[Member]) -> View:
    """Give what is shown of a study, be it finished or not."""
    seeds = len(config.seed_list)
    after = f"after {config.epochs} epochs"
    over = f", mean (min to max) over {seeds} seeds" if seeds > 1 else ""
    if isinstance(config, SweepConfig):
        outcomes = group_members(members, config.measure)
        best = find_best(outcomes)
        title = f"{config.run_name}: smallest {MEASURES[config.measure]} {after}{over}"
        table = tabulate(title, best, outcomes, whole=True)
        return draw_sweep(config, members), table, note_borders(config, best)
    assert isinstance(config, CompareConfig)
    outcomes = rank(group_members(members))
    title = f"{config.run_name}: {after}{over}"
    table = tabulate(title, outcomes, outcomes, config.target_loss)
    return draw_curves(config, members, task.baselines), table, []


def note_borders(config: SweepConfig, best: Sequence[Outcome]) -> list[str]:
    """Say which of the best settings lie at the end of the grid."""
    if config.draws is not None:
        return []
    axes = {x.title: config.list_axes(x) for x in config.optimizers}
    return [
        f"{outcome.optimizer}: {note}; the best may lie beyond"
        for outcome in best
        if not outcome.diverged
        for note in find_border(outcome.setting, axes[outcome.optimizer])
    ]
