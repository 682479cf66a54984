"""Is a sweep faster than the runs it replaces? `python benchmarks/sweep_speed.py`

Times `adam-jax sweep` over 64 learning rates, as a whole process, start and compilation
included, beside the same 64 runs made otherwise:

- each as a process of its own, `adam-jax train`;
- each compiled anew, but all in one process;
- one after the other, but in one program that is compiled once.

Of the first two only 4 of 64 runs are timed, evenly spaced, and multiplied by 16,
unless `--all` is given. `make bench` runs it.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from adam_jax.experiments.running.training import Trainer
from adam_jax.experiments.settings.config import OptimizerConfig, TrainConfig

RATES = [float(f"{rate:.12g}") for rate in np.geomspace(1e-5, 0.1, 64)]
WIDTHS = [128, 64]
GRID = "grid.learning_rate"


def time_process(command, epochs, *options):
    """Run `adam-jax` on the digits, and return the seconds that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "sweep.toml"
        config.write_text('[[optimizers]]\nname = "adam"\n', "utf-8")
        tables = [f"--config={config}"] if command == "sweep" else []
        program = [sys.executable, "-m", "adam_jax.experiments"]
        common = [f"--epochs={epochs}", f"--arguments.widths={WIDTHS}"]
        began = time.perf_counter()
        subprocess.run(
            [
                *program,
                command,
                *tables,
                *common,
                f"--runs_dir={folder}/runs",
                *options,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - began


def time_trainer(epochs, rate):
    """Compile and train in this process, and return the seconds that it takes."""
    began = time.perf_counter()
    config = TrainConfig(
        epochs=epochs,
        arguments={"widths": WIDTHS},
        optimizer=OptimizerConfig(learning_rate=rate),
    )
    for _ in Trainer(config).segments():
        pass
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--all", action="store_true", help="time all 64 separate runs")
    options = parser.parse_args()
    epochs = options.epochs
    timed = RATES if options.all else RATES[8::16]
    scale = len(RATES) // len(timed)
    grid = f"--{GRID}={RATES}"
    sweep = time_process("sweep", epochs, grid)
    in_turn = time_process("sweep", epochs, grid, "--memory=1")
    processes = scale * sum(
        time_process("train", epochs, f"--optimizer.learning_rate={rate}")
        for rate in timed
    )
    trainers = scale * sum(time_trainer(epochs, rate) for rate in timed)
    extrapolated = "" if options.all else f" ({len(timed)} timed, x {scale})"
    print(f"64 learning rates, {epochs} epochs of digits, MLP {WIDTHS}, all included:")
    for words, seconds in (
        ("one sweep", sweep),
        ("64 processes" + extrapolated, processes),
        ("64 compilations in one process" + extrapolated, trainers),
        ("one after the other, compiled once", in_turn),
    ):
        print(f"{words:51}{seconds:8.1f} s{seconds / sweep:7.1f} x the sweep")


if __name__ == "__main__":
    main()
