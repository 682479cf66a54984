"""Port a paper: AdamS (Zhang et al. 2025), which is not in the table, in three steps.

    mu <- b1 * mu + (1 - b1) * g;  nu = b2 * mu_before^2 + (1 - b2) * g^2
    params <- params - learning_rate * mu / (sqrt(nu) + eps)

The chain is held against the rule at every step. It prints:
    state of 1,024 parameters: 2055 numbers for adamw, 1026 for adams
"""

import jax.numpy as jnp
import optax

from adam_jax import Accumulator, adamw, assert_follows, check_decay, hold, scale_by_lr


# 1. The paper's rule, as a loop over the gradients of one parameter.
def rule(grads, param, learning_rate=1e-3, b1=0.9, b2=0.95, eps=1e-8):
    mu = 0.0
    for g in grads:
        before, mu = mu, b1 * mu + (1 - b1) * g
        yield -learning_rate * mu / ((b2 * before**2 + (1 - b2) * g**2) ** 0.5 + eps)


# 2. The chain: a moment that is read against the one before.
def adams(learning_rate, b1=0.9, b2=0.95, eps=1e-8, mu_dtype=None):
    momentum = Accumulator(
        {"decay": b1, "b2": check_decay("b2", b2), "eps": eps},
        add=lambda mu, g, h: h.decay * mu + (1 - h.decay) * g,
        read=lambda mu, before, g, weight, h: (
            mu / (jnp.sqrt(h.b2 * before**2 + (1 - h.b2) * g**2) + h.eps)
        ),
    )
    stage = hold("adams", momentum, lambda updates, held: held, mu_dtype)
    return optax.chain(stage, scale_by_lr(learning_rate))


# 3. The test; and what its state takes beside AdamW's.
assert_follows(adams(1e-3), rule)
sizes = [optax.tree.size(x(1e-3).init(jnp.zeros(1024))) for x in (adamw, adams)]
print("state of 1,024 parameters: {} numbers for adamw, {} for adams".format(*sizes))
