"""CITATION.cff says what the package says of itself."""

from importlib.metadata import metadata
from pathlib import Path

import yaml

import adam_jax


def test_the_citation_is_of_this_package():
    path = Path(__file__).parents[1] / "CITATION.cff"
    cited = yaml.safe_load(path.read_text(encoding="utf-8"))
    package = metadata("adam_jax")
    assert cited["version"] == adam_jax.__version__
    assert cited["title"].startswith(f"{package['Name']}:")
    assert cited["license"] == package["License-Expression"]
    assert ",".join(cited["keywords"]) == package["Keywords"]
