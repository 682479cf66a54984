"""What `adam-jax trace` is told."""

import math
import shutil
from dataclasses import dataclass, field
from typing import Literal

from adam_jax.experiments.settings.arguments import check_call
from adam_jax.experiments.settings.config import (
    OptimizerConfig,
    require,
    require_folder,
    require_label,
)

MOST_STEPS = 100_000  # each is kept, and written as text
MOST_FRAMES = 10_000
FARTHEST = 100.0  # a start from which no loss overflows

Option = bool | int | float | str | None


@dataclass(frozen=True)
class TraceConfig:
    """Trace the paths of optimizers on a surface: a picture and an animation.

    Attributes:
      surface: One of those listed below.
      optimizers: Names of optimizers or of settings; [] stands for the surface's.
      learning_rate: Learning rate of all of them; null: each has the surface's, or, if
        the surface has none for it, that of adam.
      steps: Steps of each; null: as many as the surface shows.
      start: Where all start, as [x, y]; [] stands for the surface's start.
      seed: Seed of what is random: only in random_counterexample is anything.
      settings: By name, the options of an optimizer, as in the table optimizer of
        `adam-jax train`. With its option `name` the name here is free to choose.
      animation: As which kind of file the animation is written, if at all; mp4 needs
        ffmpeg.
      frames: Pictures in the animation, 20 a second.
      name: Name of the run's folder; null: the surface's.
      runs_dir: Folder in which the run gets a folder of its own: NAME, or the first
        free one of NAME-2, NAME-3, ...

    Examples:
      adam-jax trace --surface rosenbrock
      adam-jax trace --surface counterexample --animation none
      adam-jax trace --surface beale --optimizers '["adam", "lion"]'
      adam-jax trace --surface ravine --settings.adam.b1 0.5 --settings.adam.b2 0.9
      adam-jax trace --surface ravine --start "[-3, 1]" --animation none
      adam-jax trace --config trace_saddle --steps 100
    """

    surface: str = "rosenbrock"
    optimizers: tuple[str, ...] = ()
    learning_rate: float | None = None
    steps: int | None = None
    start: tuple[float, ...] = ()
    seed: int = 0
    settings: dict[str, dict[str, Option]] = field(default_factory=dict)
    animation: Literal["gif", "mp4", "none"] = "gif"
    frames: int = 100
    name: str | None = None
    runs_dir: str = "runs"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        from adam_jax.experiments.trace.surfaces import SURFACES  # it takes JAX

        known, expected = self.surface in SURFACES, f"one of {', '.join(SURFACES)}"
        require(known, "surface", self.surface, expected)
        rate, steps = self.learning_rate, self.steps
        usable = rate is None or 0 < rate < math.inf
        require(usable, "learning_rate", rate, "positive and finite")
        bearable = steps is None or 0 < steps <= MOST_STEPS
        require(bearable, "steps", steps, f"from 1 to {MOST_STEPS}")
        limit = min(SURFACES[self.surface].limit, FARTHEST)
        near = len(self.start) in (0, 2) and all(abs(x) <= limit for x in self.start)
        expected = f"two numbers from -{limit:g} to {limit:g}"
        require(near, "start", list(self.start), expected)
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        bearable = 1 < self.frames <= MOST_FRAMES
        require(bearable, "frames", self.frames, f"from 2 to {MOST_FRAMES}")
        require_folder(self.runs_dir, self.name)
        for label in self.optimizers:
            require_label("optimizers", label)
        for label, options in self.settings.items():
            require_label("settings", label)
            check_call(OptimizerConfig, options, f"settings.{label}")
        writable = self.animation != "mp4" or shutil.which("ffmpeg") is not None
        expected = "'gif' or 'none' where ffmpeg is not installed"
        require(writable, "animation", self.animation, expected)
