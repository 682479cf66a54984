"""What is shown while work goes on, and when a run ends."""

from pathlib import Path
from typing import TYPE_CHECKING

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
from adam_jax.experiments.tables import Table, describe_last, to_rich

if TYPE_CHECKING:
    from adam_jax.experiments.training import Trainer


class Display:
    """Show progress as a bar on a terminal, as plain lines elsewhere.

    Attributes:
      console: Where to print; what is printed appears above the bar.
    """

    def __init__(self, unit: str, total: int, transient: bool = False):
        """Make a bar, which begins as a context does.

        Args:
          unit: What is counted, in a word.
          total: How many there are.
          transient: Whether the bar goes away at the end.
        """
        self.console = Console(highlight=False, markup=False)
        self._bar = Progress(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=transient,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "Display":
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop the bar."""
        self._bar.stop()

    def reach(self, count: float) -> None:
        """Show that so many are done."""
        self._bar.update(self._task, completed=count)

    def label(self, words: str) -> None:
        """Show words beside the bar; nothing where there is none."""
        self._bar.update(self._task, description=words)

    def note(self, line: str) -> None:
        """Print a line where there is no bar."""
        if self._bar.disable:
            self.tell(line)

    def tell(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, soft_wrap=True)


class Report:
    """Show how a run goes on and how it ends."""

    def __init__(self, trainer: "Trainer", folder: Path):
        """Take what is shown: a trainer, and the folder of its run."""
        self.config = trainer.config
        self.trainer = trainer
        self.folder = folder
        self.display = Display("epoch", self.config.epochs)
        self.console = self.display.console
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
        self.display.note(f"epoch {epoch.epoch}/{self.config.epochs}: {state}")

    def summarise(self, last: Epoch) -> None:
        """Print the table that closes the run."""
        trainer = self.trainer
        params, opt_state, _ = trainer.carry
        param_count = sum(leaf.size for leaf in jax.tree.leaves(params))
        optimizer_state = opt_state.inner_state  # the figures left out
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer_state))
        config, taken = self.config, trainer.taken / trainer.seconds
        rows = describe_last(last, config.epochs, trainer.task.loss_name)
        if config.optimizer.guard != "none":
            rows["skipped"] = f"{last.skipped:,} of {last.step:,} steps"
        rows["steps per second"] = f"{taken:,.0f} (compilation left out)"
        for words, groups in zip(
            ("most", "least"), rank_moved(last.moved), strict=True
        ):
            lines = [f"{last.moved[group]:.3g} {group}" for group in groups]
            rows[f"moved {words}"] = "\n".join(lines)
        rows["optimizer state"] = f"{state_bytes:,} bytes"
        rows["parameters"] = f"{param_count:,}"
        rows["run"] = str(self.folder)
        table = Table(["", ""], list(rows.items()), config.run_name, texts=2)
        # Wide enough to hold the path whole: folded, it could not be copied.
        self.console.width = max(self.console.width, len(str(self.folder)) + 30)
        self.console.print(to_rich(table, show_header=False))
