"""Adam in plain JAX: a chain of three stages, one for each part of the algorithm.

Together they are `adam_jax.adam`. Without the second stage it is the simplified Adam.
Its first step is (1 - b1) / sqrt(1 - b2) = 3.16 times the learning rate, and the
difference fades as the moments fill. The noise alone makes a loss of 0.0048.

Run `python examples/three_stages.py`. It prints:

    three stages   first step 1.00 x lr, loss 6.01 -> 0.0048
    adam_jax.adam  first step 1.00 x lr, loss 6.01 -> 0.0048
    two stages     first step 3.16 x lr, loss 6.01 -> 0.0048
"""

import jax
import jax.numpy as jnp
import optax

from adam_jax import adam, bias_correct, scale_by_lr, scale_by_moments

LR = 1e-2
KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(KEYS[0], (128, 8))
NOISE = 0.1 * jax.random.normal(KEYS[2], (128,))
Y = X @ jax.random.normal(KEYS[1], (8,)) + NOISE


def loss_fn(params):
    return 0.5 * jnp.mean((X @ params["w"] - Y) ** 2)


def train(name, tx):
    @jax.jit
    def step(params, state):
        grads = jax.grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    start = {"w": jnp.zeros(8)}
    params, state, updates = step(start, tx.init(start))
    first = jnp.abs(updates["w"]).max() / LR
    for _ in range(999):
        params, state, _ = step(params, state)
    losses = f"loss {loss_fn(start):.2f} -> {loss_fn(params):.4f}"
    print(f"{name:<14} first step {first:.2f} x lr, {losses}")
    return params["w"], first


three = optax.chain(scale_by_moments(b1=0.9, b2=0.999), bias_correct(), scale_by_lr(LR))
two = optax.chain(scale_by_moments(b1=0.9, b2=0.999), scale_by_lr(LR))

w_three, first_three = train("three stages", three)
w_named, _ = train("adam_jax.adam", adam(LR))
_, first_two = train("two stages", two)
assert jnp.allclose(w_three, w_named, rtol=1e-6)
assert jnp.allclose(jnp.array([first_three, first_two]), jnp.array([1, 10**0.5]))
