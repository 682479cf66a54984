"""The data of the problems: where they come from, and how they are split."""

import re
from collections import Counter
from inspect import cleandoc

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import minimize
from sklearn.model_selection import train_test_split

from adam_jax.experiments import data
from adam_jax.experiments.data import SPLIT_SEED, split_mnist, split_wilson, split_words
from adam_jax.experiments.docstrings import SUBPACKAGES, mark_words, read_docstrings


def same(left, right):
    """Tell whether two datasets are equal."""
    pairs = zip(left, right, strict=True)
    return all(np.array_equal(a, b) for x in pairs for a, b in zip(*x, strict=True))


def test_mnist_has_500_images_of_each_digit_and_a_fifth_of_them_is_the_test():
    train, test = split_mnist(0.2)
    assert train.inputs.shape == (4000, 28, 28)
    assert test.inputs.shape == (1000, 28, 28)
    assert train.inputs.dtype == np.float32 and train.labels.dtype == np.int32
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.inputs.min() == 0 and train.inputs.max() == 1
    assert same(split_mnist(0.2), (train, test))
    # A one is a thin stroke: less ink than a zero, and most in the middle columns.
    images = np.asarray(train.inputs)
    zeros, ones = (images[train.labels == digit].mean(0) for digit in (0, 1))
    assert ones.sum() < zeros.sum() / 2
    assert ones[:, 10:18].sum() > 0.8 * ones.sum()


def test_docstrings_are_those_that_scipy_shows():
    docstrings = read_docstrings()
    shown = {cleandoc(text): name for text, name in docstrings}
    assert shown[cleandoc(minimize.__doc__)] == "optimize"
    assert shown[cleandoc(expm.__doc__)] == "linalg"
    texts = [text for text, _ in docstrings]
    assert len(set(texts)) == len(texts)
    assert min(len(text.split()) for text in texts) == 20
    counts = Counter(name for _, name in docstrings)
    assert set(counts) == set(SUBPACKAGES)
    assert min(counts.values()) > 75


def test_words_are_marked_by_hand():
    train = ["A step IS a step: no step.", "It is x_1, is it?", "A step; it is x_1"]
    test = ["Of steps, it is a No-step step."]
    # "a" is too short, "no" is in one text only. How often a word is there is nothing.
    words, known, unknown = mark_words(train, test, 4)
    assert words == ["is", "it", "step", "x_1"]
    assert known.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1]]
    assert unknown.tolist() == [[1, 1, 1, 0]]


def test_rows_of_words_are_the_words_of_their_docstrings():
    train, test = split_words(0.2)
    texts, names = zip(*read_docstrings(), strict=True)
    assert train.inputs.shape[1] == test.inputs.shape[1] == data.VOCABULARY == 5000
    assert len(train.labels) + len(test.labels) == len(texts)
    assert set(np.unique(test.inputs)) == {0, 1}
    assert 0.975 < float((train.inputs == 0).mean()) < 0.99
    assert same(split_words(0.2), (train, test))
    # Each class has its share of the test.
    counts = np.bincount([SUBPACKAGES.index(name) for name in names])
    assert np.all(np.abs(np.bincount(test.labels) - 0.2 * counts) < 1)
    # The words of the training texts, by an own count; the least frequent ones of the
    # vocabulary are drawn among equals.
    order, others = train_test_split(
        np.arange(len(texts)), test_size=0.2, stratify=names, random_state=SPLIT_SEED
    )
    found = [set(re.findall(r"\w\w+", texts[n].lower())) for n in order]
    frequent = Counter(word for words in found for word in words)
    least = sorted(frequent.values(), reverse=True)[4999]
    for row, words in zip(np.asarray(train.inputs)[:50], found, strict=False):
        certain = sum(frequent[word] > least for word in words)
        assert certain <= row.sum() <= sum(frequent[word] >= least for word in words)
    assert train.labels[0] == SUBPACKAGES.index(names[order[0]])
    assert test.labels[0] == SUBPACKAGES.index(names[others[0]])


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
