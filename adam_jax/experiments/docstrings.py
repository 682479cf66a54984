"""SciPy's docstrings as a text corpus, and which words are in a text."""

import importlib.resources
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

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
FEWEST_WORDS = 20


def read_docstrings() -> list[tuple[str, str]]:
    """Give each docstring of 20 words or more with its subpackage, none of them twice.

    They are found in the sources, as text in triple quotes: SciPy is not imported.
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


def mark_words(
    train: Sequence[str], test: Sequence[str], size: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Mark with 1 which words are in a text, with 0 which are not.

    A word is two or more letters or digits; capitals count as small letters.

    Args:
      train: Texts; the words that are in most of them are the vocabulary.
      test: Other texts; words of theirs that the vocabulary lacks are left out.
      size: Words in the vocabulary, at most.

    Returns:
      The words, and what is marked in the texts, (texts, words) each.
    """
    vectorizer = CountVectorizer(max_features=size, binary=True)
    vectorizer.fit(train)
    marks = (vectorizer.transform(texts).toarray() for texts in (train, test))
    return list(vectorizer.get_feature_names_out()), *marks
