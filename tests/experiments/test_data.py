"""The data of the problems: what they are, and how they are split."""

import hashlib

import numpy as np
import pytest

from adam_jax.experiments.problems import data
from adam_jax.experiments.problems.data import (
    draw_split,
    split_classes,
    split_topics,
    split_wilson,
)

# Of the examples as scikit-learn split them and its CountVectorizer marked the words,
# read from the packages that README.md in data_files names.
DIGESTS = {
    "digits": (split_classes, ("digits", 0.2), "44231e3626fd455f"),
    "half of digits": (split_classes, ("digits", 0.5), "f37e39eb9fa613f9"),
    "mnist": (split_classes, ("mnist", 0.2), "77c009308d40cb03"),
    "words": (split_classes, ("words", 0.2), "30e18ccff7722fd2"),
    "topics": (split_topics, (0.1, 64), "0a681f2827c7f3f7"),
}


@pytest.mark.parametrize(
    ("split", "arguments", "digest"), DIGESTS.values(), ids=DIGESTS
)
def test_no_bit_of_the_examples_has_changed(split, arguments, digest):
    found = hashlib.sha256()
    for part in split(*arguments):
        for array in map(np.asarray, part):
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.tobytes())
    assert found.hexdigest().startswith(digest)


def same(left, right):
    """Tell whether two datasets are equal."""
    pairs = zip(left, right, strict=True)
    return all(np.array_equal(a, b) for x in pairs for a, b in zip(*x, strict=True))


def test_mnist_has_500_images_of_each_digit_and_a_fifth_of_them_is_the_test():
    train, test = split_classes("mnist", 0.2)
    assert train.inputs.shape == (4000, 28, 28)
    assert test.inputs.shape == (1000, 28, 28)
    assert train.inputs.dtype == np.float32 and train.labels.dtype == np.int32
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.inputs.min() == 0 and train.inputs.max() == 1
    assert same(split_classes("mnist", 0.2), (train, test))
    # A one is a thin stroke: less ink than a zero, and most in the middle columns.
    images = np.asarray(train.inputs)
    zeros, ones = (images[train.labels == digit].mean(0) for digit in (0, 1))
    assert ones.sum() < zeros.sum() / 2
    assert ones[:, 10:18].sum() > 0.8 * ones.sum()


def test_words_are_those_of_docstrings():
    train, test = split_classes("words", 0.2)
    assert train.inputs.shape[1] == test.inputs.shape[1] == 5000
    assert set(np.unique(test.inputs)) == {0, 1}
    assert 0.975 < float((train.inputs == 0).mean()) < 0.99
    with np.load(data.FOLDER / "words.npz") as file:
        words = list(file["words"])
    assert words == sorted(set(words))
    assert all(len(word) > 1 and word == word.lower() for word in words)
    # Which subpackage says a word most often: 0 is integrate, 9 is stats.
    for word, label in (("ode", 0), ("spline", 1), ("minimize", 4), ("hypothesis", 9)):
        said = np.asarray(train.inputs[:, words.index(word)])
        shares = [said[train.labels == n].mean() for n in range(10)]
        assert np.argmax(shares) == label, word


@pytest.mark.parametrize("share", [0.01, 0.2, 0.73])
def test_each_class_has_its_share_of_the_test(share):
    labels = np.repeat(np.arange(5), [200, 100, 401, 150, 149])
    train, test = draw_split(labels, share)
    assert sorted([*train, *test]) == list(range(1000))
    assert len(test) == round(1000 * share)
    counts = np.bincount(labels)
    assert np.all(np.abs(np.bincount(labels[test], minlength=5) - share * counts) < 1)
    assert np.any(np.diff(train) < 0) and np.any(np.diff(test) < 0)  # shuffled


@pytest.mark.parametrize("share", [0.004, 0.997])
def test_a_part_may_not_be_too_small(share):
    with pytest.raises(ValueError, match="training and test 5 or more of 1000 exampl"):
        draw_split(np.arange(1000) % 5, share)


def test_wilsons_examples_follow_the_rules_of_the_paper():
    train, test = split_wilson(0.25)
    assert train.inputs.shape == (300, 3 + 5 * 400)
    assert test.inputs.shape == (100, 3 + 5 * 400)
    assert same(split_wilson(0.25), (train, test))
    labels = np.concatenate([train.labels, test.labels])
    features = np.concatenate([train.inputs, test.inputs])
    expected = np.zeros_like(features)
    for i, y in enumerate(labels, start=1):  # in the paper, i and j count from 1
        for j in (1, 2, 3, *range(4 + 5 * (i - 1), 4 + 5 * (i - 1) + 2 * (1 - y) + 1)):
            expected[i - 1, j - 1] = y if j == 1 else 1
    assert np.array_equal(features, expected)
    # Four standard deviations of a share of 400.
    assert abs((labels == 1).mean() - 0.6) < 4 * (0.6 * 0.4 / 400) ** 0.5
    with pytest.raises(ValueError, match="but must leave training and test one"):
        split_wilson(0.0001)
