"""`adam-jax compare`: several optimizers on one problem, from several seeds."""

from collections.abc import Callable, Sequence
from typing import Any

from adam_jax.experiments.study.charts import draw_curves
from adam_jax.experiments.study.config import CompareConfig
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import group_members, rank, tabulate
from adam_jax.experiments.study.study import prepare_study
from adam_jax.experiments.tasks import Task


def prepare(config: CompareConfig) -> Callable[[], None]:
    """Build what the config describes, or what is left of the study to resume.

    Raises:
      ValueError: if a value in it is wrong, or the study cannot be resumed.
    """

    def view(task: Task, members: Sequence[Member]) -> tuple[Any, list[Any]]:
        outcomes = rank(group_members(members))
        title = (
            f"{config.run_name}: after {config.epochs} epochs, mean (min to max) over "
            f"{len(config.seed_list)} seeds"
        )
        table = tabulate(title, outcomes, outcomes, config.target_loss)
        return draw_curves(config, members, task.baselines), [table]

    settings = [[{}]] * len(config.optimizers)
    return prepare_study("compare", config, settings, view)
