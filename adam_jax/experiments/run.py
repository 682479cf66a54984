"""`adam-jax train`: one run from its config to its folder; train, show, save."""

import contextlib
import itertools
import math
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jsonargparse import ArgumentParser, Namespace
from tensorboardX import SummaryWriter

from adam_jax import OPTIMIZERS
from adam_jax.experiments.arguments import Command, new_config_parser, read_config
from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.machine import record_environment
from adam_jax.experiments.metrics import METRICS, Epoch, to_json, to_scalars
from adam_jax.experiments.picture import draw_run
from adam_jax.experiments.progress import Report
from adam_jax.experiments.training import Diverged, Trainer

EXAMPLES = """\
examples:
  adam-jax train --config configs/digits_mlp.toml
  adam-jax train --config configs/digits_mlp.toml --optimizer.learning_rate 3e-4
  adam-jax train --model.name cnn --model.widths "[32, 64]" --optimizer.name lion
  adam-jax inspect runs/digits_mlp
"""
NAMES = textwrap.fill(
    ", ".join(sorted(OPTIMIZERS)), 78, initial_indent="  ", subsequent_indent="  "
)


def build_parser() -> ArgumentParser:
    """Build the parser of the command."""
    return new_config_parser(
        TrainConfig,
        "Train a Flax NNX model on handwritten digits, or on English text.",
        f"optimizers:\n{NAMES}\n\n{EXAMPLES}",
    )


def prepare(parser: ArgumentParser, options: Namespace) -> Callable[[], None]:
    """Build the trainer that the options describe.

    Raises:
      ValueError: if one of them is wrong.
    """
    config, resolved = read_config(TrainConfig, parser, options)
    trainer = Trainer(config)
    return lambda: run_training(trainer, resolved)


COMMAND = Command("train a model", build_parser, prepare)


def run_training(trainer: Trainer, resolved: str) -> None:
    """Train, and leave everything in a new folder.

    The folder holds config.toml, environment.json, metrics.jsonl (one line an epoch)
    and an event file for TensorBoard; when training ends, for whatever reason,
    params.npz and run.png are added.

    Args:
      trainer: Trains, as its config says.
      resolved: The same config as TOML, to be stored.

    Raises:
      OSError: if the folder cannot be made or written to.
      Diverged: if the loss stops being finite, or the guard skips one step after the
        other. Everything has been saved then.
      KeyboardInterrupt: after Ctrl-C, at the end of the epoch. The same holds.
    """
    config = trainer.config
    folder = make_run_folder(Path(config.runs_dir), config.name)
    (folder / "config.toml").write_text(resolved, "utf-8")
    record_environment(folder)
    report = Report(trainer, folder)
    epochs: list[Epoch] = []
    stop = threading.Event()
    with on_interrupt(stop.set):
        try:
            with (
                report,
                (folder / METRICS).open("w", encoding="utf-8") as file,
                SummaryWriter(str(folder)) as events,
            ):
                for epoch in trainer.epochs():
                    epochs.append(epoch)
                    print(to_json(epoch), file=file, flush=True)
                    write_events(events, epoch)
                    report.show(epoch)
                    if stop.is_set():
                        raise KeyboardInterrupt
                    # A batch that the guard has skipped may have had any loss.
                    guarded = config.optimizer.guard != "none"
                    loss = epoch.test_loss + (0 if guarded else epoch.train_loss)
                    if not math.isfinite(loss):
                        raise Diverged(
                            f"training diverged: the loss of epoch {epoch.epoch} is "
                            "not finite; try a smaller --optimizer.learning_rate"
                        )
        finally:
            if epochs:
                save_params(folder / "params.npz", trainer.params)
                draw_run(config, epochs).savefig(folder / "run.png", dpi=110)
                report.summarise(epochs[-1])


def make_run_folder(runs_dir: Path, name: str) -> Path:
    """Make the first folder that is still free of name, name-2, name-3, ..."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    for folder in (runs_dir / name for name in names):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable: there is always a next number")


def write_events(events: SummaryWriter, epoch: Epoch) -> None:
    """Write the numbers of an epoch for TensorBoard, but for those not finite."""
    for name, value in to_scalars(epoch).items():
        if math.isfinite(value):
            events.add_scalar(name, value, epoch.step)


def save_params(path: Path, params: Any) -> None:
    """Write the parameters as one NumPy archive, each under its path in the model."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name = jax.tree_util.keystr
    # NumPy's archives know no bfloat16; float32 holds its values.
    arrays: dict[str, Any] = {
        name(key, simple=True, separator="."): np.asarray(leaf, np.float32)
        for key, leaf in leaves
    }
    np.savez(path, **arrays)
