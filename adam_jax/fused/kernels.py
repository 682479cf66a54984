"""What every kernel takes and returns: leaves, scalars, counts and options."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Group(NamedTuple):
    """Leaves whose moments share arrays: one leaf, or several, concatenated.

    Attributes:
      place: the number of this group among the leaves of the moments' tree; random bits
        of moments are a hash of it.
      numbers: the numbers of the leaves in the tree of parameters; random bits of
        parameters are a hash of them.
      params: the parameter of each leaf, float32 or bfloat16.
      grads: the gradient of each leaf, float32 or bfloat16, in its parameter's shape.
      mu: the stored first moment: float32, bfloat16 or int8 codes. It has the shape of
        its leaf; for several leaves it is flat, and not coded.
      nu: the stored second moment: float32, bfloat16 or uint8 codes, like mu.
      mu_exponents: uint8, the exponents of the blocks of codes; None if mu is not
        coded.
      nu_exponents: the same for nu.
    """

    place: int
    numbers: Sequence[int]
    params: Sequence[Any]
    grads: Sequence[Any]
    mu: Any
    nu: Any
    mu_exponents: Any = None
    nu_exponents: Any = None


class Stepped(NamedTuple):
    """A group after the step.

    Attributes:
      params: the new parameters.
      mu, nu, mu_exponents, nu_exponents: the new moments, stored as in `Group`.
    """

    params: list[Any]
    mu: Any
    nu: Any
    mu_exponents: Any = None
    nu_exponents: Any = None


class Scalars(NamedTuple):
    """The scalars of one step, each a float or a float32 scalar.

    The complements are passed separately: 1 - b1 is rounded once if b1 is a float, but
    twice if it is an array. Weights are 1 where the bias is not corrected. With
    nesterov, `look_ahead` is the weight of mu divided by its weight after one more
    step.
    """

    b1: ArrayLike
    one_minus_b1: ArrayLike
    b2: ArrayLike
    one_minus_b2: ArrayLike
    learning_rate: ArrayLike
    eps: ArrayLike
    eps_root: ArrayLike
    weight_decay: ArrayLike
    mu_weight: ArrayLike
    nu_weight: ArrayLike
    look_ahead: ArrayLike = 1.0


class Counts(NamedTuple):
    """The number of steps before this one, as int32 scalars.

    Attributes:
      moments: the count of `scale_by_moments`.
      params: the count of `round_to_params`.
    """

    moments: ArrayLike
    params: ArrayLike


class Seeds(NamedTuple):
    """The seeds of the random bits that round moments and parameters."""

    mu: int = 0
    nu: int = 0
    params: int = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a step, fixed when it is traced.

    Attributes:
      decays: whether `weight_decay * param` is added to the updates.
      rounding: how new bfloat16 parameters are rounded. "nearest" rounds the update to
        bfloat16 and adds it; "stochastic" rounds the sum as `round_to_params` does.
      seeds: the seeds of the random bits.
      nesterov: whether mu looks one step ahead.
    """

    decays: bool
    rounding: Literal["nearest", "stochastic"]
    seeds: Seeds
    nesterov: bool = False


def stored_in(group: Group) -> list[str]:
    """Return the names of a group's stored moments, in order.

    Args:
      group: the leaves.
    """
    names = ("mu", "nu", "mu_exponents", "nu_exponents")
    return [name for name in names if getattr(group, name) is not None]


def result_type(
    like: jax.Array, sources: Sequence[jax.Array], take: jax.Array
) -> jax.ShapeDtypeStruct:
    """Return the type of a result; in a shard_map it varies over its sources' axes.

    Args:
      like: an array of the shape and dtype of the result.
      sources: arrays that it is computed from.
      take: bool scalar, whether the step is taken.
    """
    if jax.typeof(like).sharding.mesh.empty:
        return jax.ShapeDtypeStruct(like.shape, like.dtype)
    # Sources of other shapes (exponents, leaves of a group) vary in the same way.
    wide = [x.astype(jnp.float32) for x in sources if x.shape == like.shape]
    return jax.eval_shape(
        lambda *xs: functools.reduce(jnp.add, xs).astype(like.dtype), take, *wide
    )
