"""What is shown while work goes on, and when a run ends."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from adam_jax.experiments.metrics import ACCURACY, Epoch, rank_moved, write_metric
from adam_jax.experiments.pictures.tables import Table, describe_last, to_rich

if TYPE_CHECKING:
    from adam_jax.experiments.running.training import Trainer


class Display(Progress):
    """Show progress as a bar on a terminal, as plain lines elsewhere."""

    def __init__(self, unit: str, total: int, transient: bool = False):
        """Make a bar of so many units; a transient one goes away at the end."""
        console = Console(highlight=False, markup=False)
        super().__init__(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=transient,
        )
        self._task = self.add_task("", total=total)

    def reach(self, count: float) -> None:
        """Show that so many are done."""
        self.update(self._task, completed=count)

    def label(self, words: str) -> None:
        """Show words beside the bar; nothing where there is none."""
        self.update(self._task, description=words)

    def note(self, line: str) -> None:
        """Print a line where there is no bar."""
        if self.disable:
            self.tell(line)

    def tell(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self.console.print(line, soft_wrap=True)


def print_whole(*shown: Table | str, **style: Any) -> None:
    """Print tables and sentences as wide as they are: folded, none could be copied."""
    console = Console(highlight=False, markup=False, width=1000)
    for one in shown:
        if isinstance(one, Table):
            console.print(to_rich(one, **style))
        else:
            console.print(one, soft_wrap=True)


class Report:
    """Show how a run goes on and how it ends."""

    def __init__(self, trainer: "Trainer", folder: Path):
        """Take what is shown: a trainer, and the folder of its run."""
        self.trainer, self.folder = trainer, folder
        self.display = Display("epoch", trainer.config.epochs)
        self.advance()

    def advance(self) -> None:
        """Show how far the trainer is, be it in the midst of an epoch."""
        self.display.reach(self.trainer.step / self.trainer.steps_per_epoch)

    def show(self, epoch: Epoch) -> None:
        """Show a finished epoch."""
        tested = f"test loss {epoch.test_loss:.4f}"
        for name in sorted(epoch.metrics, key=ACCURACY.__ne__)[:1]:
            tested = f"test {name} {write_metric(name, epoch.metrics[name])}"
        state = f"loss {epoch.train_loss:.4f}, {tested}"
        self.display.label(state)
        self.display.note(f"epoch {epoch.epoch}/{self.trainer.config.epochs}: {state}")

    def summarise(self, last: Epoch) -> None:
        """Print the table that closes the run."""
        trainer = self.trainer
        params = jax.tree.leaves(trainer.carry.params)
        state = jax.tree.leaves(trainer.carry.opt_state.inner_state)  # without figures
        config, taken = trainer.config, trainer.taken / trainer.seconds
        rows = describe_last(last, config.epochs, trainer.task.loss_name)
        rows["steps per second"] = f"{taken:,.0f} (compilation left out)"
        for words, groups in zip(
            ("most", "least"), rank_moved(last.moved), strict=True
        ):
            lines = [f"{last.moved[group]:.3g} {group}" for group in groups]
            if lines:
                rows[f"moved {words}"] = "\n".join(lines)
        rows["optimizer state"] = f"{sum(leaf.nbytes for leaf in state):,} bytes"
        rows["parameters"] = f"{sum(leaf.size for leaf in params):,}"
        rows["run"] = str(self.folder)
        table = Table(["", ""], list(rows.items()), config.run_name, texts=2)
        print_whole(table, show_header=False)
