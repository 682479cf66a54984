"""The Flax NNX models: from a batch of inputs to the logits of their labels."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from adam_jax.experiments.problems.data import Dataset
from adam_jax.experiments.problems.transformer import Transformer
from adam_jax.experiments.problems.vae import VAE


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
    options: Any = {"param_dtype": jnp.dtype(param_dtype), "dtype": jnp.float32}
    options["rngs"] = nnx.Rngs(key)
    hidden: Any = options | {"bias_init": nnx.initializers.constant(hidden_bias)}
    shape, classes = dataset.train.inputs.shape[1:], dataset.classes
    inputs = math.prod(shape)
    match name:
        case "transformer":
            return Transformer(classes, inputs, widths, heads, options)
        case "linear":
            zeros = nnx.initializers.zeros
            linear = nnx.Linear(inputs, 1, use_bias=False, kernel_init=zeros, **options)
            return nnx.Sequential(linear)
        case "vae":
            encoder, last = _stack_dense(inputs, widths, jax.nn.softplus, options)
            mean, log_variance = (nnx.Linear(last, latent, **options) for _ in range(2))
            decoder, last = _stack_dense(latent, widths[::-1], jax.nn.softplus, options)
            decoder.append(nnx.Linear(last, inputs, **options))
            parts = mean, log_variance, nnx.Sequential(*decoder)
            return VAE(nnx.Sequential(_flatten, *encoder), *parts)
        case "cnn":
            layers = [_add_channel]
            for before, width in pairwise((1, *widths)):
                conv = nnx.Conv(before, width, (3, 3), strides=2, **hidden)
                layers += [conv, jax.nn.relu]
            # An odd side is padded: 28, 14, 7, 4, 2, 1, 1, ...
            sides = (math.ceil(side / 2 ** len(widths)) for side in shape)
            last = math.prod(sides) * (1, *widths)[-1]
            return nnx.Sequential(
                *layers, _flatten, nnx.Linear(last, classes, **options)
            )
        case "logistic":
            widths = ()
    layers, last = _stack_dense(inputs, widths, jax.nn.relu, hidden)
    return nnx.Sequential(_flatten, *layers, nnx.Linear(last, classes, **options))


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
