"""What a run is: the tables of its TOML file and the options of its command."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import adam_jax

BUILT_IN = ("digits", "mnist", "words", "topics", "wilson")
MAKE = "make"  # the function of a problem's module
# What numbers may be. More epochs are a mistake, and would only fill the memory.
Count = Annotated[int, Field(gt=0)]
Epochs = Annotated[int, Field(gt=0, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raise a ValueError that names the key, unless its value holds."""
    if not holds:
        raise ValueError(f"{key} is {value!r}, but must be {expected}")


def suggest(known: Collection[str], *names: str) -> str:
    """Ask for what is known that is most like each of some names, if any is."""
    lasts = {x.split(".")[-1].strip("-"): x for x in reversed([*known])}
    ends = [name.split(".")[-1].strip("-") for name in names]
    close = [lasts[y] for x in ends for y in difflib.get_close_matches(x, lasts, 1)]
    return f": did you mean {' and '.join(close)}?" if close else ""


def require_known(key: str, value: str, known: Any, expected: str = "") -> None:
    """Raise a ValueError unless a value is known; it expects one of all by default."""
    if value not in known:
        expected = expected or f"one of {', '.join(known)}"
        require(False, key, value, expected + suggest(known, value))


def require_folder(runs_dir: str, name: str | None) -> None:
    """Raise a ValueError unless a run can have a folder of that name there."""
    require(runs_dir.isprintable(), "runs_dir", runs_dir, "of printable characters")
    plain = name is None or re.fullmatch(r"\w[\w.-]{,99}", name) is not None
    expected = "letters, digits and any of '_', '-', '.': 100 at most"
    require(plain, "name", name, expected)


def require_label(key: str, label: str) -> None:
    """Raise a ValueError unless pictures can show a label as it is."""
    shown = label.isprintable() and re.fullmatch(r"[^\s_$\\][^$\\]{,59}", label)
    expected = "up to 60 printable characters, without '$' or '\\', and no '_' first"
    require(bool(shown), key, label, expected)


@dataclass(frozen=True)
class OptimizerConfig:
    """Say which optimizer trains it. What is left out is the optimizer's default.

    Attributes:
      name: An optimizer of adam_jax.OPTIMIZERS (listed below).
      learning_rate: Learning rate; its peak, if it follows a schedule.
      schedule: Keep the learning rate, let it fall to zero along a cosine, or divide
        it by the root of the step's number, from 1 (inverse_sqrt).
      warmup_steps: Steps in which the learning rate first rises from zero.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      decay: Decay of rmsprop's second moment.
      momentum: Decay of the heavy ball of sgd and rmsprop.
      nesterov: Look one step ahead.
      eps: What is added to the root of the second moment.
      eps_root: What is added to the second moment inside its root.
      weight_decay: Share of the parameters taken away in each step, times the
        learning rate.
      decay_per_step: Share of the parameters taken away in each step, whatever the
        learning rate; as it, it follows the schedule. (As in Loshchilov & Hutter's
        AdamW; it stands for weight_decay = decay_per_step / learning_rate.)
      l2: Share of the parameters added to the gradient, before it enters the moments:
        L2 regularisation, which is not weight_decay.
      initial_accumulator_value: What adagrad's sum of squares starts from.
      mu_dtype: How the first moment is stored: float32, bfloat16 or 8bit.
      nu_dtype: How the second moment is stored.
      rounding: How bfloat16 parameters take an update: to the nearest, stochastic,
        or compensated (with what was cut off kept as state).
      guard: Skip steps whose gradients are not finite, or those and spikes: steps
        whose gradient is more than 5 times as long as usual.
      arguments: A table of other arguments of the optimizer, by their names: as in
        {tolerance = 1e-3} for swats.
    """

    name: str = "adam"
    learning_rate: Rate = 1e-3
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    b1: float | None = None
    b2: float | None = None
    decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    eps: float | None = None
    eps_root: float | None = None
    weight_decay: float | None = None
    decay_per_step: Share | None = None
    l2: Weight | None = None
    initial_accumulator_value: float | None = None
    mu_dtype: str | None = None
    nu_dtype: str | None = None
    rounding: Literal["nearest", "stochastic", "compensated"] = "nearest"
    guard: Literal["none", "nonfinite", "spikes"] = "none"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no type tells; the optimizer itself checks other values."""
        if self.name != OptimizerConfig.name:  # to know the others takes JAX
            expected = "one of those that adam-jax family lists"
            require_known("name", self.name, adam_jax.OPTIMIZERS, expected)
        once = self.decay_per_step is None or self.weight_decay is None
        expected = "left out where weight_decay is set"
        require(once, "decay_per_step", self.decay_per_step, expected)


@dataclass(frozen=True)
class TaskConfig:
    """Describe what is trained, and for how long.

    Attributes:
      name: Name of the run, and of its folder; null: that of the problem.
      runs_dir: Folder in which the run gets a folder of its own: NAME, or the
        first free one of NAME-2, NAME-3, ... so that no run is overwritten.
      problem: Handwritten digits, 8 by 8 pixels (digits) or 28 by 28 (mnist); which
        words are in a docstring of SciPy, to tell its package (words); the characters
        of Python's manual (topics); the examples of which Wilson et al. show that
        adaptive methods generalise worse on them (wilson); or a problem of your own, as
        package.module:make or path/to/file.py (see adam-jax new --help).
      arguments: A table of what the function that makes the problem is given: its
        model, and what else it takes (listed below for those that come along).
      epochs: How often every training example is seen.
      epoch_steps: Steps in an epoch; null: as many as the examples fill.
      batch_size: Training examples in each step. An epoch leaves out what does
        not fill a batch: other examples each time.
      penalty: Half of this, times the sum of all squared parameters, is added to the
        training loss. (optimizer.l2 has the same gradient, but is not reported.)
      resume: Folder of a run or a study that was killed or interrupted, to go on to the
        end that it would have had. Its config is kept: no other option goes with this
        one.
    """

    name: str | None = None
    runs_dir: str = "runs"
    problem: str = "digits"
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: Epochs = 40
    epoch_steps: Count | None = None
    batch_size: Count = 32
    penalty: Weight = 0.0
    resume: str | None = None

    def __post_init__(self) -> None:
        """Refuse a problem and a folder that cannot be."""
        problem = r"\w+(\.\w+)*:\w*|[^:]*\.py(:\w*)?"
        if not (self.problem.isprintable() and re.fullmatch(problem, self.problem)):
            expected = f"one of {', '.join(BUILT_IN)}, module:function or a file.py"
            require_known("problem", self.problem, BUILT_IN, expected)
        require_folder(self.runs_dir, self.run_name)

    @property
    def run_name(self) -> str:
        """Give its name."""
        if self.name is not None:
            return self.name
        source, _, _ = self.problem.partition(":")
        return Path(source.removesuffix(".py")).name.rpartition(".")[-1]

    @property
    def subject(self) -> str:
        """Say in few words what is trained."""
        model = self.arguments.get("model")
        return f"{model} on {self.problem}" if model else self.problem


@dataclass(frozen=True)
class TrainConfig(TaskConfig):
    """Describe one training run.

    Attributes:
      seed: Seed of the first parameters and of the order of the batches.
      checkpoint_every: Steps from one checkpoint to the next, from which --resume can
        go on; null: a minute or more. There is one at the end, too, at Ctrl-C and at
        SIGTERM, and the last three are kept.
      optimizer: The optimizer; null stands for its own default.
    """

    seed: Seed = 0
    checkpoint_every: Count | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
