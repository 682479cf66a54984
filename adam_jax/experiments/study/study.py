"""`adam-jax compare` and `sweep`: a study from its config to its folder."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from adam_jax.experiments.interrupts import Interrupted, on_signals
from adam_jax.experiments.metrics import ACCURACY, MEMBERS
from adam_jax.experiments.pictures.drawing import to_picture
from adam_jax.experiments.pictures.tables import Table
from adam_jax.experiments.problems.tasks import Task, build_task
from adam_jax.experiments.running.folder import (
    Journal,
    explained,
    reopened,
    replace_file,
    start_folder,
    tell_command,
)
from adam_jax.experiments.running.progress import Display, print_whole
from adam_jax.experiments.settings.arguments import to_toml
from adam_jax.experiments.settings.config import require
from adam_jax.experiments.study.grids import find_border, list_settings
from adam_jax.experiments.study.members import Member, open_members
from adam_jax.experiments.study.outcomes import (
    Outcome,
    find_best,
    group_members,
    rank,
    tabulate,
)
from adam_jax.experiments.study.population import Population
from adam_jax.experiments.study.study_charts import draw_curves, draw_sweep
from adam_jax.experiments.study.study_config import (
    MEASURES,
    CompareConfig,
    StudyConfig,
    SweepConfig,
    set_options,
)


class Study(NamedTuple):
    """Hold what a command trains, one optimizer after the other."""

    command: str  # its name, and that of the picture
    populations: list[Population]

    @property
    def total(self) -> int:
        """Count the members."""
        return sum(len(population.members) for population in self.populations)


def prepare(config: StudyConfig) -> Callable[[], None]:
    """Build what is to be trained, in a new folder or in one to be resumed.

    A ValueError says which part of the config is refused, or that the folder is in use
    or broken.
    """
    if isinstance(config, SweepConfig):
        command = "sweep"
        settings = [list_settings(config, x) for x in config.optimizers]
    else:
        command, settings = "compare", [[{}]] * len(config.optimizers)
    trained = list(zip(config.optimizers, settings, strict=True))

    def build() -> Study:
        task = build_task(config)
        if isinstance(config, SweepConfig) and config.measure == "test_error":
            labelled = ACCURACY in task.metrics
            expected = "a loss: there is no accuracy"
            require(labelled, "measure", config.measure, expected)
        return Study(command, [Population(config, task, *own) for own in trained])

    if config.resume is None:
        resolved, study = to_toml(config), build()
        return lambda: start_study(study, resolved)
    path = Path(config.resume)
    with reopened(open_members, path) as members:
        expected = [
            (candidate.title, set_options(candidate, setting), seed, config.epochs)
            for candidate, own in trained
            for setting in own
            for seed in config.seed_list
        ]
        done = [
            (member.optimizer, member.setting, member.seed, len(member.test_loss))
            for member in members.entries
        ]
        if done != expected[: len(done)]:
            raise ValueError(
                f"{path} is broken: its members are not those of its config; train "
                "again"
            )
        # The picture is drawn when all else is done.
        if done == expected and (path / f"{command}.png").exists():
            members.close()
            return lambda: print(f"{path} is finished: nothing is left to do")
        study = build()
    return lambda: run_study(study, path, members)


def start_study(study: Study, resolved: str) -> None:
    """Train in a new folder, which stores the config that is resolved to TOML."""
    config, command = study.populations[0].config, f"adam-jax {study.command}"
    with start_folder(config, resolved, command, kept=MEMBERS) as path:
        members = open_members(path)
    run_study(study, path, members)


def run_study(study: Study, path: Path, members: Journal) -> None:
    """Train the members that are missing, and leave everything in a folder.

    Each chunk is added to members.jsonl when it is done; when all are, or after a
    signal, that is closed and the picture drawn. What is raised, OSError or, after a
    signal, Interrupted, says how to go on.
    """
    command = f"adam-jax {study.command}"
    picture = path / f"{study.command}.png"
    display = Display("epoch", study.total * study.populations[0].config.epochs)
    if members.entries:
        display.tell(f"resumed: {len(members.entries)} of {study.total} runs were done")
    stopped: list[int] = []
    with (
        explained(path, command),
        closing(members),
        on_signals(stopped.append, signal.SIGINT, signal.SIGTERM),
    ):
        # An old one, of some members, would look like that of a finished study.
        picture.unlink(missing_ok=True)
        with display:
            _train(study, members, display, stopped)
        if members.entries:
            first = study.populations[0]
            chart, table, notes = _view(first.config, first.task, members.entries)
            drawn = to_picture(chart)
            replace_file(picture, lambda file: file.write(drawn))
            print_whole(table, *notes, f"study: {path}")
    done = len(members.entries)
    if done < study.total:
        raise Interrupted(
            f"interrupted: {done} of {study.total} runs are done and saved; "
            f"{tell_command(path, command)}",
            stopped[0],
        )


def _train(
    study: Study, members: Journal, display: Display, stopped: Sequence[int]
) -> None:
    """Train until all members are done, or a signal has come."""
    before = 0  # members of the optimizers before
    for population in study.populations:
        began = time.perf_counter()
        title, epochs = population.candidate.title, population.config.epochs
        count = len(population.members)
        display.label(f"{title}: {count} {'run' if count == 1 else 'runs'}")
        done = population.count_whole(min(count, len(members.entries) - before))
        reached = (before + done) * epochs
        display.reach(reached)
        if done < count:
            members.cut(before + done)
            for working, trained in population.train(done):
                members.add(*trained)
                reached += working
                display.reach(reached)
                if trained:
                    done += len(trained)
                    seconds = time.perf_counter() - began
                    display.note(
                        f"{title}: {done} of {count} runs, {epochs} epochs, "
                        f"{seconds:.1f} s"
                    )
                if stopped:
                    return
            if (needed := population.bytes_needed) > population.config.memory_bytes:
                display.tell(
                    f"{title}: one run needs {needed / 1e6:,.0f} MB, more than memory "
                    f"= {population.config.memory!r}: one at a time"
                )
        before += count


def _view(
    config: StudyConfig, task: Task, members: Sequence[Member]
) -> tuple[Any, Table, list[str]]:
    """Give the picture of a study, its table, and what is printed below that."""
    seeds = len(config.seed_list)
    after = f"after {config.epochs} epochs"
    over = f", mean (min to max) over {seeds} seeds" if seeds > 1 else ""
    if isinstance(config, SweepConfig):
        outcomes = group_members(members, config.measure)
        best = find_best(outcomes)
        title = f"{config.run_name}: smallest {MEASURES[config.measure]} {after}{over}"
        table = tabulate(title, best, outcomes, whole=True)
        return draw_sweep(config, members), table, _note_borders(config, best)
    assert isinstance(config, CompareConfig)
    outcomes = rank(group_members(members))
    title = f"{config.run_name}: {after}{over}"
    table = tabulate(title, outcomes, outcomes, config.target_loss)
    return draw_curves(config, members, task.baselines), table, []


def _note_borders(config: SweepConfig, best: Sequence[Outcome]) -> list[str]:
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
