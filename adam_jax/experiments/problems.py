"""What is trained: data, a model and its loss, as pure functions of a key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from adam_jax.experiments.config import TaskConfig
from adam_jax.experiments.data import Dataset, Examples, load_dataset
from adam_jax.experiments.models import build_model


class Problem(NamedTuple):
    """Hold what an optimizer is tried on. The functions can be jitted and vmapped.

    Attributes:
      dataset: Examples to learn from, and to be tested on.
      init: Draw the parameters from a key.
      loss: Map (params, examples, key) to the loss that is trained, a scalar; the
        key is for what is random in it.
      test: Map (params, examples) to the loss and the accuracy, from 0 to 1, that are
        reported.
    """

    dataset: Dataset
    init: Callable[[Array], Any]
    loss: Callable[[Any, Examples, Array], Array]
    test: Callable[[Any, Examples], tuple[Array, Array]]


def build_problem(config: TaskConfig) -> Problem:
    """Load the data of a config, and build its model.

    Raises:
      ValueError: if the data or the model refuses the config.
    """
    dataset = load_dataset(config)
    classes = dataset.classes

    def build(key: Array) -> nnx.Module:
        return build_model(config.model, dataset.train, classes, key)

    graphdef = nnx.graphdef(nnx.eval_shape(build, jax.random.key(0)))

    def init(key: Array) -> Any:
        return nnx.to_pure_dict(nnx.state(build(key)))

    def test(params: Any, examples: Examples) -> tuple[Array, Array]:
        logits = nnx.merge(graphdef, params)(examples.inputs)
        targets = jax.nn.one_hot(examples.labels, logits.shape[-1])
        targets = optax.smooth_labels(targets, config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        accuracy = (logits.argmax(-1) == examples.labels).mean(dtype=jnp.float32)
        return loss, accuracy

    def loss(params: Any, examples: Examples, _key: Array) -> Array:
        return test(params, examples)[0]

    return Problem(dataset, init, loss, test)
