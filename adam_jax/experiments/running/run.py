"""`adam-jax train`: one run from its config to its folder; train, show, save."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from adam_jax.experiments.interrupts import Diverged, Interrupted, on_signals
from adam_jax.experiments.pictures.drawing import to_picture
from adam_jax.experiments.pictures.run_charts import draw_run
from adam_jax.experiments.running.folder import (
    CHECKPOINTS,
    RunFolder,
    explained,
    reopened,
    replace_file,
    save_params,
    start_folder,
    tell_command,
)
from adam_jax.experiments.running.progress import Report
from adam_jax.experiments.running.training import Trainer
from adam_jax.experiments.settings.arguments import to_toml
from adam_jax.experiments.settings.config import TrainConfig

COMMAND = "adam-jax train"
PAUSE = 60.0  # seconds from one checkpoint to the next, unless the config says steps


def prepare(config: TrainConfig) -> Callable[[], None]:
    """Build the trainer of a new run, or that of the run to resume as it was."""
    if config.resume is None:
        resolved, trainer = to_toml(config), Trainer(config)
        return lambda: start_run(trainer, resolved)
    path = Path(config.resume)
    with reopened(RunFolder, path) as folder:
        # The last checkpoint is written when all else is.
        last = folder.epochs[-1] if folder.epochs else None
        trained = last and last.epoch == config.epochs and last.step
        if trained in folder.checkpoints.steps():
            folder.close()
            return lambda: print(f"{path} is finished: nothing is left to do")
        trainer = Trainer(config)
        restored = folder.checkpoints.restore(trainer.carry, _warn)
        if restored is not None:
            trainer.step, trainer.carry = restored
        needed = trainer.step // trainer.steps_per_epoch
        if len(folder.epochs) < needed:
            raise ValueError(
                f"{path} is broken: its metrics have {len(folder.epochs)} epochs, but "
                f"its checkpoint {needed}; train again"
            )
    return lambda: resume_run(trainer, folder)


def start_run(trainer: Trainer, resolved: str) -> None:
    """Train in a new folder, which stores the config that is resolved to TOML."""
    begun = start_folder(trainer.config, resolved, COMMAND, kept=f"{CHECKPOINTS}/*")
    with begun as path, closing(RunFolder(path)) as folder:
        run_training(trainer, folder)


def resume_run(trainer: Trainer, folder: RunFolder) -> None:
    """Go on with a run, and close its folder."""
    epoch, step = divmod(trainer.step, trainer.steps_per_epoch)
    print(f"resumed at step {step} of epoch {epoch + 1}", flush=True)
    with explained(folder.path, COMMAND), closing(folder):
        run_training(trainer, folder)


def run_training(trainer: Trainer, folder: RunFolder) -> None:
    """Train from the step at which the trainer is, and leave everything in a folder.

    The folder gets metrics.jsonl (one line an epoch), an event file for TensorBoard and
    checkpoints; when training ends, params.npz and run.png, and after these the last
    checkpoint, which marks the run as finished. If it ends earlier, by a signal, a loss
    that diverges or a full disk, it can be resumed.
    """
    report = Report(trainer, folder.path)
    stopped: list[int] = []
    with on_signals(stopped.append, signal.SIGINT, signal.SIGTERM):
        folder.rewind(trainer.step)
        try:
            with report.display:
                _train(trainer, folder, report, stopped)
        except (Diverged, Interrupted):
            _conclude(trainer, folder, report)
            raise
        _conclude(trainer, folder, report)
        folder.save(trainer.step, trainer.carry)


def _train(
    trainer: Trainer, folder: RunFolder, report: Report, stopped: Sequence[int]
) -> None:
    every = trainer.config.checkpoint_every
    saved = time.monotonic()
    for epoch in trainer.segments(every):
        if epoch is not None:
            folder.add(epoch)
            report.show(epoch)
            trainer.check(epoch)
        report.advance()
        if trainer.step == trainer.steps:
            return
        signals = tuple(stopped)  # one that comes later waits for the next segment
        if every is None:
            due = time.monotonic() - saved > PAUSE
        else:
            due = trainer.step % every == 0
        if due or signals:
            folder.save(trainer.step, trainer.carry)
            saved = time.monotonic()
        if signals:
            raise Interrupted(
                f"interrupted after step {trainer.step:,} of {trainer.steps:,}, which "
                f"is saved; {tell_command(folder.path, COMMAND)}",
                signals[0],
            )


def _conclude(trainer: Trainer, folder: RunFolder, report: Report) -> None:
    save_params(folder.path / "params.npz", trainer.carry.params)
    if folder.epochs:
        picture = to_picture(
            draw_run(trainer.config, folder.epochs, trainer.task.loss_name)
        )
        replace_file(folder.path / "run.png", lambda file: file.write(picture))
        report.summarise(folder.epochs[-1])


def _warn(sentence: str) -> None:
    print(f"adam-jax: warning: {sentence}", file=sys.stderr, flush=True)
