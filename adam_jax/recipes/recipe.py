"""Recipes: which moments an update came from, and by which lines of Adam."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_jax.moments.accumulators import look_ahead
from adam_jax.moments.blocks import EightBitFormat
from adam_jax.moments.formats import DenseFormat
from adam_jax.moments.moment import Gathered, Moment
from adam_jax.placement import Cut


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """One call of `scale_by_moments` that keeps both moments.

    Attributes:
      first: the first moment.
      second: the second moment.
      state: the `MomentsState` before the step.
      grads: the gradients as received.
      mu: the first moment after the step.
      nu: the second moment after the step.
      cuts: how each leaf is cut, as `placement.cut_at` says.
    """

    first: Moment
    second: Moment
    state: Any
    grads: Any
    mu: Gathered
    nu: Gathered
    cuts: list[Cut | None]

    @functools.cached_property
    def leaves(self) -> list[Any]:
        """The gradients as a list."""
        return jax.tree.leaves(self.grads)


class Flowing(NamedTuple):
    """A moment of one leaf, on its way from `scale_by_moments`.

    Attributes:
      origin: the call that emitted it.
      name: "mu" or "nu".
      leaf: the number of the leaf.
      corrected: whether it was divided by the weight that it has seen.
    """

    origin: Origin
    name: str
    leaf: int
    corrected: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Decay:
    """How a parameter decays.

    Attributes:
      rate: the factor of the parameter: a float, or a float32 scalar.
      param: the parameter, as given to the stage.
    """

    rate: Any
    param: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
    """How `round_to_params` rounds a parameter.

    Attributes:
      seed: the seed of the random bits.
      count: int32 scalar, the steps before this one.
      leaf: the number of the leaf in the rounded tree.
      param: the parameter.
      wide: the parameter in float32, as the wrapped optimizer sees it.
      cut: how the parameter is cut, as `placement.cut_at` says.
    """

    seed: int
    count: Any
    leaf: int
    param: Any
    wide: Any
    cut: Cut | None


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Where a leaf lies in the buffer that its update came from.

    Attributes:
      position: the position of the leaf among those in the buffer.
      grads: the gradients of these leaves, in order.
      param: the leaf's parameter, or None if unknown.
      grad_buffer: the buffer of these gradients, as the optimizer was given it.
      param_buffer: the buffer of parameters that it lies in, or None if unknown.
    """

    position: int
    grads: tuple[Any, ...]
    param: Any
    grad_buffer: Any
    param_buffer: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How the update of one leaf was computed, line by line of Adam.

        update = mu / (sqrt(nu + eps_root) + eps)     with the moments corrected or not
        update <- update + decay * param
        update <- -learning_rate * update

    Attributes:
      origin: where the moments come from.
      leaf: the number of the leaf among theirs.
      corrected: which of "mu" and "nu" were divided by their weight.
      eps: a float, or a float32 scalar.
      eps_root: the same.
      decay: the weight decay, or None.
      learning_rate: a float, or a float32 scalar; None means not yet multiplied.
      part: where the leaf lies in a buffer; None means that it has its own moment.
      rounding: how the new parameter is rounded; None means by `optax.apply_updates`.
      gates: bool scalars; the step is taken if all of them are true.
    """

    origin: Origin
    leaf: int
    corrected: frozenset[str]
    eps: Any
    eps_root: Any
    decay: Decay | None = None
    learning_rate: Any = None
    part: Part | None = None
    rounding: Rounding | None = None
    gates: tuple[Any, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether it has all lines, and moments of Adam's kind in formats of ours."""
        first, second = self.origin.first, self.origin.second
        return self.learning_rate is not None and all(
            moment.accumulator.is_ema
            and moment.accumulator.read in readings
            and type(moment.format) in (DenseFormat, EightBitFormat)
            for moment, readings in ((first, (None, look_ahead)), (second, (None,)))
        )

    @property
    def cut(self) -> Cut | None:
        """How its moment is cut."""
        return self.origin.cuts[self.leaf]

    @property
    def grads(self) -> list[Any]:
        """The gradients that its moment gathers: one, or all of those in a buffer."""
        grad = self.origin.leaves[self.leaf]
        whole = self.part is not None and self.part.grad_buffer is grad
        return list(self.part.grads) if self.part and whole else [grad]

    @property
    def scalars(self) -> list[Any]:
        """The scalars of its lines, and the weights that its moments have seen."""
        rate = self.decay.rate if self.decay else 0.0
        seen = [self.origin.mu.seen, self.origin.nu.seen]
        return [*seen, self.eps, self.eps_root, rate, self.learning_rate]

    @property
    def is_bounded(self) -> bool:
        """Whether its scalars tell that its updates are finite.

        Without eps, a learning rate of 32 would already pass the bound.
        """
        large = not isinstance(self.eps, float) or self.eps >= 1e-16
        return self.is_known and large

    @property
    def bounds(self) -> list[Any]:
        """Float32 scalars that are finite if all updates of finite numbers are.

        Gradients are bounded by 2^60, so mu is, once it is divided by its weight. It is
        divided by eps at least, or by 2^-63, the root of the least normal float32.
        Parameters are taken to be below 2^60, too. Outside of [0, 1], decays of a
        schedule make a negative nu; they give NaN here, as a negative eps_root does.
        """
        scalars = [jnp.asarray(x, jnp.float32) for x in self.scalars]
        mu_seen, nu_seen, eps, eps_root, rate, learning_rate = scalars
        moments, past = (self.origin.first, self.origin.second), self.origin.state.count
        decays = [jnp.asarray(m.decay(past, jnp.float32)) for m in moments]
        roots = [jnp.sqrt(x) for x in (eps_root, *(b * (1 - b) for b in decays))]
        quotient = 1 / jnp.maximum(eps, 2.0**-63)
        largest = learning_rate * (2.0**60 * (quotient + jnp.abs(rate)))
        return [1 / mu_seen, 1 / nu_seen, *roots, largest]


@dataclasses.dataclass(frozen=True, eq=False)
class Watch:
    """How `record` measures a step.

    Attributes:
      figures: what is measured, by name.
      found: their new values in the state, by name.
      old: the values before.
      wanted: bool scalar: whether the step is measured.
      grads, updates, params: the trees that are measured.
      before: the state of the optimizer before the step.
      step: returns all that figures are measured of, a `Step`.
      look: names of figures -> what `found` holds of them without a kernel, and a bool
        scalar, true once they are known.
      looked: that scalar for all of them. The gradients of the step wait for it.
      axis_name: the axes along which leaves are cut, if they are named.
    """

    figures: Mapping[str, Any]
    found: Mapping[str, Any]
    old: Mapping[str, Any]
    wanted: Any
    grads: Any
    updates: Any
    params: Any
    before: Any
    step: Callable[[], Any]
    look: Callable[[Sequence[str]], tuple[Mapping[str, Any], Any]]
    looked: Any
    axis_name: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """A gate's choice between the new and the old array of a state.

    Attributes:
      chosen: the array that is kept: the new one if the gate is true, else the old.
      old: the array before the step.
      gate: a bool scalar.
    """

    chosen: Any
    old: Any
    gate: Any
