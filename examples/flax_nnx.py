"""A Flax NNX model, trained with `nnx.Optimizer`, which takes our chains as they are.

The network learns which points of a square lie within a circle. Afterwards we read the
second moment from the optimizer's state by its name. Its root is the recent size of the
gradients.

Run `python examples/flax_nnx.py`. It prints:

    loss 0.745 -> 0.097, accuracy on new points 0.996
    size of the last layer's gradients: 6.7e-03
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import adam_jax


class Classifier(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, width, rngs=rngs)
        self.out = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))[:, 0]


@nnx.jit
def train_step(model, optimizer, x, inside):
    def loss_fn(model):
        return optax.sigmoid_binary_cross_entropy(model(x), inside).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def sample(seed):
    x = jax.random.uniform(jax.random.key(seed), (256, 2), minval=-1, maxval=1)
    return x, jnp.linalg.norm(x, axis=1) < 0.8


model = Classifier(32, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, adam_jax.adam(1e-2), wrt=nnx.Param)
losses = [train_step(model, optimizer, *sample(seed)) for seed in range(300)]

x, inside = sample(1000)
accuracy = jnp.mean((model(x) > 0) == inside)
nu = optax.tree.get(optimizer.opt_state, "nu")
size = jnp.sqrt(nu["out"]["kernel"][...].mean())
history = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
print(f"{history}, accuracy on new points {accuracy:.3f}")
print(f"size of the last layer's gradients: {size:.1e}")
assert accuracy > 0.95 and losses[-1] < 0.2 * losses[0]
