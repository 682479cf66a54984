"""Accumulators: how a moment gathers one gradient after another.

An `Accumulator` is a few small functions and numbers. `scale_by_moments` takes one
for the first moment, which gathers the gradient g, and one for the second, which
gathers |g|^2. A float means `ema` with that decay.

To define your own, return an `Accumulator`, as in `examples/your_own_variant.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax import numerics
from adam_jax.hyperparams import (
    Hyperparam,
    check_decay,
    check_no_schedule,
    check_non_negative,
    check_number,
    check_whole,
    shown,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulator:
    """How a moment gathers values. Every function is elementwise, on single arrays.

    Attributes:
      hyperparams: hyperparameters by name: numbers, 0-d arrays or schedules. At each
        step they are evaluated and passed to the functions below as attributes of `h`.
        One named "decay" must be a decay rate.
      add: (moment, value, h) -> the moment with one more value gathered.
      initial: the moment before the first gradient, >= 0.
      averages: whether the moment is an average at rate `h.decay`, so that
        `bias_correct` divides it by the weight it has seen, 1 - decay^t.
      power: 2 if a second moment has the size of g^2; 1 if it has the size of |g|, like
        a mean of |g|. Later stages then receive the squares of moment and weight, and
        need no special case.
      measure: (grad, mu, h) -> the value to gather; None means g in the first moment,
        |g|^2 in the second. `mu` is the first moment of this step.
      read: (new, old, grad, weight, h) -> what later stages receive instead of the new
        moment; None means the new moment itself. `weight` is the weight that `new` has
        seen; `bias_correct` divides the result by it.
      order: 1 if it is for first moments only, 2 for second ones only (as with a power
        of 1), None for both.
      first: not None means that later stages receive the moment and its weight as they
        were before this step; at the first step they receive this number, and the
        weight 1. See `delayed`.
      restart_every: the number of steps after which moment and weight start anew; None
        means never. See `restarted`.

    Raises:
      ValueError: for a hyperparameter that is not finite, a decay outside [0, 1), an
        average without a decay, or another power, order or restart_every.
      TypeError: for a hyperparameter that is not a real number, or if `hyperparams` is
        no dict, or `add` no function.

    Example: a mean of |g|, where Adam has a mean of g^2.

      >>> size = Accumulator(
      ...     {"decay": 0.9},
      ...     add=lambda moment, value, h: h.decay * moment + (1 - h.decay) * value,
      ...     averages=True,
      ...     power=1,
      ...     measure=lambda grad, mu, h: jnp.abs(grad),
      ... )
      >>> import optax
      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(scale_by_moments(None, size), bias_correct())
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -3.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{jnp.sqrt(moments.nu):.4f}")  # (0.9 * 1 + 3) / (0.9 + 1)
      2.0526
    """

    hyperparams: Mapping[str, Hyperparam]
    add: Callable[[Array, Array, SimpleNamespace], Array]
    initial: Hyperparam = 0.0
    averages: bool = False
    power: int = 2
    measure: Callable[[Array, Array, SimpleNamespace], Array] | None = None
    read: Callable[[Array, Array, Array, Array, SimpleNamespace], Array] | None = None
    order: int | None = None
    first: float | None = None
    restart_every: int | None = None

    def __post_init__(self) -> None:
        """Check everything that does not need gradients."""
        if not isinstance(self.hyperparams, Mapping) or not callable(self.add):
            raise TypeError(
                "an Accumulator takes a dict of hyperparameters and a function "
                f"(moment, value, h) -> moment, got {shown(self.hyperparams)} and "
                f"{shown(self.add)}."
            )
        if self.averages and "decay" not in self.hyperparams:
            raise ValueError(
                "an Accumulator that averages needs a hyperparameter 'decay', got "
                f"{list(self.hyperparams)}: bias correction follows from it."
            )
        if self.power not in (1, 2):
            raise ValueError(f"the power of a moment is 1 or 2, got {self.power}.")
        if self.order not in (1, 2, None) or (self.power, self.order) == (1, 1):
            raise ValueError(
                f"the order of a moment is 1 or 2, and 2 if its power is 1, got "
                f"{self.order}."
            )
        if self.power == 1:
            object.__setattr__(self, "order", 2)
        if self.restart_every is not None:
            check_whole("restart_every", self.restart_every)
        checked = {
            name: (check_decay if name == "decay" else check_number)(name, value)
            for name, value in self.hyperparams.items()
        }
        object.__setattr__(self, "hyperparams", checked)
        object.__setattr__(self, "initial", check_initial("initial", self.initial))

    @property
    def averages_values(self) -> bool:
        """Whether it is an average of g or |g|^2 themselves, however it is read."""
        return self.averages and self.measure is None and self.power == 2

    @property
    def is_ema(self) -> bool:
        """Whether it averages g or |g|^2 as `ema` does; it may be read otherwise."""
        plain = self.first is None and self.restart_every is None
        return plain and self.averages_values and self.add is average


def check_initial(name: str, value: Any) -> Any:
    """Return `value` if a moment can start from it.

    Args:
      name: the argument's name, for the message.
      value: a number or a 0-d array, >= 0.

    Raises:
      ValueError: if it is negative or not finite.
      TypeError: if it is a schedule, or not a real number.
    """
    return check_no_schedule(name, check_non_negative(name, value))


def as_accumulator(name: str, value: Any) -> Accumulator | None:
    """Return `value` as an accumulator; a decay rate means `ema`.

    Args:
      name: the argument's name, for the message.
      value: an `Accumulator`, a decay rate, or None for no moment.

    Raises:
      ValueError: if it is out of range; the message starts with `name`.
      TypeError: if it is none of these.
    """
    if value is None or isinstance(value, Accumulator):
        return value
    return ema(check_decay(name, value))


def average(moment: Array, value: Array, h: SimpleNamespace) -> Array:
    """Add a value as `ema` does; kernels recognise this function.

    Args:
      moment: the average so far.
      value: the value to add.
      h: holds the decay.
    """
    return h.decay * moment + (1 - h.decay) * value


def look_ahead(
    new: Array, old: Array, grad: Array, weight: Array, h: SimpleNamespace
) -> Array:
    """Read an average one step ahead, as in NAdam; kernels recognise this function.

    Args:
      new: the average.
      old: the average before this step, unused.
      grad: the gradient of this step.
      weight: the weight that the average has seen.
      h: holds the decay.
    """
    del old
    next_weight = h.decay * weight + (1 - h.decay)
    return h.decay * new * (weight / next_weight) + (1 - h.decay) * grad


def ema(
    decay: Hyperparam, *, initial: Hyperparam = 0.0, nesterov: bool = False
) -> Accumulator:
    """Average exponentially: `m <- decay * m + (1 - decay) * value`.

    Args:
      decay: in [0, 1).
      initial: the average before the first gradient, >= 0.
      nesterov: read a first moment one step ahead: after bias correction,
        `decay * m / w_next + (1 - decay) * g / w` with w = 1 - decay^t and
        w_next = 1 - decay^(t+1).

    Reference: Kingma & Ba 2014, Algorithm 1; nesterov: Dozat 2016, Algorithm 2.
    """
    return Accumulator(
        {"decay": decay},
        average,
        initial=initial,
        averages=True,
        read=look_ahead if nesterov else None,
        order=1 if nesterov else None,
    )


def trace(decay: Hyperparam, *, nesterov: bool = False) -> Accumulator:
    """Sum with decay (the heavy ball): `m <- decay * m + value`.

    Args:
      decay: in [0, 1).
      nesterov: read `decay * m + g` instead of m.

    Reference: Polyak 1964, equation 9; nesterov: Sutskever et al. 2013, section 2.
    """
    return Accumulator(
        {"decay": decay},
        lambda moment, value, h: h.decay * moment + value,
        read=(lambda new, old, grad, weight, h: h.decay * new + grad)
        if nesterov
        else None,
        order=1 if nesterov else None,
    )


def total(initial: Hyperparam = 0.0) -> Accumulator:
    """Sum: `m <- m + value`.

    Args:
      initial: the sum before the first gradient, >= 0, in units of what is summed.

    Reference: Duchi, Hazan & Singer 2011 (AdaGrad), Figure 1.
    """
    return Accumulator({}, lambda moment, value, h: moment + value, initial=initial)


def infinity_norm(decay: Hyperparam, eps: Hyperparam = 0.0) -> Accumulator:
    """Keep a decaying maximum as second moment: `m <- max(decay * m, |g| + eps)`.

    Args:
      decay: in [0, 1).
      eps: added to each |g|, >= 0, in units of the gradient.

    Reference: Kingma & Ba 2014, Algorithm 2 (AdaMax), where eps is 0.
    """
    return Accumulator(
        {"decay": decay, "eps": check_non_negative("eps", eps)},
        lambda moment, value, h: jnp.maximum(h.decay * moment, value),
        power=1,
        measure=lambda grad, mu, h: jnp.abs(grad) + h.eps,
    )


def residual_variance(decay: Hyperparam, eps_root: Hyperparam = 1e-16) -> Accumulator:
    """Average the squared deviation of g from mu, as second moment.

    `m <- decay * m + (1 - decay) * |g - mu|^2 + eps_root`

    Args:
      decay: in [0, 1).
      eps_root: added at each step, >= 0, in units of the gradient squared.

    Reference: Zhuang et al. 2020 (AdaBelief), Algorithm 2.
    """
    return Accumulator(
        {"decay": decay, "eps_root": check_non_negative("eps_root", eps_root)},
        lambda moment, value, h: average(moment, value, h) + h.eps_root,
        averages=True,
        measure=lambda grad, mu, h: numerics.abs_sq(grad - mu),
        order=2,
    )


def yogi_average(decay: Hyperparam, initial: Hyperparam = 1e-6) -> Accumulator:
    """Move towards g^2 by an amount that does not depend on the moment's size.

    `m <- m - (1 - decay) * sign(m - g^2) * g^2`, as second moment.

    Args:
      decay: in [0, 1).
      initial: the moment before the first gradient, >= 0, in units of g^2.

    Reference: Zaheer et al. 2018 (Yogi), Algorithm 2.
    """
    return Accumulator(
        {"decay": decay},
        lambda moment, value, h: (
            moment - (1 - h.decay) * jnp.sign(moment - value) * value
        ),
        initial=initial,
        averages=True,
        order=2,
    )


def lion_average(b1: Hyperparam, b2: Hyperparam) -> Accumulator:
    """Average at rate `b2`, but first read at rate `b1`.

    Read `b1 * m + (1 - b1) * g`, then set `m <- b2 * m + (1 - b2) * g`.

    Args:
      b1: the decay rate for reading, in [0, 1).
      b2: the decay rate of the stored average, in [0, 1).

    Reference: Chen et al. 2023 (Lion), Algorithm 2.
    """
    return Accumulator(
        {"read_decay": check_decay("b1", b1), "decay": check_decay("b2", b2)},
        average,
        read=lambda new, old, grad, weight, h: (
            h.read_decay * old + (1 - h.read_decay) * grad
        ),
        order=1,
    )
