"""What tests of states from other frameworks share: the steps that are taken here."""

import jax
import numpy as np
import optax


def take_steps(tx, state, params, batches):
    """Return parameters and state after a step with each tree of gradients."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in batches:
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        params, state = step(params, state, grads)
    return params, state


def assert_close(found, expected, limit):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=limit, atol=limit),
        found,
        expected,
    )
