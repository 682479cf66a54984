"""Adam at work: how far each parameter moves, and how sure its gradient is."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from adam_jax import load_moments

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def magnitude_quantiles(tree: optax.Params, grads: optax.Updates) -> dict[str, Array]:
    """Give the QUANTILES of |x| over a tree, where the gradient is not zero.

    It is zero for pixels that are dark in a batch and for units that do not fire.
    """
    values, _ = ravel_pytree(tree)
    grad, _ = ravel_pytree(grads)
    touched = jnp.where(grad != 0, jnp.abs(values), jnp.nan)
    quantiles = jnp.nanquantile(touched, jnp.asarray(list(QUANTILES.values())))
    return dict(zip(QUANTILES, quantiles, strict=True))


def signal_to_noise(opt_state: Any) -> optax.Params | None:
    """Give |mu_hat| / sqrt(nu_hat), or None if the optimizer lacks a moment."""
    weights = optax.tree.get(opt_state, "weights")
    if weights is None:
        return None
    mu, nu = load_moments(opt_state)
    if mu is None or nu is None:
        return None
    mu_weight, nu_weight = weights[:, 0]

    def ratio(mu: Array, nu: Array) -> Array:
        root = jnp.sqrt(nu / nu_weight)
        return jnp.where(root > 0, jnp.abs(mu / mu_weight) / root, 0.0)

    return jax.tree.map(ratio, mu, nu)
