"""Our stages among Optax's, and our optimizers inside Optax's wrappers.

First, one chain of both: each parameter has its own learning rate, and only one decays.
Then Adam in bfloat16, whose learning rate is cut. It compiles once; b2 stays 0.999.

Run `python examples/among_optax.py`. The noise has variance 0.25. It prints:

    one chain: loss 15.57 -> 0.255
    Adam at 0.3: loss 0.286, b2 0.999
    Adam at 0.03: loss 0.265, b2 0.999
"""

import jax
import jax.numpy as jnp
import optax

from adam_jax import adam, bias_correct, precondition, scale_by_lr, scale_by_moments

X = jax.random.normal(jax.random.key(0), (1024, 4))
Y = X @ jnp.arange(4.0) + 1 + 0.5 * jax.random.normal(jax.random.key(1), (1024,))
START = {"kernel": jnp.zeros(4), "bias": jnp.zeros(())}


def loss_fn(params, rows=slice(None)):
    return jnp.mean((X[rows] @ params["kernel"] + params["bias"] - Y[rows]) ** 2)


@jax.jit(static_argnames="tx")
def train(tx, params, state):
    def step(i, carry):
        params, state = carry
        rows = jax.random.randint(jax.random.key(i), (16,), 0, len(X))
        updates, state = tx.update(jax.grad(loss_fn)(params, rows), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 500, step, (params, state))


schedule = optax.warmup_cosine_decay_schedule(0, 0.03, 50, 500)
rates = {"scheduled": scale_by_lr(schedule), "constant": scale_by_lr(0.01)}
tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    scale_by_moments(b1=0.9, b2=0.99),
    bias_correct(),
    precondition(eps=1e-8),
    optax.masked(optax.add_decayed_weights(1e-3), {"kernel": True, "bias": False}),
    optax.multi_transform(rates, {"kernel": "scheduled", "bias": "constant"}),
)
params, _ = train(tx, START, tx.init(START))
print(f"one chain: loss {loss_fn(START):.2f} -> {loss_fn(params):.3f}")

params = optax.tree.cast(START, jnp.bfloat16)
tx = optax.inject_hyperparams(adam)(learning_rate=0.3)
state = tx.init(params)
compiled = train.lower(tx, params, state).compile()
for lr in (0.3, 0.03):
    state.hyperparams["learning_rate"] = jnp.asarray(lr, jnp.bfloat16)
    params, state = compiled(params, state)
    print(f"Adam at {lr}: loss {loss_fn(params):.3f}, b2 {state.hyperparams['b2']:.3f}")
assert jnp.isclose(state.hyperparams["b2"], 0.999) and loss_fn(params) < 0.28
