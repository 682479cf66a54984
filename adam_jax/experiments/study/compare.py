"""`adam-jax compare`: several optimizers on one problem, from several seeds."""

import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.table import Table

from adam_jax.experiments.metrics import write_metric
from adam_jax.experiments.study.config import CompareConfig
from adam_jax.experiments.study.curves import draw_curves
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import (
    Outcome,
    Spread,
    group_members,
)
from adam_jax.experiments.study.study import prepare_study
from adam_jax.experiments.tasks import Task


def prepare(config: CompareConfig) -> Callable[[], None]:
    """Build what the config describes, or what is left of the study to resume.

    Raises:
      ValueError: if a value in it is wrong, or the study cannot be resumed.
    """

    def view(
        task: Task, members: Sequence[Member]
    ) -> tuple[Figure, list[RenderableType]]:
        figure = draw_curves(config, members, task.baselines)
        return figure, [tabulate(config, members)]

    settings = [[{}]] * len(config.optimizers)
    return prepare_study("compare", config, settings, view)


def tabulate(config: CompareConfig, members: Sequence[Member]) -> Table:
    """Make the table of the optimizers, best first."""
    outcomes = sorted(group_members(members), key=lambda outcome: outcome.score)
    metrics = list(members[0].metrics)
    table = Table(
        title=f"{config.run_name}: after {config.epochs} epochs, mean (min to max) "
        f"over {len(config.seed_list)} seeds",
        caption_justify="left",
    )
    table.add_column("optimizer")
    heads = ["training loss", "test loss", *(f"test {name}" for name in metrics)]
    if config.target_loss is not None:
        heads += [f"epochs to training loss {config.target_loss:g}"]
    for head in [*heads, "diverged"]:
        table.add_column(head, justify="right")
    for outcome in outcomes:
        cells = [to_text(outcome.final(key)) for key in ("train_loss", "test_loss")]
        cells += [to_text(outcome.final(name), name) for name in metrics]
        if config.target_loss is not None:
            cells += [count_epochs(outcome, config.target_loss)]
        table.add_row(outcome.optimizer, *cells, str(outcome.diverged or ""))
    return table


def to_text(spread: Spread, name: str = "") -> str:
    """Give a loss, or a metric by its name, over seeds in words."""
    if math.isnan(spread.mean):
        return "-"
    mean, low, high = (write_metric(name, x) for x in spread)
    return f"{mean} ({low} to {high})" if spread.low < spread.high else mean


def count_epochs(outcome: Outcome, target: float) -> str:
    """Give the mean of the first epochs whose training loss is at most `target`."""
    firsts = []
    for member in outcome.members:
        reached = [n for n, x in enumerate(member.train_loss, start=1) if x <= target]
        if not reached:
            return "-"
        firsts.append(reached[0])
    return f"{sum(firsts) / len(firsts):.3g}"
