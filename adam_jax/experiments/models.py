"""The Flax NNX models: from a batch of inputs to the logits of their labels."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from adam_jax.experiments.config import ModelConfig
from adam_jax.experiments.data import Examples
from adam_jax.experiments.transformer import Transformer

SIDE = 8


def build_model(
    config: ModelConfig, examples: Examples, classes: int, key: Array
) -> nnx.Module:
    """Build the network of a config, its parameters drawn from a key.

    Raises:
      ValueError: if it does not take such examples.
    """
    rngs, param_dtype = nnx.Rngs(key), jnp.dtype(config.param_dtype)
    is_text = examples.labels.ndim == 2
    if is_text != (config.name == "transformer"):
        raise ValueError(
            f"model.name is {config.name!r}, but must be "
            + ("'transformer' for data = 'topics'" if is_text else "'mlp' or 'cnn'")
        )
    if is_text:
        context = examples.inputs.shape[-1]
        return Transformer(
            classes, context, config.widths, config.heads, param_dtype, rngs
        )
    build = {"mlp": build_mlp, "cnn": build_cnn}[config.name]
    return build(config.widths, classes, config.hidden_bias, param_dtype, rngs)


def build_mlp(
    widths: tuple[int, ...],
    classes: int,
    hidden_bias: float,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """Build dense layers with a relu after each but the last: images to logits."""
    options = {"param_dtype": param_dtype, "dtype": jnp.float32, "rngs": rngs}
    hidden: Any = options | {"bias_init": nnx.initializers.constant(hidden_bias)}
    layers = []
    inputs = SIDE * SIDE
    for width in widths:
        layers += [nnx.Linear(inputs, width, **hidden), jax.nn.relu]
        inputs = width
    return nnx.Sequential(_flatten, *layers, nnx.Linear(inputs, classes, **options))


def build_cnn(
    widths: tuple[int, ...],
    classes: int,
    hidden_bias: float,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """Build 3x3 convolutions of stride 2, each with a relu, and a dense layer."""
    options = {"param_dtype": param_dtype, "dtype": jnp.float32, "rngs": rngs}
    hidden: Any = options | {"bias_init": nnx.initializers.constant(hidden_bias)}
    layers = []
    for inputs, width in pairwise((1, *widths)):
        layers += [nnx.Conv(inputs, width, (3, 3), strides=2, **hidden), jax.nn.relu]
    channels = (1, *widths)[-1]
    # An odd side is padded: 8, 4, 2, 1, 1, ...
    side = max(1, SIDE >> len(widths))
    head = nnx.Linear(side * side * channels, classes, **options)
    return nnx.Sequential(_add_channel, *layers, _flatten, head)


def _add_channel(images: Array) -> Array:
    return images[..., None]


def _flatten(images: Array) -> Array:
    return images.reshape(images.shape[0], -1)
