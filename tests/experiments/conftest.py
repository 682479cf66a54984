"""Runs of the command line inside the test process, small and in a folder of theirs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from adam_jax.experiments.cli import main

# Two steps an epoch: half of the 1,437 training images each.
TINY = ("--batch_size=718", "--epochs=2", "--model.widths=[8]")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Name the folder of runs; it does not exist yet."""
    return tmp_path / "runs"


@pytest.fixture
def train(runs_dir: Path) -> Callable[..., int]:
    """Give a function that runs `adam-jax train`, tiny unless told otherwise."""

    def run(*options: str) -> int:
        return main(["train", f"--runs_dir={runs_dir}", *TINY, *options])

    return run


@pytest.fixture(autouse=True, scope="package")
def compile_little(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is compiled, for many runs are of the same program; optimise little."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jit")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
