"""Real data that comes with the package, and one made-up set: all of it offline."""

import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from adam_jax.experiments.problems.batches import SPLIT_SEED, count_tested

FOLDER = Path(__file__).parent / "data_files"  # its README says what is in it
WHITE = {"digits": 16, "mnist": 255}  # the largest value of a pixel
WILSON_EXAMPLES, WILSON_POSITIVE = 400, 0.6


class Examples(NamedTuple):
    """Hold inputs and labels, an example a row."""

    # Images (n, 8, 8) or (n, 28, 28) in [0, 1]; features (n, features), or characters,
    # int32 (n, context).
    inputs: Array
    labels: Array  # classes, or signs of -1 and 1, (n,), or the characters that follow


class Dataset(NamedTuple):
    """Hold the examples to learn from and those to be tested on."""

    train: Examples
    test: Examples

    @property
    def classes(self) -> int:
        """Count the labels that there may be."""
        return 1 + max(int(np.asarray(part.labels).max()) for part in self)


def split_classes(name: str, test_share: float) -> Dataset:
    """Split labelled examples, each class in proportion, and always alike.

    They are 1,797 handwritten digits, 5,000 images of MNIST, or the docstrings of SciPy
    (words), whose label is the subpackage. Of each of these is marked with 1 which of
    5,000 words are in it: those that are in most of the training docstrings, where
    test_share is 0.2. 98.2% of the marks are 0; they take 52 MB all the same.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        inputs, labels = file["inputs"], file["labels"]
    inputs = np.unpackbits(inputs, axis=1) if name == "words" else inputs / WHITE[name]
    parts = draw_split(labels, test_share)
    return Dataset(*(_to_examples(inputs[part], labels[part]) for part in parts))


def split_wilson(test_share: float) -> Dataset:
    """Make the 400 examples of Wilson et al. 2017 (arXiv:1705.08292), section 3.3.

    A label is 1 with a chance of 0.6, else -1. Feature 1 is the label; features 2 and
    3 are always 1; then an example has 5 features that are 0 in all others: one of
    them is 1 if the label is 1, else all 5 are. So no test example shares more than
    the first three features with the training.
    """
    count = WILSON_EXAMPLES
    test_count = count_tested(count, test_share)
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
    """Cut the manual that Python's help() prints into windows; its end is the test."""
    text = gzip.decompress((FOLDER / "topics.txt.gz").read_bytes()).decode()
    _, codes = np.unique(list(text), return_inverse=True)
    cut = int(len(codes) * (1 - test_share))
    if min(cut, len(codes) - cut) <= context:
        raise ValueError(
            f"context is {context}, but training and test text are {cut} and "
            f"{len(codes) - cut} characters long"
        )
    return Dataset(_windows(codes[:cut], context), _windows(codes[cut:], context))


def draw_split(labels: np.ndarray, test_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows of the training and of the test examples, each class in proportion.

    They are those that train_test_split of scikit-learn 1.9 draws, for stratify=labels
    and random_state=SPLIT_SEED.
    """
    names, counts = np.unique(labels, return_counts=True)
    test_count = math.ceil(len(labels) * test_share)
    train_count = len(labels) - test_count
    if min(train_count, test_count) < len(names):
        raise ValueError(
            f"test_share is {test_share}, but must leave training and test "
            f"{len(names)} or more of {len(labels)} examples each, one of a class"
        )
    # Not a Generator: those may draw otherwise in another version of NumPy.
    rng = np.random.RandomState(SPLIT_SEED)
    train_counts = _share_out(counts, train_count, rng)
    # All that is left; but a rounding in here makes scikit-learn draw, and so us.
    test_counts = _share_out(counts - train_counts, test_count, rng)
    train, test = [], []
    for name, first, second in zip(names, train_counts, test_counts, strict=True):
        rows = rng.permutation(np.flatnonzero(labels == name))
        train.append(rows[:first])
        test.append(rows[first : first + second])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def _share_out(
    counts: np.ndarray, total: int, rng: np.random.RandomState
) -> np.ndarray:
    """Take a total from classes in proportion to their counts; draw among equals."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact).astype(int)
    for rest in np.unique(exact - shares)[::-1]:
        missing = total - shares.sum()
        if missing == 0:
            break
        equal = np.flatnonzero(exact - np.floor(exact) == rest)
        shares[rng.choice(equal, min(missing, len(equal)), replace=False)] += 1
    return shares


def _to_examples(inputs: Any, labels: Any) -> Examples:
    return Examples(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32))


def _windows(codes: np.ndarray, context: int) -> Examples:
    count = (len(codes) - 1) // context
    text = jnp.asarray(codes[: count * context + 1], jnp.int32)
    return Examples(text[:-1].reshape(-1, context), text[1:].reshape(-1, context))
