"""What every kernel takes and returns: leaves, scalars, counts and options."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from typing_extensions import TypeAliasType

from adam_jax import numerics, randomness
from adam_jax.native import calls


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
      start: uint32 scalar, if this is a piece of a leaf: the position of its first
        element there.
      whole: the shape of that leaf; None if this is no piece.
    """

    place: int
    numbers: Sequence[int]
    params: Sequence[Any]
    grads: Sequence[Any]
    mu: Any
    nu: Any
    mu_exponents: Any = None
    nu_exponents: Any = None
    start: Any = None
    whole: tuple[int, ...] | None = None


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


class Asked(NamedTuple):
    """Which sums a kernel is asked for.

    Attributes:
      wanted: bool scalar, whether any are; else they are 0.
      large: for each leaf, a float32 scalar: updates that are not smaller count as "at
        bound".
    """

    wanted: ArrayLike
    large: Sequence[ArrayLike]


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


class Factors(NamedTuple):
    """The scalars of one step as the kernels in Pallas take them.

    They multiply wherever they can, as a division takes longer.
    """

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any
    look_ahead: Any
    nu: Any
    eps_root: Any
    eps: Any
    quotient: Any
    param: Any


def _stack_factors(scalars: Scalars) -> jax.Array:
    """Return the `Factors` of a step, a float32 vector.

    Args:
      scalars: the hyperparameters and weights of this step.
    """
    s: Any = scalars
    factors = Factors(
        s.b1,
        s.one_minus_b1,
        s.b2,
        s.one_minus_b2,
        look_ahead=s.b1 * s.look_ahead,
        nu=1 / s.nu_weight,
        eps_root=s.eps_root,
        eps=s.eps,
        quotient=-s.learning_rate / s.mu_weight,
        param=-s.learning_rate * s.weight_decay,
    )
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in factors])


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


def stand_in_for_sums(arrays: Sequence[jax.Array]) -> jax.Array:
    """Return an array that in a shard_map varies as the `SUMS` over a leaf do.

    Args:
      arrays: all that the sums depend on.
    """
    read = [jnp.sum(x.astype(jnp.float32)) for x in arrays]
    return sum(read, jnp.zeros(len(calls.SUMS), jnp.float32))


def lengths(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the lengths of the last two axes of a leaf, at least one each.

    Args:
      shape: of the leaf.
    """
    rows, columns = (1, 1, *shape)[-2:]
    return rows, columns


def count_blocks(group: Group) -> int | None:
    """Return the number of blocks in a leaf's last axis; None without a single number.

    Args:
      group: the leaf.
    """
    exponents = [x for x in (group.mu_exponents, group.nu_exponents) if x is not None]
    alike = len({x.shape for x in exponents}) == 1
    return exponents[0].shape[-1] if alike else None


Leading = TypeAliasType("Leading", tuple[jax.Array, jax.Array, jax.Array])
"""The vectors that come before a leaf's arrays, as `step_alone` gives them."""


def step_alone(
    groups: Sequence[Group],
    scalars: Scalars,
    counts: Counts,
    options: Options,
    take: ArrayLike,
    step_leaf: Callable[[Any, Any, Any], dict[str, jax.Array]],
) -> list[Stepped]:
    """Step leaves that share no arrays, one by one, as the kernels in Pallas do.

    Args:
      groups: the leaves.
      scalars: as in `step` of a kernel.
      counts: as in `step` of a kernel.
      options: as in `step` of a kernel.
      take: as in `step` of a kernel.
      step_leaf: (leading, arrays, whole) -> the arrays after the step, but the
        gradient. `leading` are three vectors for `unpack`: the `Factors`, float32;
        int32s of shape (3,), the same for all leaves: the two counts, and whether the
        step is taken; and int32s of shape (3,) that are known when this is traced: the
        bits of what `hash_words` returns for the words of mu, nu and the parameter but
        their counts. For a piece they are four: the last is where it starts. `arrays`
        is a dict by name; the gradient comes first. `whole` is that of the `Group`.
    """
    seeds, factors = options.seeds, _stack_factors(scalars)
    shared = jnp.stack([jnp.asarray(x, jnp.int32) for x in (*counts, take)])
    stepped = []
    for group in groups:
        [grad], [param], [number] = group.grads, group.params, group.numbers
        arrays = {"grad": grad, "param": param}
        arrays |= {name: getattr(group, name) for name in stored_in(group)}
        words = [  # as in formats.LeafNoise and round_to_params
            (seeds.mu, 0, group.place),
            (seeds.nu, 0, group.place),
            (seeds.params, number),
        ]
        own = np.array([randomness.hash_words(known) for known in words], np.uint32)
        own = jnp.asarray(own.view(np.int32))
        if group.start is not None:
            own = jnp.append(own, lax.bitcast_convert_type(group.start, jnp.int32))
        made = step_leaf((factors, shared, own), arrays, group.whole)
        stepped.append(Stepped([made.pop("param")], **made))
    return stepped


def unpack(factors: Any, shared: Any, own: Any) -> tuple[Any, list[Any], Any]:
    """Return what a kernel reads of its scalars.

    Args:
      factors: the first of the leading arrays of `step_alone`.
      shared: the second one.
      own: the third one.

    Returns:
      The `Factors`; the words of mu, nu and the parameter, for `hash_index`, which
      count positions from the start of a piece; and whether the step is taken.
    """
    moments, params, take = (shared[i] for i in range(3))
    words = [
        randomness.hash_words([count.astype(jnp.uint32)], own[i].astype(jnp.uint32))
        for i, count in enumerate((moments, moments, params))
    ]
    if own.shape[0] > len(words):
        words = [word + own[len(words)].astype(jnp.uint32) for word in words]
    return Factors(*(factors[i] for i in range(len(Factors._fields)))), words, take != 0


def land(
    param: jax.Array,
    update: jax.Array,
    dtype: Any,
    options: Options,
    noise: Callable[[], jax.Array],
) -> jax.Array:
    """Return a parameter after the step, which only its own dtype has to round.

    Args:
      param: float32.
      update: float32, what is added to it.
      dtype: of the parameter as it is stored.
      options: the options of the step.
      noise: returns random uint32s, if they are needed.
    """
    if dtype != jnp.bfloat16:
        return param + update
    if options.rounding == "nearest":
        return param + update.astype(jnp.bfloat16).astype(jnp.float32)
    chosen = numerics.round_to_bfloat16(param + update, noise())
    return param + (chosen.astype(jnp.float32) - param)
