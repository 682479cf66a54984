"""`adam-jax train`: one run from its config to its folder; train, show, save."""

import dataclasses
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from operator import attrgetter
from pathlib import Path

from adam_jax.experiments.arguments import (
    list_options,
    make_config,
    read_file,
    to_toml,
)
from adam_jax.experiments.checkpoints import FULL
from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.folder import (
    CHECKPOINTS,
    CONFIG,
    RunFolder,
    make_run_folder,
    replace_file,
    save_params,
)
from adam_jax.experiments.interrupts import Diverged, Interrupted, on_signals
from adam_jax.experiments.machine import record_environment
from adam_jax.experiments.metrics import no_run
from adam_jax.experiments.options import TrainOptions
from adam_jax.experiments.picture import draw_run
from adam_jax.experiments.progress import Report
from adam_jax.experiments.training import Trainer

PAUSE = 60.0  # seconds from one checkpoint to the next, unless the config says steps


def prepare(options: TrainOptions) -> Callable[[], None]:
    """Build the trainer that the options describe, or that of the run to resume.

    Raises:
      ValueError: if one of them is wrong, or the run cannot be resumed.
    """
    if options.resume is None:
        resolved, trainer = to_toml(options), Trainer(options)
        return lambda: start_run(trainer, resolved)
    default = TrainConfig()
    for key, *_ in list_options(TrainConfig):
        value = attrgetter(key)(options)
        if not dataclasses.is_dataclass(value) and value != attrgetter(key)(default):
            raise ValueError(
                f"{key} is set, but --resume goes on with the config of the run: leave "
                f"out --{key}"
            )
    return prepare_resumed(Path(options.resume))


def prepare_resumed(path: Path) -> Callable[[], None]:
    """Read a run, and build its trainer as it was at the last checkpoint.

    Raises:
      ValueError: if there is no such run, another process trains it, or what it has
        saved is broken.
    """
    try:
        (path / CONFIG).read_bytes()
    except OSError as error:
        raise no_run(path / CONFIG, error) from error
    config = make_config(TrainConfig, read_file(str(path / CONFIG)))
    try:
        folder = RunFolder(path)
    except OSError as error:
        raise ValueError(f"cannot go on with {path}: {error.strerror}") from error
    try:
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
    except BaseException:
        folder.close()
        raise
    return lambda: resume_run(trainer, folder)


def start_run(trainer: Trainer, resolved: str) -> None:
    """Train in a new folder, which is removed if it cannot be written to at first.

    Args:
      trainer: Trains, as its config says.
      resolved: The same config as TOML, to be stored.

    Raises:
      OSError, Diverged, Interrupted: as run_training does.
    """
    path = make_run_folder(Path(trainer.config.runs_dir), trainer.config.run_name)
    try:
        replace_file(path / CONFIG, lambda file: file.write(resolved.encode()))
        record_environment(path)
        with closing(RunFolder(path)) as folder:
            run_training(trainer, folder)
    except OSError as error:
        if any((path / CHECKPOINTS).glob("*")):
            raise _explain(error, path) from error
        shutil.rmtree(path, ignore_errors=True)
        cause = error.strerror or error
        raise OSError(f"{path}: {cause}; nothing is kept of this run") from error


def resume_run(trainer: Trainer, folder: RunFolder) -> None:
    """Go on with a run, and close its folder.

    Raises:
      OSError, Diverged, Interrupted: as run_training does.
    """
    epoch, step = divmod(trainer.step, trainer.steps_per_epoch)
    print(f"resumed at step {step} of epoch {epoch + 1}", flush=True)
    try:
        with closing(folder):
            run_training(trainer, folder)
    except OSError as error:
        raise _explain(error, folder.path) from error


def run_training(trainer: Trainer, folder: RunFolder) -> None:
    """Train from the step at which the trainer is, and leave everything in a folder.

    The folder gets metrics.jsonl (one line an epoch), an event file for TensorBoard and
    checkpoints; when training ends, params.npz and run.png, and after these the last
    checkpoint, which marks the run as finished.

    Raises:
      OSError: if something cannot be written. What the folder holds can be resumed.
      Diverged: if the loss stops being finite, or the guard skips one step after the
        other. Everything has been saved then.
      Interrupted: after Ctrl-C or SIGTERM, within a second or two. The same holds.
    """
    report = Report(trainer, folder.path)
    stopped: list[int] = []
    with on_signals(stopped.append, signal.SIGINT, signal.SIGTERM):
        folder.rewind(trainer.step)
        try:
            with report:
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
                f"is saved; {_tell_command(folder.path)}",
                signals[0],
            )


def _conclude(trainer: Trainer, folder: RunFolder, report: Report) -> None:
    save_params(folder.path / "params.npz", trainer.carry.params)
    if folder.epochs:
        picture = draw_run(trainer.config, folder.epochs)
        replace_file(
            folder.path / "run.png",
            lambda file: picture.savefig(file, dpi=110, format="png"),
        )
        report.summarise(folder.epochs[-1])


def _explain(error: OSError, path: Path) -> OSError:
    cure = "free some space" if error.errno in FULL else "mend that"
    cause = error.strerror or error
    return OSError(f"{path}: {cause}; {cure}, and {_tell_command(path)}")


def _tell_command(path: Path) -> str:
    return f"go on with: adam-jax train --resume {shlex.quote(str(path))}"


def _warn(sentence: str) -> None:
    print(f"adam-jax: warning: {sentence}", file=sys.stderr, flush=True)
