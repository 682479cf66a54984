"""What a study is: which optimizers, from which seeds, over which settings."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adam_jax.experiments.settings.config import (
    Count,
    OptimizerConfig,
    Seed,
    TaskConfig,
    require,
    require_label,
)

MOST_RUNS = 10_000  # of an optimizer; each is kept until the end
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Candidate(OptimizerConfig):
    """Say which optimizer is tried. What is left out is the optimizer's default.

    Attributes:
      label: What it is called in tables and pictures; by default, its name.
    """

    label: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and labels that cannot be drawn."""
        super().__post_init__()
        require_label("label", self.title)

    @property
    def title(self) -> str:
        """Give its label."""
        return self.name if self.label is None else self.label


@dataclass(frozen=True)
class Range:
    """Say which values a hyperparameter takes: from min to max, evenly spaced.

    Attributes:
      min: The smallest value.
      max: The largest value.
      count: How many; in a random draw, any between them is drawn.
      scale: Even in their logarithms, or in themselves.
    """

    min: float
    max: float
    count: int = 8
    scale: Literal["log", "linear"] = "log"


Axis = Range | list[float] | None


@dataclass(frozen=True)
class GridConfig:
    """Say which values each hyperparameter takes: a list, or {min, max, count, scale}.

    Attributes:
      learning_rate: Of every optimizer; its peak, if it follows a schedule.
      b1: As in [[optimizers]], like the others.
      b2: As in [[optimizers]].
      decay: As in [[optimizers]].
      momentum: As in [[optimizers]].
      eps: As in [[optimizers]].
      weight_decay: As in [[optimizers]].
      decay_per_step: As in [[optimizers]].
      l2: As in [[optimizers]].
    """

    learning_rate: Axis = None
    b1: Axis = None
    b2: Axis = None
    decay: Axis = None
    momentum: Axis = None
    eps: Axis = None
    weight_decay: Axis = None
    decay_per_step: Axis = None
    l2: Axis = None

    def __post_init__(self) -> None:
        """Refuse what is no choice of numbers."""
        for key, axis in self.axes.items():
            if isinstance(axis, list):
                distinct = len(set(axis)) == len(axis) > 0
                require(distinct, key, axis, "different numbers")
            else:
                _check_range(key, axis)

    @property
    def axes(self) -> dict[str, Range | list[float]]:
        """Give the hyperparameters that vary, and their values."""
        axes = {key.name: getattr(self, key.name) for key in dataclasses.fields(self)}
        return {key: axis for key, axis in axes.items() if axis is not None}


def _check_range(name: str, axis: Range) -> None:
    rises = -math.inf < axis.min < axis.max < math.inf
    require(rises, f"{name}.max", axis.max, f"finite, and more than min, {axis.min!r}")
    counted = 1 < axis.count <= MOST_RUNS
    require(counted, f"{name}.count", axis.count, f"from 2 to {MOST_RUNS}")
    spaced = axis.scale == "linear" or axis.min > 0
    expected = "positive on a log scale; scale = 'linear' takes 0"
    require(spaced, f"{name}.min", axis.min, expected)


HYPERPARAMS = tuple(key.name for key in dataclasses.fields(GridConfig))
MEASURES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "test_error": "test error",
}


@dataclass(frozen=True)
class SweptCandidate(Candidate):
    """Say which optimizer is swept.

    Attributes:
      grid: Values of hyperparameters that it alone has, or has others of.
    """

    grid: GridConfig = field(default_factory=GridConfig)


@dataclass(frozen=True)
class StudyConfig(TaskConfig):
    """Describe a study: what is trained, by which optimizers, from which seeds.

    Attributes:
      seeds: Train from the seeds 0, 1, ... up to this number, or from those listed.
      optimizers: A table [[optimizers]] for each: its name, options and label.
      title: What its picture is called; by default, its name and the problem.
      memory: What is trained at once is cut into chunks that need no more than this:
        bytes, or as in 500MB or 2GB.
    """

    seeds: int | list[Seed] = 3
    optimizers: tuple[Candidate, ...] = ()
    title: str | None = None
    memory: int | str = "2GB"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        expected = f"from 1 to {MOST_RUNS}, or a list of different seeds"
        few = isinstance(self.seeds, list) or self.seeds <= MOST_RUNS
        distinct = few and len(set(self.seed_list)) == len(self.seed_list) > 0
        require(distinct, "seeds", self.seeds, expected)
        if not self.optimizers:
            raise ValueError(
                "there is no optimizer: add tables [[optimizers]], or say --optimizers "
                """'[{name = "adam"}, {name = "lion"}]'"""
            )
        titles = [candidate.title for candidate in self.optimizers]
        for title in titles:
            expected = "used once: give each of these [[optimizers]] a label of its own"
            require(titles.count(title) == 1, "optimizers.label", title, expected)
        require(self.memory_bytes > 0, "memory", self.memory, "as in 500MB or 2GB")

    @property
    def heading(self) -> str:
        """Give its title."""
        return f"{self.name}: {self.subject}" if self.title is None else self.title

    @property
    def seed_list(self) -> list[int]:
        """List the seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def memory_bytes(self) -> int:
        """Give the memory in bytes; 0 if it is not to be understood."""
        found = re.fullmatch(r"(\d{1,15}\.?\d{,9}) ?([KMG]B|)", str(self.memory))
        return int(float(found[1]) * UNITS[found[2]]) if found else 0


@dataclass(frozen=True)
class CompareConfig(StudyConfig):
    """Train with several optimizers, each from several seeds; draw their curves.

    Attributes:
      target_loss: Count the epochs until the training loss is down to this.

    Examples:
      adam-jax compare --config compare_digits
      adam-jax compare --config compare_digits --seeds 10 --epochs 5
      adam-jax compare --resume runs/compare_digits

    A config names the optimizers:

      [[optimizers]]
      name = "adam"
      learning_rate = 0.003

      [[optimizers]]
      name = "adam"
      learning_rate = 0.003
      b2 = 0.99
      label = "adam, b2 = 0.99"
    """

    name: str = "compare"
    target_loss: float | None = None


@dataclass(frozen=True)
class SweepConfig(StudyConfig):
    """Train under every setting of a grid at once; find the best, and picture them all.

    Attributes:
      optimizers: As in a comparison; each may have a table [optimizers.grid] of its
        own.
      grid: The values of each hyperparameter; all their combinations are trained.
      draws: Train so many random draws from the grid instead, each value of a range
        as likely as the others.
      draw_seed: Seed of these draws.
      measure: What the best setting has least of, and the picture shows; an error is a
        share of the test labels, for problems with a metric "accuracy".
      lines: Draw curves over the first hyperparameter of the grid, in a panel for each
        combination of the others; or else heat maps, one for each pair.
      epochs_shown: Draw these curves after each of these epochs; by default, the last.

    Examples:
      adam-jax sweep --config sweep_digits
      adam-jax sweep --config sweep_digits --memory 500MB
      adam-jax sweep --config sweep_digits --draws 64
      adam-jax sweep --resume runs/sweep_digits

    A config names the optimizers, and the values of their hyperparameters:

      [[optimizers]]
      name = "adamw"

      [grid]
      learning_rate = {min = 1e-5, max = 1, count = 11}
      weight_decay = [0, 0.01, 0.1, 1]

    An optimizer may have values of its own, in a table [optimizers.grid] below it.
    """

    name: str = "sweep"
    seeds: int | list[Seed] = 1
    optimizers: tuple[SweptCandidate, ...] = ()
    grid: GridConfig = field(default_factory=GridConfig)
    draws: Count | None = None
    draw_seed: Seed = 0
    measure: Literal["train_loss", "test_loss", "test_error"] = "test_loss"
    lines: bool = False
    epochs_shown: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not all(map(self.list_axes, self.optimizers)):
            raise ValueError(
                "the grid is empty: add a table [grid], as in "
                "learning_rate = {min = 1e-5, max = 1, count = 11}"
            )
        drawn = self.draws is None or not self.lines
        require(drawn, "lines", self.lines, "false for random draws")
        shared = bool(self.grid.axes) or not self.lines
        require(shared, "lines", self.lines, "false without a table [grid] of them all")
        inside = all(0 < epoch <= self.epochs for epoch in self.epochs_shown)
        shown = list(self.epochs_shown)
        require(inside, "epochs_shown", shown, f"from 1 to epochs, {self.epochs}")
        later = self.lines or not self.epochs_shown
        require(later, "epochs_shown", shown, "left out without lines = true")
        runs = self.count_settings() * len(self.seed_list)
        if runs > MOST_RUNS:
            raise ValueError(
                f"these are {runs:,} runs of each optimizer, but {MOST_RUNS:,} are the "
                "most: take a coarser grid, fewer draws or fewer seeds"
            )

    def count_settings(self) -> int:
        """Count the settings of the optimizer that has most."""
        if self.draws is not None:
            return self.draws
        return max(
            math.prod(
                len(axis) if isinstance(axis, list) else axis.count
                for axis in self.list_axes(candidate).values()
            )
            for candidate in self.optimizers
        )

    def list_axes(self, candidate: SweptCandidate) -> dict[str, Range | list[float]]:
        """Give what varies for an optimizer."""
        return self.grid.axes | candidate.grid.axes


def set_options(candidate: Candidate, setting: Mapping[str, float]) -> dict[str, Any]:
    """Give the numbers that a candidate is trained with, but for its defaults."""
    options = {key: getattr(candidate, key) for key in HYPERPARAMS} | dict(setting)
    return {key: value for key, value in options.items() if value is not None}
