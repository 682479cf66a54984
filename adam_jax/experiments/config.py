"""What a run is: the tables of its TOML file and the options of its command."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import adam_jax

BUILT_IN = ("digits", "mnist", "words", "topics", "wilson")
MAKE = "make"  # the function of a problem's module
# More are a mistake, and would only fill the memory.
MOST_EPOCHS = 100_000


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raise a ValueError that names the key, unless its value holds."""
    if not holds:
        raise ValueError(f"{key} is {value!r}, but must be {expected}")


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
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup_steps: int = 0
    b1: float | None = None
    b2: float | None = None
    decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    eps: float | None = None
    eps_root: float | None = None
    weight_decay: float | None = None
    decay_per_step: float | None = None
    l2: float | None = None
    initial_accumulator_value: float | None = None
    mu_dtype: str | None = None
    nu_dtype: str | None = None
    rounding: Literal["nearest", "stochastic", "compensated"] = "nearest"
    guard: Literal["none", "nonfinite", "spikes"] = "none"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values out of range; the optimizer itself checks the others."""
        if self.name != OptimizerConfig.name:  # to know the others takes JAX
            names = ", ".join(sorted(adam_jax.OPTIMIZERS))
            known = self.name in adam_jax.OPTIMIZERS
            require(known, "optimizer.name", self.name, f"one of {names}")
        usable = 0 < self.learning_rate < math.inf
        require(
            usable, "optimizer.learning_rate", self.learning_rate, "positive and finite"
        )
        enough = self.warmup_steps >= 0
        require(enough, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        shrinks = self.l2 is None or 0 <= self.l2 < math.inf
        require(shrinks, "optimizer.l2", self.l2, "0 or more, and finite")
        share, key = self.decay_per_step, "optimizer.decay_per_step"
        require(share is None or 0 <= share < 1, key, share, "at least 0 and below 1")
        once = share is None or self.weight_decay is None
        require(once, key, share, "left out where weight_decay is set")


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
    epochs: int = 40
    epoch_steps: int | None = None
    batch_size: int = 32
    penalty: float = 0.0
    resume: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self._check_problem()
        require_folder(self.runs_dir, self.run_name)
        bearable = 0 < self.epochs <= MOST_EPOCHS
        require(bearable, "epochs", self.epochs, f"from 1 to {MOST_EPOCHS}")
        require(self.batch_size > 0, "batch_size", self.batch_size, "1 or more")
        given = self.epoch_steps is None or self.epoch_steps > 0
        require(given, "epoch_steps", self.epoch_steps, "1 or more")
        finite = 0 <= self.penalty < math.inf
        require(finite, "penalty", self.penalty, "0 or more, and finite")

    def _check_problem(self) -> None:
        if self.problem in BUILT_IN:
            return
        source, _, function = self.problem.partition(":")
        shown = self.problem.isprintable() and re.fullmatch(r"\w*", function)
        known = source.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", source)
        own = ":" in self.problem or source.endswith(".py")
        expected = f"one of {', '.join(BUILT_IN)}, module:function or a file.py"
        require(bool(shown and known and own), "problem", self.problem, expected)

    @property
    def run_name(self) -> str:
        """Give its name."""
        if self.name is not None:
            return self.name
        source, _, _ = self.problem.partition(":")
        return Path(source).stem.rpartition(".")[-1]

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

    seed: int = 0
    checkpoint_every: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        every = self.checkpoint_every
        usable = every is None or every > 0
        require(usable, "checkpoint_every", every, "1 or more")
