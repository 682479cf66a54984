"""The five problems that come along: data, a model and its loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from adam_jax.experiments.config import TaskConfig
from adam_jax.experiments.data import Examples, load_dataset
from adam_jax.experiments.metrics import ACCURACY, LOSS
from adam_jax.experiments.models import build_model
from adam_jax.experiments.problems import TEST_SEED, Problem
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


def build_problem(config: TaskConfig) -> Problem:
    """Load the data of a config, and build its model.

    Raises:
      ValueError: if the model does not go with the data, or the data refuses the
        config.
    """
    fitting = FITTING[config.problem]
    if config.model.name not in fitting:
        raise ValueError(
            f"model.name is {config.model.name!r}, but problem = {config.problem!r} "
            f"goes with {' or '.join(map(repr, fitting))}"
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

    def measure(params: Any, examples: Examples, key: Array) -> dict[str, Array]:
        model: Any = nnx.merge(graphdef, params)
        match config.model.name:
            case "vae":
                made = model(examples.inputs, key)
                return {LOSS: negative_elbo(examples.inputs, made).mean()}
            case "linear":
                return compare_signs(model(examples.inputs)[:, 0], examples.labels)
        logits = model(examples.inputs)
        return compare_classes(logits, examples.labels, config.label_smoothing)

    def metrics(params: Any, examples: Examples) -> dict[str, Array]:
        return measure(params, examples, jax.random.key(TEST_SEED))

    def loss(params: Any, examples: Examples, key: Array) -> Array:
        if share := config.model.dropout:
            examples = examples._replace(inputs=drop(examples.inputs, share, key))
        return measure(params, examples, key)[LOSS]

    baselines = {}
    if config.model.name != "vae":
        labels = np.asarray(dataset.test.labels)
        commonest = np.unique(labels, return_counts=True)[1].max()
        baselines[ACCURACY] = float(commonest / labels.size)
    return Problem(init, loss, dataset.train, dataset.test, metrics, baselines)


def compare_classes(logits: Array, labels: Array, smoothing: float) -> dict[str, Array]:
    """Give the mean cross-entropy in nats, and the share of labels found."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    found = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    return {LOSS: loss, ACCURACY: found}


def compare_signs(outputs: Array, labels: Array) -> dict[str, Array]:
    """Give half the mean squared error, and the share of labels whose sign is found."""
    loss = optax.l2_loss(outputs, labels.astype(outputs.dtype)).mean()
    found = (jnp.sign(outputs) == labels).mean(dtype=jnp.float32)
    return {LOSS: loss, ACCURACY: found}


def drop(inputs: Array, share: float, key: Array) -> Array:
    """Set a share of the inputs to zero, and scale the others to the same mean."""
    kept = jax.random.bernoulli(key, 1 - share, inputs.shape)
    return jnp.where(kept, inputs / (1 - share), 0)
