"""Real data that ships inside packages: digits in scikit-learn, English in Python."""

import pydoc_data.topics
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adam_jax.experiments.config import TaskConfig

SPLIT_SEED = 0  # Not the run's seed: runs compare on the same test images only.


class Examples(NamedTuple):
    """Hold inputs and labels, an example a row.

    Attributes:
      inputs: Images, float32 (n, 8, 8) in [0, 1]; or characters, int32 (n, context).
      labels: Digits, int32 (n,); or the character that follows each, (n, context).
    """

    inputs: Array
    labels: Array


class Dataset(NamedTuple):
    """Hold the examples to learn from and those to be tested on."""

    train: Examples
    test: Examples

    @property
    def classes(self) -> int:
        """Count the labels that there may be."""
        return 1 + int(max(part.labels.max() for part in self))


def load_dataset(config: TaskConfig) -> Dataset:
    """Load and split what the config names.

    Raises:
      ValueError: if a part would hold too few examples.
    """
    if config.data == "topics":
        return split_topics(config.test_share, config.context)
    return split_digits(config.test_share)


def split_digits(test_share: float) -> Dataset:
    """Split 1,797 handwritten digits, each class in the same proportion, always alike.

    Raises:
      ValueError: if a part would hold fewer examples than there are classes.
    """
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=test_share, stratify=labels, random_state=SPLIT_SEED
    )
    return Dataset(_images(train_x, train_y), _images(test_x, test_y))


def split_topics(test_share: float, context: int) -> Dataset:
    """Cut the manual that Python's help() prints into windows; its end is the test.

    Raises:
      ValueError: if a part would hold no window.
    """
    text = "\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))
    _, codes = np.unique(list(text), return_inverse=True)
    cut = int(len(codes) * (1 - test_share))
    if min(cut, len(codes) - cut) <= context:
        raise ValueError(
            f"context is {context}, but training and test text are {cut} and "
            f"{len(codes) - cut} characters long"
        )
    return Dataset(_windows(codes[:cut], context), _windows(codes[cut:], context))


def _images(pixels: Any, labels: Any) -> Examples:
    images = jnp.asarray(pixels.reshape(-1, 8, 8) / 16, jnp.float32)
    return Examples(images, jnp.asarray(labels, jnp.int32))


def _windows(codes: np.ndarray, context: int) -> Examples:
    count = (len(codes) - 1) // context
    inputs, labels = codes[: count * context], codes[1 : count * context + 1]
    shape = (count, context)
    return Examples(
        jnp.asarray(inputs.reshape(shape), jnp.int32),
        jnp.asarray(labels.reshape(shape), jnp.int32),
    )
