"""The five problems that come along: data, a model and its loss."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from pydantic import Field

from adam_jax.experiments.metrics import ACCURACY, LOSS
from adam_jax.experiments.problems.data import (
    Dataset,
    Examples,
    split_classes,
    split_topics,
    split_wilson,
)
from adam_jax.experiments.problems.models import build_model
from adam_jax.experiments.problems.problem import Problem, nnx_problem
from adam_jax.experiments.problems.vae import negative_elbo
from adam_jax.experiments.settings.config import Share, require

MOST_PARAMETERS = 10**8  # Adam holds four arrays of them
# What an argument may be; what is larger is a mistake, and would only fill the memory.
Width = Annotated[int, Field(gt=0, le=65_536)]
Widths = Annotated[tuple[Width, ...], Field(max_length=64)]
TestShare = Annotated[float, Field(gt=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16"]


def classify(
    data: str,
    /,
    *,
    model: Literal["logistic", "mlp", "cnn", "vae"] = "mlp",
    widths: Widths = (128, 64),
    latent: Width = 20,
    dropout: Share = 0.0,
    hidden_bias: Finite = 0.0,
    label_smoothing: Share = 0.1,
    param_dtype: Dtype = "float32",
    test_share: TestShare = 0.2,
) -> Problem:
    """Make digits, mnist or words: classes are told apart, or images compressed.

    Args:
      data: digits, mnist or words.
      model: A dense network (mlp) or one without hidden layers (logistic); for digits
        and mnist also a convolutional one that halves the image in each layer (cnn), or
        a variational autoencoder (vae).
      widths: Units (mlp), channels (cnn), or units of the encoder, of which the decoder
        has the reverse (vae).
      latent: Dimensions of the code of the vae.
      dropout: Share of the inputs of mlp, cnn and logistic that is set to zero in
        training; the rest grows by as much.
      hidden_bias: Bias with which the hidden layers of mlp and cnn start.
      label_smoothing: Share of each target that is spread over all classes.
      param_dtype: In which the parameters are kept; the arithmetic is float32.
      test_share: Share of the data kept for testing: the same whatever the seed.
    """
    is_vae, fitting = model == "vae", data != "words" or model in ("logistic", "mlp")
    require(fitting, "arguments.model", model, f"logistic or mlp for {data}")
    require(not (is_vae and dropout), "arguments.dropout", dropout, "0 for a vae")
    dataset = split_classes(data, test_share)
    options = {"widths": widths, "latent": latent, "hidden_bias": hidden_bias}
    build = _plan(model, dataset, **options, param_dtype=param_dtype)
    if is_vae:
        return nnx_problem(
            build, mean_elbo, *dataset, loss_name="negative ELBO in nats"
        )
    measure = partial(compare_classes, smoothing=label_smoothing)
    return _make_problem(build, dataset, measure, dropout)


digits = partial(classify, "digits")
mnist = partial(classify, "mnist")
words = partial(classify, "words")


def topics(
    *,
    context: Annotated[int, Field(gt=0, le=4096)] = 64,
    widths: Annotated[Widths, Field(min_length=1)] = (64, 64),
    heads: Width = 4,
    label_smoothing: Share = 0.1,
    param_dtype: Dtype = "float32",
    test_share: TestShare = 0.2,
) -> Problem:
    """Make topics: a causal transformer predicts characters of Python's manual.

    Args:
      context: Characters in a window; a window is one example.
      widths: The width of each block, all equal.
      heads: Heads of attention in each block.
      label_smoothing: Share of each target that is spread over all characters.
      param_dtype: In which the parameters are kept; the arithmetic is float32.
      test_share: Share of the text kept for testing: its end.
    """
    require(len({*widths}) == 1, "arguments.widths", [*widths], "all equal")
    divides = widths[0] % heads == 0
    require(divides, "arguments.heads", heads, f"a divisor of {widths[0]}")
    dataset = split_topics(test_share, context)
    options = {"widths": widths, "heads": heads, "param_dtype": param_dtype}
    build = _plan("transformer", dataset, **options)
    measure = partial(compare_classes, smoothing=label_smoothing)
    return _make_problem(build, dataset, measure)


def wilson(*, param_dtype: Dtype = "float32", test_share: TestShare = 0.2) -> Problem:
    """Make wilson: a linear model fits examples on which Adam generalises worse.

    Args:
      param_dtype: In which the parameters of the linear model, which start at zero, are
        kept; the arithmetic is float32.
      test_share: Share of the 400 examples kept for testing.
    """
    dataset = split_wilson(test_share)
    build = partial(build_model, "linear", dataset, param_dtype=param_dtype)
    name = "half the squared error"
    return _make_problem(build, dataset, compare_signs, loss_name=name)


def _plan(name: str, dataset: Dataset, **options: Any) -> Callable[[Array], nnx.Module]:
    """Give what builds a model from a key, unless it is too large."""
    build = partial(build_model, name, dataset, **options)
    shapes = nnx.eval_shape(build, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"arguments.widths is {[*options['widths']]}, which makes {parameters:,} "
            f"parameters, but there must be at most {MOST_PARAMETERS:,}"
        )
    return build


def _make_problem(
    build: Callable[[Array], nnx.Module],
    dataset: Dataset,
    measure: Callable[[Array, Array], dict[str, Array]],
    dropout: float = 0.0,
    loss_name: str = "cross-entropy in nats",
) -> Problem:
    """Make the problem of a model whose outputs are compared with labels."""

    def metrics(model: Any, examples: Examples) -> dict[str, Array]:
        return measure(model(examples.inputs), examples.labels)

    def loss(model: Any, examples: Examples, key: Array) -> Array:
        if dropout:
            examples = examples._replace(inputs=drop(examples.inputs, dropout, key))
        return metrics(model, examples)[LOSS]

    labels = np.asarray(dataset.test.labels)
    commonest = np.unique(labels, return_counts=True)[1].max()
    baselines = {ACCURACY: float(commonest / labels.size)}
    return nnx_problem(build, loss, *dataset, metrics, baselines, loss_name)


def mean_elbo(vae: Any, examples: Examples, key: Array) -> Array:
    """Give the mean negative ELBO of images, with noise from a key."""
    made = vae(examples.inputs, key)
    return negative_elbo(examples.inputs, made).mean()


def compare_classes(logits: Array, labels: Array, smoothing: float) -> dict[str, Array]:
    """Give the mean cross-entropy in nats, and the share of labels found."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    found = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    return {LOSS: loss, ACCURACY: found}


def compare_signs(outputs: Array, labels: Array) -> dict[str, Array]:
    """Give half the mean squared error, and the share of labels whose sign is found."""
    outputs = outputs[:, 0]
    loss = optax.l2_loss(outputs, labels.astype(outputs.dtype)).mean()
    found = (jnp.sign(outputs) == labels).mean(dtype=jnp.float32)
    return {LOSS: loss, ACCURACY: found}


def drop(inputs: Array, share: float, key: Array) -> Array:
    """Set a share of the inputs to zero, and scale the others to the same mean."""
    kept = jax.random.bernoulli(key, 1 - share, inputs.shape)
    return jnp.where(kept, inputs / (1 - share), 0)
