"""A study from its config to its folder; `compare` and `sweep` are two views of it."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console, RenderableType

from adam_jax.experiments.folder import CONFIG, make_run_folder
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.machine import record_environment
from adam_jax.experiments.study.config import StudyConfig
from adam_jax.experiments.study.members import MEMBERS, Member, append_members
from adam_jax.experiments.study.population import Population
from adam_jax.experiments.study.report import StudyReport
from adam_jax.experiments.tasks import build_task

View = Callable[[Sequence[Member]], tuple[Figure, list[RenderableType]]]
"""From what is trained to its picture, and to what is printed of it."""


def prepare_study(
    config: StudyConfig, settings: Sequence[Sequence[dict[str, float]]]
) -> list[Population]:
    """Build what is trained of each optimizer.

    Args:
      config: The study.
      settings: Of each optimizer, one after the other.

    Raises:
      ValueError: if the data, the model or an optimizer refuses the config.
    """
    task = build_task(config)
    return [
        Population(config, task, candidate, own)
        for candidate, own in zip(config.optimizers, settings, strict=True)
    ]


def run_study(
    populations: list[Population], resolved: str, picture: str, view: View
) -> None:
    """Train, and leave everything in a new folder.

    The folder holds config.toml, environment.json and members.jsonl, to which each
    chunk is added when it is done; when all are, or after Ctrl-C, the picture is added.

    Args:
      populations: What is trained.
      resolved: The config as TOML, to be stored.
      picture: File name of the picture.
      view: Shows the members that are done.

    Raises:
      OSError: if the folder cannot be made or written to.
      KeyboardInterrupt: after Ctrl-C, at the end of an epoch.
    """
    config = populations[0].config
    folder = make_run_folder(Path(config.runs_dir), config.run_name)
    (folder / CONFIG).write_text(resolved, "utf-8")
    record_environment(folder)
    (folder / MEMBERS).touch()
    report = StudyReport(populations)
    members: list[Member] = []
    stop = threading.Event()
    with on_interrupt(stop.set):
        try:
            with report:
                for population in populations:
                    _train(population, folder, members, report, stop)
        finally:
            if members:
                figure, lines = view(members)
                figure.savefig(folder / picture, dpi=110)
                show(report.console, [*lines, f"study: {folder}"])


def _train(
    population: Population,
    folder: Path,
    members: list[Member],
    report: StudyReport,
    stop: threading.Event,
) -> None:
    report.start(population)
    before = len(members)
    for working, done in population.train():
        append_members(folder, done)
        members += done
        report.advance(working)
        if done:
            report.tell(population, len(members) - before)
        if stop.is_set():
            raise KeyboardInterrupt
    report.warn_of_memory(population)


def show(console: Console, lines: Sequence[RenderableType]) -> None:
    """Print tables and sentences, whole: folded, they could not be copied."""
    boundless = console.options.update(max_width=1000)
    widths = [console.measure(line, options=boundless).maximum for line in lines]
    console.width = max(console.width, *widths)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))
