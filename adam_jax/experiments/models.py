"""The Flax NNX models: from images (batch, 8, 8) to logits (batch, 10)."""

from itertools import pairwise

import jax
from flax import nnx
from jax import Array

from adam_jax.experiments.config import ModelConfig

SIDE = 8
CLASSES = 10


def build_model(config: ModelConfig, seed: int) -> nnx.Sequential:
    """Build the network of a config, its parameters drawn from the seed."""
    build = {"mlp": build_mlp, "cnn": build_cnn}[config.name]
    return build(config.widths, nnx.Rngs(seed))


def build_mlp(widths: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Sequential:
    """Build dense layers with a relu after each but the last."""
    layers = []
    inputs = SIDE * SIDE
    for width in widths:
        layers += [nnx.Linear(inputs, width, rngs=rngs), jax.nn.relu]
        inputs = width
    return nnx.Sequential(_flatten, *layers, nnx.Linear(inputs, CLASSES, rngs=rngs))


def build_cnn(widths: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Sequential:
    """Build 3x3 convolutions of stride 2, each with a relu, and a dense layer."""
    layers = []
    for inputs, width in pairwise((1, *widths)):
        layers += [nnx.Conv(inputs, width, (3, 3), strides=2, rngs=rngs), jax.nn.relu]
    channels = (1, *widths)[-1]
    # An odd side is padded: 8, 4, 2, 1, 1, ...
    side = max(1, SIDE >> len(widths))
    head = nnx.Linear(side * side * channels, CLASSES, rngs=rngs)
    return nnx.Sequential(_add_channel, *layers, _flatten, head)


def _add_channel(images: Array) -> Array:
    return images[..., None]


def _flatten(images: Array) -> Array:
    return images.reshape(images.shape[0], -1)
