"""A Flax linen model in bfloat16, trained with `train_state.TrainState`.

The network learns which points of a square lie within a circle. Its parameters are
bfloat16 and stay so; the moments are float32 by default. Only the kernels decay.

Run `python examples/flax_linen.py`. It prints:

    accuracy on new points: 0.996
    parameters in bfloat16, moments in float32
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

import adam_jax


class Classifier(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, param_dtype=jnp.bfloat16)(x))
        return nn.Dense(1, param_dtype=jnp.bfloat16)(x)[:, 0]


@jax.jit
def train_step(state, x, inside):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.sigmoid_binary_cross_entropy(logits, inside).mean()

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


def sample(seed):
    x = jax.random.uniform(jax.random.key(seed), (256, 2), minval=-1, maxval=1)
    return x, jnp.linalg.norm(x, axis=1) < 0.8


model = Classifier(width=32)
params = model.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
kernels = jax.tree.map(lambda p: p.ndim > 1, params)
tx = adam_jax.adamw(1e-2, weight_decay=1e-2, mask=kernels)
state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
for seed in range(300):
    state = train_step(state, *sample(seed))

x, inside = sample(1000)
accuracy = jnp.mean((state.apply_fn({"params": state.params}, x) > 0) == inside)
nu = optax.tree.get(state.opt_state, "nu")
dtypes = [optax.tree.dtype(tree) for tree in (state.params, nu)]
print(f"accuracy on new points: {accuracy:.3f}")
print(f"parameters in {dtypes[0]}, moments in {dtypes[1]}")
assert accuracy > 0.95 and dtypes == [jnp.bfloat16, jnp.float32]
