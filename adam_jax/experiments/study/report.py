"""What is shown while a study goes on."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from adam_jax.experiments.study.population import Population


class StudyReport:
    """Show progress as a bar on a terminal, as plain lines elsewhere."""

    def __init__(self, populations: list[Population]):
        """Take what will be trained."""
        self.console = Console(highlight=False, markup=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = sum(len(p.members) * p.config.epochs for p in populations)
        self.task = self.bar.add_task("", total=total)
        self.began = time.perf_counter()

    def __enter__(self) -> "StudyReport":
        """Start the bar."""
        self.bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop the bar and leave it on the screen."""
        self.bar.stop()

    def start(self, population: Population) -> None:
        """Tell what is trained now."""
        self.began = time.perf_counter()
        number, title = len(population.members), population.candidate.title
        words = f"{title}: {number} {'run' if number == 1 else 'runs'}"
        self.bar.update(self.task, description=words)

    def advance(self, working: int) -> None:
        """Show that some members were trained for an epoch."""
        self.bar.advance(self.task, working)

    def tell(self, population: Population, done: int) -> None:
        """Tell how many members are done, where there is no bar."""
        if self.bar.disable:
            title, epochs = population.candidate.title, population.config.epochs
            seconds = time.perf_counter() - self.began
            line = f"{title}: {done} of {len(population.members)} runs, {epochs} epochs"
            self.console.print(f"{line}, {seconds:.1f} s", soft_wrap=True)

    def warn_of_memory(self, population: Population) -> None:
        """Say so if a single member needs more memory than there should be."""
        needed, allowed = population.bytes_needed, population.config.memory_bytes
        if needed > allowed:
            self.console.print(
                f"{population.candidate.title}: one run needs {needed / 1e6:,.0f} MB, "
                f"more than memory = {population.config.memory!r}: one at a time",
                soft_wrap=True,
            )
