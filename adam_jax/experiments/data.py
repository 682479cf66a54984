"""Real data that ships inside scikit-learn: 1,797 handwritten digits of 8x8 pixels."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 0  # Not the run's seed: runs compare on the same test images only.


class Examples(NamedTuple):
    """Hold images, float32 (n, 8, 8) in [0, 1], and their labels, int32 (n,)."""

    images: Array
    labels: Array


class Digits(NamedTuple):
    """Hold the examples to learn from and those to be tested on."""

    train: Examples
    test: Examples


def split_digits(test_share: float) -> Digits:
    """Split the digits, each class in the same proportion, always the same way.

    Raises:
      ValueError: if a part would hold fewer examples than there are classes.
    """
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=test_share, stratify=labels, random_state=SPLIT_SEED
    )
    return Digits(_examples(train_x, train_y), _examples(test_x, test_y))


def _examples(pixels, labels) -> Examples:
    images = jnp.asarray(pixels.reshape(-1, 8, 8) / 16, jnp.float32)
    return Examples(images, jnp.asarray(labels, jnp.int32))
