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
from adam_jax.experiments.vae import negative_elbo

# Which models go with which data.
IMAGE_MODELS = ("logistic", "mlp", "cnn", "vae")
FITTING = {
    "digits": IMAGE_MODELS,
    "mnist": IMAGE_MODELS,
    "words": ("logistic", "mlp"),
    "topics": ("transformer",),
    "wilson": ("linear",),
}
MOST_PARAMETERS = 10**8  # Adam holds four arrays of them
TEST_SEED = 0  # of the noise in a test: losses compare on the same draws only


class Problem(NamedTuple):
    """Hold what an optimizer is tried on. The functions can be jitted and vmapped.

    Attributes:
      dataset: Examples to learn from, and to be tested on.
      init: Draw the parameters from a key.
      loss: Map (params, examples, key) to the loss that is trained, a scalar; the
        key is for what is random in it.
      test: Map (params, examples) to the loss and the accuracy that are reported; an
        accuracy is from 0 to 1, or NaN where there are no labels to be found.
    """

    dataset: Dataset
    init: Callable[[Array], Any]
    loss: Callable[[Any, Examples, Array], Array]
    test: Callable[[Any, Examples], tuple[Array, Array]]


def build_problem(config: TaskConfig) -> Problem:
    """Load the data of a config, and build its model.

    Raises:
      ValueError: if the model does not go with the data, or the data refuses the
        config.
    """
    fitting = FITTING[config.data]
    if config.model.name not in fitting:
        raise ValueError(
            f"model.name is {config.model.name!r}, but data = {config.data!r} goes "
            f"with {' or '.join(map(repr, fitting))}"
        )
    dataset = load_dataset(config)
    classes = dataset.classes

    def build(key: Array) -> nnx.Module:
        return build_model(config.model, dataset.train, classes, key)

    shapes = nnx.eval_shape(build, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"model.widths is {list(config.model.widths)}, which makes {parameters:,} "
            f"parameters, but there must be at most {MOST_PARAMETERS:,}"
        )
    graphdef = nnx.graphdef(shapes)

    def init(key: Array) -> Any:
        return nnx.to_pure_dict(nnx.state(build(key)))

    def measure(params: Any, examples: Examples, key: Array) -> tuple[Array, Array]:
        model: Any = nnx.merge(graphdef, params)
        match config.model.name:
            case "vae":
                made = model(examples.inputs, key)
                return negative_elbo(examples.inputs, made).mean(), jnp.array(jnp.nan)
            case "linear":
                return compare_signs(model(examples.inputs)[:, 0], examples.labels)
        logits = model(examples.inputs)
        return compare_classes(logits, examples.labels, config.label_smoothing)

    def test(params: Any, examples: Examples) -> tuple[Array, Array]:
        return measure(params, examples, jax.random.key(TEST_SEED))

    def loss(params: Any, examples: Examples, key: Array) -> Array:
        if share := config.model.dropout:
            examples = examples._replace(inputs=drop(examples.inputs, share, key))
        unlike, _ = measure(params, examples, key)
        if config.penalty:
            unlike += config.penalty / 2 * optax.tree.norm(params, squared=True)
        return unlike

    return Problem(dataset, init, loss, test)


def compare_classes(
    logits: Array, labels: Array, smoothing: float
) -> tuple[Array, Array]:
    """Give the mean cross-entropy in nats, and the share of labels found."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (logits.argmax(-1) == labels).mean(dtype=jnp.float32)


def compare_signs(outputs: Array, labels: Array) -> tuple[Array, Array]:
    """Give half the mean squared error, and the share of labels whose sign is found."""
    loss = optax.l2_loss(outputs, labels.astype(outputs.dtype)).mean()
    return loss, (jnp.sign(outputs) == labels).mean(dtype=jnp.float32)


def drop(inputs: Array, share: float, key: Array) -> Array:
    """Set a share of the inputs to zero, and scale the others to the same mean."""
    kept = jax.random.bernoulli(key, 1 - share, inputs.shape)
    return jnp.where(kept, inputs / (1 - share), 0)
