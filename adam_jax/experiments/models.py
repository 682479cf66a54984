"""The Flax NNX models: from a batch of inputs to the logits of their labels."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from adam_jax.experiments.data import Dataset
from adam_jax.experiments.transformer import Transformer
from adam_jax.experiments.vae import VAE


def build_model(
    name: str,
    dataset: Dataset,
    key: Array,
    *,
    widths: tuple[int, ...] = (),
    latent: int = 0,
    heads: int = 0,
    hidden_bias: float = 0.0,
    param_dtype: str = "float32",
) -> nnx.Module:
    """Build a network for the examples of a dataset, its parameters drawn from a key.

    The options are those of the problems in built_in.py.
    """
    rngs, dtype = nnx.Rngs(key), jnp.dtype(param_dtype)
    options: Any = {"param_dtype": dtype, "dtype": jnp.float32, "rngs": rngs}
    shape, classes = dataset.train.inputs.shape[1:], dataset.classes
    match name:
        case "transformer":
            (context,) = shape
            return Transformer(classes, context, widths, heads, dtype, rngs)
        case "cnn":
            return build_cnn(shape, widths, classes, hidden_bias, options)
        case "vae":
            return build_vae(math.prod(shape), widths, latent, options)
        case "linear":
            options |= {"use_bias": False, "kernel_init": nnx.initializers.zeros}
            return nnx.Sequential(nnx.Linear(math.prod(shape), 1, **options))
        case "logistic":
            widths = ()
    return build_mlp(math.prod(shape), widths, classes, hidden_bias, options)


def build_mlp(
    inputs: int,
    widths: tuple[int, ...],
    classes: int,
    hidden_bias: float,
    options: dict[str, Any],
) -> nnx.Sequential:
    """Build dense layers with a relu after each but the last."""
    hidden: Any = options | {"bias_init": nnx.initializers.constant(hidden_bias)}
    layers, last = _stack_dense(inputs, widths, jax.nn.relu, hidden)
    return nnx.Sequential(_flatten, *layers, nnx.Linear(last, classes, **options))


def build_cnn(
    shape: tuple[int, ...],
    widths: tuple[int, ...],
    classes: int,
    hidden_bias: float,
    options: dict[str, Any],
) -> nnx.Sequential:
    """Build 3x3 convolutions of stride 2, each with a relu, and a dense layer."""
    hidden: Any = options | {"bias_init": nnx.initializers.constant(hidden_bias)}
    layers = []
    for inputs, width in pairwise((1, *widths)):
        layers += [nnx.Conv(inputs, width, (3, 3), strides=2, **hidden), jax.nn.relu]
    channels = (1, *widths)[-1]
    # An odd side is padded: 28, 14, 7, 4, 2, 1, 1, ...
    sides = (math.ceil(side / 2 ** len(widths)) for side in shape)
    head = nnx.Linear(math.prod(sides) * channels, classes, **options)
    return nnx.Sequential(_add_channel, *layers, _flatten, head)


def build_vae(
    inputs: int, widths: tuple[int, ...], latent: int, options: dict[str, Any]
) -> VAE:
    """Build an encoder of softplus units, and a decoder that mirrors it."""
    encoder, last = _stack_dense(inputs, widths, jax.nn.softplus, options)
    mean, log_variance = (nnx.Linear(last, latent, **options) for _ in range(2))
    decoder, last = _stack_dense(latent, widths[::-1], jax.nn.softplus, options)
    return VAE(
        nnx.Sequential(_flatten, *encoder),
        mean,
        log_variance,
        nnx.Sequential(*decoder, nnx.Linear(last, inputs, **options)),
    )


def _stack_dense(
    inputs: int, widths: tuple[int, ...], activation: Callable, options: Any
) -> tuple[list[Any], int]:
    """Give dense layers, an activation after each, and how many units come out."""
    layers = []
    for before, width in pairwise((inputs, *widths)):
        layers += [nnx.Linear(before, width, **options), activation]
    return layers, (inputs, *widths)[-1]


def _add_channel(images: Array) -> Array:
    return images[..., None]


def _flatten(images: Array) -> Array:
    return images.reshape(images.shape[0], -1)
