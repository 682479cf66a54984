"""What a run is: the tables of its TOML file and the options of its command."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import adam_jax

BUILT_IN = ("digits", "mnist", "words", "topics", "wilson")
MAKE = "make"  # the function of a problem's module
# What is larger is a mistake, and would only fill the memory.
MOST_EPOCHS = 100_000
MOST_CONTEXT = 4096
MOST_WIDTH, MOST_WIDTHS = 65_536, 64


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


ModelName = Literal["logistic", "mlp", "cnn", "vae", "transformer", "linear"]


@dataclass(frozen=True)
class ModelConfig:
    """Say which network is trained.

    Attributes:
      name: For digits, mnist and words a dense network (mlp) or one without hidden
        layers (logistic); for digits and mnist also a convolutional one that halves
        the image in each layer (cnn), or a variational autoencoder (vae); for topics
        a causal transformer; for wilson a linear model that starts at zero (linear).
      widths: Units (mlp), channels (cnn), units of the encoder, of which the decoder
        has the reverse (vae) or, all equal, the width of each block (transformer).
      latent: Dimensions of the code of the vae.
      heads: Heads of attention in each block of the transformer.
      dropout: Share of the inputs of mlp, cnn and logistic that is set to zero in
        training; the rest grows by as much.
      hidden_bias: Bias with which the hidden layers of mlp and cnn start.
      param_dtype: In which the parameters are kept; the arithmetic is float32.
    """

    name: ModelName = "mlp"
    widths: tuple[int, ...] = (128, 64)
    latent: int = 20
    heads: int = 4
    dropout: float = 0.0
    hidden_bias: float = 0.0
    param_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        usable = all(0 < width <= MOST_WIDTH for width in self.widths)
        few = len(self.widths) <= MOST_WIDTHS
        expected = f"up to {MOST_WIDTHS} numbers from 1 to {MOST_WIDTH}"
        require(usable and few, "model.widths", list(self.widths), expected)
        finite = math.isfinite(self.hidden_bias)
        require(finite, "model.hidden_bias", self.hidden_bias, "a finite number")
        usable = 0 < self.latent <= MOST_WIDTH
        require(usable, "model.latent", self.latent, f"from 1 to {MOST_WIDTH}")
        share = 0 <= self.dropout < 1
        require(share, "model.dropout", self.dropout, "at least 0 and below 1")
        takes = self.dropout == 0 or self.name in ("mlp", "cnn", "logistic")
        require(takes, "model.dropout", self.dropout, f"0 for model.name {self.name}")
        if self.name == "transformer":
            widths, heads = list(self.widths), self.heads
            equal = len(set(widths)) == 1
            require(equal, "model.widths", widths, "equal in a transformer")
            divides = heads > 0 and widths[0] % heads == 0
            require(divides, "model.heads", heads, f"a divisor of {widths[0]}")

    @property
    def loss_name(self) -> str:
        """Name the loss, with its unit."""
        names = {"vae": "negative ELBO in nats", "linear": "half the squared error"}
        return names.get(self.name, "cross-entropy in nats")


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
      arguments: A table of what the function of your own problem is given.
      context: Characters in a window of topics; a window is one example.
      epochs: How often every training example is seen.
      epoch_steps: Steps in an epoch; null: as many as the examples fill.
      batch_size: Training examples in each step. An epoch leaves out what does
        not fill a batch: other examples each time.
      label_smoothing: Share of each target that is spread over all classes; of no
        effect on vae and linear, which have none.
      penalty: Half of this, times the sum of all squared parameters, is added to the
        training loss. (optimizer.l2 has the same gradient, but is not reported.)
      test_share: Share of the data kept for testing: the same whatever the seed.
      model: The network.
      resume: Folder of a run or a study that was killed or interrupted, to go on to the
        end that it would have had. Its config is kept: no other option goes with this
        one.
    """

    name: str | None = None
    runs_dir: str = "runs"
    problem: str = "digits"
    arguments: dict[str, Any] = field(default_factory=dict)
    context: int = 64
    epochs: int = 40
    epoch_steps: int | None = None
    batch_size: int = 32
    label_smoothing: float = 0.1
    penalty: float = 0.0
    test_share: float = 0.2
    model: ModelConfig = field(default_factory=ModelConfig)
    resume: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self._check_problem()
        require_folder(self.runs_dir, self.run_name)
        bearable = 0 < self.epochs <= MOST_EPOCHS
        require(bearable, "epochs", self.epochs, f"from 1 to {MOST_EPOCHS}")
        require(self.batch_size > 0, "batch_size", self.batch_size, "1 or more")
        bearable = 0 < self.context <= MOST_CONTEXT
        require(bearable, "context", self.context, f"from 1 to {MOST_CONTEXT}")
        given = self.epoch_steps is None or self.epoch_steps > 0
        require(given, "epoch_steps", self.epoch_steps, "1 or more")
        smooth = 0 <= self.label_smoothing < 1
        expected = "at least 0 and below 1"
        require(smooth, "label_smoothing", self.label_smoothing, expected)
        finite = 0 <= self.penalty < math.inf
        require(finite, "penalty", self.penalty, "0 or more, and finite")
        inside = 0 < self.test_share < 1
        require(inside, "test_share", self.test_share, "between 0 and 1")

    def _check_problem(self) -> None:
        if self.problem in BUILT_IN:
            own = not self.arguments
            expected = f"left out: {self.problem} takes none"
            require(own, "arguments", self.arguments, expected)
            return
        source, _, function = self.problem.partition(":")
        shown = self.problem.isprintable() and re.fullmatch(r"\w*", function)
        known = source.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", source)
        own = ":" in self.problem or source.endswith(".py")
        expected = f"one of {', '.join(BUILT_IN)}, module:function or a file.py"
        require(bool(shown and known and own), "problem", self.problem, expected)
        for key in ("model", "context", "label_smoothing"):
            default = getattr(TaskConfig, key, ModelConfig())
            if getattr(self, key) != default:
                raise ValueError(
                    f"{key} is set, but only {', '.join(BUILT_IN)} take it: what a "
                    "problem of your own takes are its arguments"
                )

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
        if self.problem in BUILT_IN:
            return f"{self.model.name} on {self.problem}"
        return self.problem

    @property
    def loss_name(self) -> str:
        """Name the loss, with its unit."""
        return self.model.loss_name if self.problem in BUILT_IN else "loss"


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
