"""Runs of the command line inside the test process, small and in a folder of theirs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adam_jax import QUANTILES
from adam_jax.experiments.cli import main
from adam_jax.experiments.metrics import Epoch, to_json

# Two steps an epoch: half of the 1,437 training images each.
TINY = ("--batch_size=718", "--epochs=2", "--arguments.widths=[8]")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Name the folder of runs; it does not exist yet."""
    return tmp_path / "runs"


@pytest.fixture
def train(runs_dir: Path) -> Callable[..., int]:
    """Give a function that runs `adam-jax train`, tiny unless told otherwise."""

    def run(*options: str) -> int:
        return main(["train", f"--runs_dir={runs_dir}", *TINY, *options])

    return run


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that makes the folder of a run, without training one."""

    def write(name: str = "mine", epochs: int = 4, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.toml").write_text(
            f'name = "{name}"\nproblem = "digits"\nepochs = 4\nseed = 0\n'
            '[arguments]\nmodel = "mlp"\nwidths = [8, 4]\n'
            '[optimizer]\nname = "adam"\nlearning_rate = 0.001\nschedule = "constant"\n'
        )
        made = [make_epoch(n)._replace(**changes) for n in range(1, epochs + 1)]
        (folder / "metrics.jsonl").write_text("".join(f"{to_json(e)}\n" for e in made))
        return folder

    return write


def make_epoch(number: int) -> Epoch:
    """Make an epoch of a model with two parameter groups, one of which stands still."""
    moved = {"head/kernel": 0.1 * number, "<b>body</b>": 0.0}
    figures = {"swallowed": 0.0, "nonfinite": 0.0}
    for n, name in enumerate(("update_ratio", "gradient_norm", "param_norm"), start=1):
        figures |= {name: n / number, f"{name}/head/kernel": n / (number + 1)}
        figures |= {f"{name}/<b>body</b>": 0.0}
    for name, scale in (("effective_step", 1), ("signal_to_noise", 0.5)):
        for n, key in enumerate(QUANTILES, start=1):
            figures[f"{name}_quantiles/{key}"] = scale * n / (6 * number)
    for group, share in (("head/kernel", 0.5), ("<b>body</b>", 0.0)):
        figures[f"signal_to_noise_quantiles/q50/{group}"] = share / number
    figures |= {"bias_correction_mu": 1 / number, "bias_correction_nu": 9 / number}
    loss, share = 2 / number, 1 - 0.5 / number
    return Epoch(
        epoch=number,
        step=10 * number,
        skipped=0,
        learning_rate=0.001,
        train_loss=loss,
        test_loss=1.25 * loss,
        metrics={"accuracy": share},
        figures=figures,
        moved=moved,
    )


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that makes the folder of a study from its final test losses.

    A loss is 3, 2 and 1 times its last value in its three epochs; NaN is a member that
    diverges after the first. The training loss is half the test loss.
    """

    def write(finals: dict[tuple[str, tuple[tuple[str, Any], ...]], list[float]]):
        folder = tmp_path / "study"
        folder.mkdir()
        (folder / "config.toml").write_text('name = "study"\nseeds = 2\n')
        with (folder / "members.jsonl").open("w") as file:
            for (optimizer, setting), losses in finals.items():
                for seed, loss in enumerate(losses):
                    curve = [3 * loss, 2 * loss, loss]
                    if math.isnan(loss):
                        curve = [1.0, None, None]
                    member = {
                        "optimizer": optimizer,
                        "setting": dict(setting),
                        "seed": seed,
                        "train_loss": [x and x / 2 for x in curve],
                        "test_loss": curve,
                        "metrics": {},
                    }
                    print(json.dumps(member), file=file)
        return folder

    return write
