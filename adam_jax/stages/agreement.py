"""Stages that compare signs, element by element: of moments, gradients, parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics, placement
from adam_jax.hyperparams import Hyperparam
from adam_jax.measures import map_leaves, mean
from adam_jax.stages.flow import expect_moments, expect_params, widen
from adam_jax.stages.updates import Mask, add_decayed_weights


def keep_agreeing() -> optax.GradientTransformation:
    """Step only where the first moment and the gradient have the same sign.

        agree = 1 where mu * g > 0, else 0
        mu <- mu * agree * n / (sum(agree) + 1)

    The sum is over a leaf, and n is its number of elements. (A complex mu agrees with g
    if the real part of its product with the conjugate of g is positive.)

    Raises:
      TypeError: at the first trace, for updates in place of `Moments`.

    Example: two of four elements agree, so they are scaled by 4 / 3.

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(scale_by_moments(0.5), keep_agreeing())
      >>> state = tx.init(jnp.zeros(4))
      >>> for grads in ([4.0, 4.0, 4.0, 4.0], [4.0, 4.0, -1.0, 0.0]):
      ...     moments, state = tx.update(jnp.array(grads), state)
      >>> print(moments.mu)
      [4. 4. 0. 0.]

    Reference: Liang et al. 2024 (cautious optimizers), Algorithm 2.
    """

    def keep(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "keep_agreeing")

        def keep_leaf(mu, grad):
            agree = _agreement(mu, grad) > 0
            one = 1 / max(placement.whole_size(mu), 1)
            share = mean(agree.astype(mu.real.dtype)) + one
            return jnp.where(agree, numerics.divide(mu, share), 0)

        mu = map_leaves(keep_leaf, m.mu, widen(m.grads, m.mu))
        return m._replace(mu=mu, has_mu=False)

    return optax.stateless(keep)


def take_sign_of_gradient() -> optax.GradientTransformation:
    """Give the first moment the sign of the gradient: `mu <- sign(g) * |mu|`.

    Raises:
      TypeError: at the first trace, for updates in place of `Moments`.

    Example: the moment is still positive when the gradient is not.

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(scale_by_moments(0.5), take_sign_of_gradient())
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (4.0, -1.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(moments.mu)
      -0.5

    Reference: Cao et al. 2024 (Grams), Algorithm 1.
    """

    def turn(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "take_sign_of_gradient")
        grads = widen(m.grads, m.mu)

        def turn_leaf(mu, grad):
            return jnp.sign(grad) * jnp.abs(mu).astype(grad.dtype)

        mu = jax.tree.map(turn_leaf, m.mu, grads)
        return m._replace(mu=mu, has_mu=False)

    return optax.stateless(turn)


def add_cautious_decay(
    weight_decay: Hyperparam = 0.0, mask: Mask = None
) -> optax.GradientTransformation:
    """Add `weight_decay * params` to the updates where both have the same sign.

    There, update and decay both move the parameter towards 0. A parameter whose update
    is 0 decays, too.

    Args:
      weight_decay: as in `add_decayed_weights`.
      mask: as in `add_decayed_weights`.

    Raises:
      ValueError: if weight_decay is out of range, if mask is not a prefix of params, or
        if update() is not given params.
      TypeError: if a leaf of mask is not a boolean, or if the state belongs to another
        transformation.

    Example: the second update moves its parameter away from 0.

      >>> tx, params = add_cautious_decay(0.1), jnp.array([5.0, 5.0])
      >>> updates, _ = tx.update(jnp.array([1.0, -1.0]), tx.init(params), params)
      >>> print(updates)
      [ 1.5 -1. ]

    Reference: Chen et al. 2025 (cautious weight decay), Algorithm 1.
    """
    decay = add_decayed_weights(weight_decay, mask)

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "add_cautious_decay")
        agreeing = jax.tree.map(
            lambda u, p: jnp.where(_agreement(u, p) >= 0, p, jnp.zeros_like(p)),
            updates,
            params,
        )
        return decay.update(updates, state, agreeing)

    return optax.GradientTransformation(decay.init, update_fn)


def _agreement(x: Any, y: Any) -> jax.Array:
    """Return the sign of the real part of `x` times the conjugate of `y`.

    The product itself may leave the range.
    """
    x, y = jnp.sign(x), jnp.sign(y)
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return x.real * y.real + x.imag * y.imag
    return x * y.astype(x.dtype)
