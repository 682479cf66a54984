"""What `adam-jax trace` is told."""

import shutil
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from adam_jax.experiments.settings.arguments import make_config
from adam_jax.experiments.settings.config import (
    OptimizerConfig,
    Rate,
    Seed,
    require,
    require_folder,
    require_known,
    require_label,
)

Steps = Annotated[int, Field(gt=0, le=100_000)]  # each is kept, and written as text
Frames = Annotated[int, Field(gt=1, le=10_000)]
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
    learning_rate: Rate | None = None
    steps: Steps | None = None
    start: tuple[float, ...] = ()
    seed: Seed = 0
    settings: dict[str, dict[str, Option]] = field(default_factory=dict)
    animation: Literal["gif", "mp4", "none"] = "gif"
    frames: Frames = 100
    name: str | None = None
    runs_dir: str = "runs"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        from adam_jax.experiments.trace.surfaces import SURFACES  # it takes JAX

        require_known("surface", self.surface, SURFACES)
        limit = min(SURFACES[self.surface].limit, FARTHEST)
        near = len(self.start) in (0, 2) and all(abs(x) <= limit for x in self.start)
        expected = f"two numbers from -{limit:g} to {limit:g}"
        require(near, "start", list(self.start), expected)
        require_folder(self.runs_dir, self.name)
        for label in self.optimizers:
            require_label("optimizers", label)
        for label, options in self.settings.items():
            require_label("settings", label)
            make_config(OptimizerConfig, options, f"settings.{label}")
        writable = self.animation != "mp4" or shutil.which("ffmpeg") is not None
        expected = "'gif' or 'none' where ffmpeg is not installed"
        require(writable, "animation", self.animation, expected)
