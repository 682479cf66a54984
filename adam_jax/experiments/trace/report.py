"""What is shown while the animation is drawn, and the table that closes the run."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from adam_jax.experiments.progress import Display
from adam_jax.experiments.scales import name_values
from adam_jax.experiments.trace.paths import NEAR, Trace

TABLE_WIDTH = 120  # narrower, numbers would be cut
LINES = 4  # of progress, without a terminal


class TraceReport:
    """Show how far the animation is, and where the paths have come to."""

    def __init__(self, frames: int):
        """Take the number of frames that are to be drawn."""
        self.frames = frames
        self.display = Display("frame", frames, transient=True)
        self.console = self.display.console

    def show(self, frame: int) -> None:
        """Show that a frame, counted from 0, is drawn."""
        done = frame + 1
        self.display.reach(done)
        if done * LINES // self.frames > frame * LINES // self.frames:
            self.display.note(f"animation: frame {done}/{self.frames}")

    def summarise(
        self, title: str, about: str, traces: Mapping[str, Trace], folder: Path
    ) -> None:
        """Print where each path has come to."""
        table = Table(title=title, caption=about)
        table.add_column("optimizer")
        heads = ("learning rate", "last point", "loss", "distance")
        for head in (*heads, f"within {NEAR:g}"):
            table.add_column(head, justify="right", no_wrap=True)
        ends = [describe_end(trace) for trace in traces.values()]
        if any(ends):
            table.add_column("lost", no_wrap=True)
        rates = name_values(x.optimizer.learning_rate for x in traces.values())
        for (name, trace), end in zip(traces.items(), ends, strict=True):
            table.add_row(
                name,
                rates[trace.optimizer.learning_rate],
                "({:.3g}, {:.3g})".format(*trace.points[-1]),
                f"{trace.losses[-1]:.4g}",
                f"{trace.distances[-1]:.2g}",
                "never" if trace.reached is None else f"step {trace.reached:,}",
                *([end] if any(ends) else []),
            )
        self.console.width = max(self.console.width, TABLE_WIDTH)
        self.console.print(table)
        self.display.tell(
            "distance: to the nearest minimum; within: the first step that is so near"
        )
        self.display.tell(f"run: {folder}")


def describe_end(trace: Trace) -> str:
    """Say how the path was lost, if it was: what is outside is not in the picture."""
    if trace.diverged is not None:
        return f"diverged at step {trace.diverged:,}"
    if trace.left is not None:
        return f"outside from step {trace.left:,}"
    return ""
