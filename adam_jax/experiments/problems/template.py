"""A problem of one's own: two spirals, told apart by a small network.

It trains as it is. Put your data and your model in their place:

    adam-jax train --problem THIS_FILE
    adam-jax sweep --config which_optimizer --problem THIS_FILE
    adam-jax report runs/which_optimizer

What `make` takes is set by options: --arguments.width 64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from adam_jax.experiments import nnx_problem


def read_data(examples, seed):
    """Make points on two spirals, and the number of the spiral that each is on."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, examples)
    turn = 3 * np.sqrt(rng.random(examples))
    angle = turn * np.pi + labels * np.pi
    points = turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return {"points": np.float32(points), "labels": np.int32(labels)}


class Network(nnx.Module):
    """Tell spirals apart by two hidden layers."""

    def __init__(self, width, rngs):
        """Draw the parameters."""
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, points):
        """Give the logits of both spirals."""
        hidden = jax.nn.relu(self.second(jax.nn.relu(self.first(points))))
        return self.last(hidden)


def loss(model, batch, key):
    """Give the loss that is trained: a mean over the batch; the key is for noise."""
    logits = model(batch["points"])
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return each.mean()


def metrics(model, batch):
    """Give what is reported of the test examples; an accuracy is shown in percent."""
    found = model(batch["points"]).argmax(-1) == batch["labels"]
    return {"accuracy": jnp.mean(found)}


def make(width: int = 32):
    """Give the problem. Without Flax, see adam_jax.experiments.Problem.

    `train` and `test` may also be what gives batches, such as a grain.DataLoader.
    """
    return nnx_problem(
        build=lambda key: Network(width, nnx.Rngs(key)),
        loss=loss,
        train=read_data(2000, seed=0),
        test=read_data(500, seed=1),  # left out, a fifth of `train` is kept for it
        metrics=metrics,
    )
