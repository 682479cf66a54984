"""From `Moments` to steps whose size is bounded: the learning rate is in the bound."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.hyperparams import Hyperparam, at, check_decay, check_non_negative, exact
from adam_jax.moments.accumulators import Accumulator, average
from adam_jax.moments.storage import Storage
from adam_jax.stages.division import emit
from adam_jax.stages.flow import Moments, expect_moments, expect_second
from adam_jax.stages.holding import hold


def bounded_precondition(
    learning_rate: Hyperparam,
    final_lr: Hyperparam = exact(0.1),
    gamma: Hyperparam = exact(1e-3),
    eps: Hyperparam = exact(1e-8),
) -> optax.GradientTransformation:
    """Clip each element's step size between two bounds that meet at `final_lr`.

        lower = final_lr * (1 - 1 / (gamma * t + 1))
        upper = final_lr * (1 + 1 / (gamma * t))
        updates = clip(learning_rate / (sqrt(nu) + eps), lower, upper) * mu

    The learning rate is inside, so a chain ends in `scale_by_lr(1.0)`.

    Args:
      learning_rate: >= 0; a number, a 0-d array or a schedule of the step count.
      final_lr: the step size that the bounds approach, >= 0, in units of the
        parameters over those of the gradient, as for SGD.
      gamma: how fast the bounds approach it, >= 0; with 0 they never bind.
      eps: added to the root of nu, >= 0, in units of the gradient.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if there is
        no second moment.

    Example: Adam's step size would be 0.1 / 0.01; at the first step, the upper bound
    for gamma = 1 is twice `final_lr`.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> bounded = bounded_precondition(0.1, final_lr=0.1, gamma=1.0)
      >>> tx = optax.chain(scale_by_moments(), bias_correct(), bounded)
      >>> updates, _ = tx.update(jnp.float32(0.01), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.4f}")
      0.0020

    Reference: Luo et al. 2019 (AdaBound), Algorithm 2.
    """
    rate = check_non_negative("learning_rate", learning_rate, half_precision=True)
    final_lr = check_non_negative("final_lr", final_lr)
    gamma = check_non_negative("gamma", gamma)
    eps = check_non_negative("eps", eps)

    def divide(moments: Any, params=None):
        m = expect_moments(moments, "bounded_precondition")
        past = m.count - 1

        def bound(mu, size):
            final = at(final_lr, past, size.dtype)
            progress = at(gamma, past, size.dtype) * jnp.asarray(m.count, size.dtype)
            lower = final * (progress / (progress + 1))
            upper = final * (1 + 1 / progress)
            return jnp.clip(size, lower, upper).astype(mu.dtype) * mu

        sizes = _step_sizes(m, rate, eps, "bounded_precondition")
        return emit(jax.tree.map(bound, m.mu, sizes), m.grads, params)

    return optax.stateless(divide)


def bound_by_average(
    learning_rate: Hyperparam,
    decay: Hyperparam = exact(0.9999),
    eps: Hyperparam = exact(1e-8),
    dtype: Storage = None,
) -> optax.GradientTransformation:
    """Bound each element's step size by the average of those so far.

        size = learning_rate / (sqrt(nu) + eps)
        average <- decay * average + (1 - decay) * size
        mu <- min(size, average) * mu

    This stands in for the division: the moments go on without nu. The learning rate is
    inside, so a chain ends in `scale_by_lr(1.0)`.

    Args:
      learning_rate: >= 0; a number, a 0-d array or a schedule of the step count.
      decay: decay rate of the average, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      dtype: how the average is stored, like `nu_dtype` in `scale_by_moments`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if there is
        no second moment, or if the state was made with another dtype.
      TypeError: at the first trace, for updates in place of `Moments`, or if the state
        belongs to another transformation.

    Example: the average starts at 0, so the first step is 1 - decay of Adam's.

      >>> from adam_jax import bias_correct, scale_by_lr, scale_by_moments
      >>> bounded = bound_by_average(1e-3, decay=0.9)
      >>> adam = scale_by_moments(), bias_correct()
      >>> tx = optax.chain(*adam, bounded, scale_by_lr(1.0))
      >>> updates, _ = tx.update(jnp.float32(5), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.000100

    Reference: Ding et al. 2019 (AdaMod), Algorithm 1.
    """
    rate = check_non_negative("learning_rate", learning_rate, half_precision=True)
    eps = check_non_negative("eps", eps)
    sizes_so_far = Accumulator(
        {"decay": check_decay("decay", decay)},
        average,
        measure=lambda size, mu, h: size,
        read=lambda new, old, size, weight, h: jnp.minimum(size, new),
        order=2,
    )

    def bound(m: Moments, held: Any) -> Any:
        mu = jax.tree.map(lambda mu, size: size.astype(mu.dtype) * mu, m.mu, held)
        return m._replace(mu=mu, nu=None, has_mu=False)

    return hold(
        "bound_by_average",
        sizes_so_far,
        bound,
        dtype,
        gather=lambda m: _step_sizes(m, rate, eps, "bound_by_average"),
        argument="nu_dtype",
    )


def _step_sizes(m: Moments, learning_rate: Any, eps: Any, stage: str) -> Any:
    """Return learning_rate / (sqrt(nu) + eps), and 0 where the denominator is 0."""
    expect_second(m, stage)
    past = m.count - 1

    def size(nu):
        rate = jnp.asarray(at(learning_rate, past, nu.dtype), nu.dtype)
        root = numerics.sqrt(nu) + at(eps, past, nu.dtype)
        return numerics.divide_or_zero(rate, root)

    return jax.tree.map(size, m.nu)
