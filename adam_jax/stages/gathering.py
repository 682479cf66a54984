"""The first stage: from gradients to `Moments`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_leaves_with_path
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import Hyperparam, exact, is_same
from adam_jax.moments.accumulators import Accumulator, as_accumulator
from adam_jax.moments.formats import Stored
from adam_jax.moments.moment import Gathered, Moment
from adam_jax.moments.starts import resumed
from adam_jax.moments.storage import Storage, as_format
from adam_jax.placement import cut_at
from adam_jax.recipes.notes import note_averages, note_moments
from adam_jax.recipes.recipe import Origin
from adam_jax.stages.flow import (
    Moments,
    expect_state,
    expect_updates,
    scalar_dtype,
    widen,
)
from adam_jax.tracing import map_leaves


class MomentsState(NamedTuple):
    """State of `scale_by_moments`.

    `mu` and `nu` are kept as they are stored: 8-bit moments are codes here, also for
    `optax.tree.get(state, "mu")`. `load_moments` returns the moments themselves.

    Attributes:
      count: int32 scalar, the steps taken; it stops at the largest int32.
      mu: the first moment as it is stored, a pytree like the parameters, or None.
      nu: the second moment, real, or None.
      weights: shape (2, 2). Column 0 holds the weights that mu and nu have seen,
        column 1 their rounding errors so far. They make the correction right for decays
        that change. Constant decays keep them too, so that the structure of the state
        does not depend on the hyperparameters.
      mu_format: the reader of mu, with what its format keeps beside it, as in `Stored`;
        None without mu.
      nu_format: the same for nu.
    """

    count: ArrayLike
    mu: Any
    nu: Any
    weights: jax.Array
    mu_format: Any = None
    nu_format: Any = None


def scale_by_moments(
    b1: Hyperparam | Accumulator | None = exact(0.9),
    b2: Hyperparam | Accumulator | None = exact(0.999),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Turn gradients into their running moments.

        mu <- b1 * mu + (1 - b1) * g
        nu <- b2 * nu + (1 - b2) * |g|^2

    Args:
      b1: decay of the first moment, in [0, 1), or an `Accumulator`; None keeps no
        first moment and passes on g itself (RMSProp).
      b2: the same for the second moment; None keeps none (momentum).
      mu_dtype: how mu is stored: a dtype, a `Format`, or the name of one ("float32",
        "bfloat16", "8bit"); None means the parameters' dtype, float32 or wider.
      nu_dtype: the same for nu, which is real.

    Returns:
      A transformation from gradients to `Moments`, with a `MomentsState`, which holds
      the moments as they are stored. `load_moments` reads them.

    Raises:
      ValueError: if a decay is outside [0, 1), or a half-precision array; at the first
        trace, if the state was made with another mu_dtype or nu_dtype.
      TypeError: if a leaf is neither floating-point nor complex; if the state belongs
        to another transformation.

    Example: after five steps an average has seen the weight 1 - 0.9^5.

      >>> import jax.numpy as jnp
      >>> tx = scale_by_moments(b1=0.9)
      >>> state = tx.init(jnp.zeros(()))
      >>> for _ in range(5):
      ...     moments, state = tx.update(jnp.ones(()), state)
      >>> print(f"{moments.mu:.5f} {moments.mu_weight:.5f}")
      0.40951 0.40951

    Reference: Kingma & Ba 2014, Algorithm 1, lines 7 and 8.

    Differs from Optax: it bounds finite gradients to 2^60 (float32), so that |g|^2
    cannot overflow, and keeps a real nu for complex parameters.
    """
    first, second = as_accumulator("b1", b1), as_accumulator("b2", b2)
    averages = plain = one_rate = False
    if first and second:
        averages = first.averages_values and second.averages_values
        plain = all(a.is_ema and a.read is None for a in (first, second))
        decays = (a.hyperparams.get("decay") for a in (first, second))
        one_rate = is_same(*decays)
    mu_format = as_format("mu_dtype", mu_dtype)
    nu_format = as_format("nu_dtype", nu_dtype)
    mu_moment = first and Moment(first, mu_format, 1, "mu", "mu_dtype")
    nu_moment = second and Moment(second, nu_format, 2, "nu", "nu_dtype")

    def init_fn(params):
        check_inexact(params, "params")
        mu, nu = (m.init(params) if m else _NONE for m in (mu_moment, nu_moment))
        weights = jnp.zeros([2, 2], scalar_dtype(params))
        if old := resumed():
            seen = [
                m.weigh_past(old.count, weights.dtype) if m else jnp.array([1, 0])
                for m in (mu_moment, nu_moment)
            ]
            weights = jnp.stack(seen).astype(weights.dtype)
        note_averages(weights, averages)
        return _state(jnp.zeros([], jnp.int32), mu, nu, weights)

    def update_fn(updates, state, params=None):
        del params
        expect_updates(updates, "scale_by_moments")
        expect_state(state, MomentsState, "scale_by_moments")
        check_inexact(updates, "grads")
        past, weights = state.count, state.weights
        old_mu = Stored(state.mu, state.mu_format)
        old_nu = Stored(state.nu, state.nu_format)
        mu_before = _read(mu_moment, "b1", old_mu, updates)
        nu_before = _read(nu_moment, "b2", old_nu, updates)
        grads = widen(updates, mu_before, nu_before)
        if nu_moment:
            grads = map_leaves(numerics.bound, grads)
        mu = nu = None
        if mu_moment:
            mu = mu_moment.step(old_mu, mu_before, grads, past, weights[0])
        if nu_moment:
            foreseen = mu.moment if mu else grads
            nu = nu_moment.step(old_nu, nu_before, grads, past, weights[1], foreseen)
        unit = jnp.array([1, 0], weights.dtype)
        count = optax.safe_increment(past)
        if mu_moment and nu_moment and mu and nu:
            cuts = [cut_at(path) for path, _ in tree_leaves_with_path(updates)]
            note_moments(Origin(mu_moment, nu_moment, state, updates, mu, nu, cuts))
        moments: Any = Moments(
            count,
            updates,
            mu.flows if mu else grads,
            nu.flows if nu else None,
            mu.seen if mu else unit[0],
            nu.seen if nu else unit[0],
            nu_moment and nu_moment.decay(past, weights.dtype),
            plain=plain and not nu_format.flows_stored,
            one_rate=one_rate,
            has_mu=mu is not None,
        )
        seen = jnp.stack([m.weight if m else unit for m in (mu, nu)])
        return moments, _state(count, _stored(mu), _stored(nu), seen)

    return optax.GradientTransformation(init_fn, update_fn)


_NONE = Stored(None, None)


def _stored(gathered: Gathered | None) -> Stored:
    return gathered.stored if gathered else _NONE


def _state(count: ArrayLike, mu: Stored, nu: Stored, weights: jax.Array):
    return MomentsState(count, mu.values, nu.values, weights, mu.format, nu.format)


def _read(moment: Moment | None, argument: str, stored: Stored, grads: Any) -> Any:
    """Return the moment that a state holds, or None if it has none.

    Raises:
      ValueError: if only one of optimizer and state has this moment.
    """
    if (moment is None) != (stored.values is None):
        which = {"b1": "first", "b2": "second"}[argument]
        has, lacks = ("optimizer", "state") if moment else ("state", "optimizer")
        raise ValueError(
            f"the {has} has a {which} moment, the {lacks} has none ({argument}=None): "
            "the state is another optimizer's. Start from tx.init(params)."
        )
    return moment and moment.read(stored, grads)
