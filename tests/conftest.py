"""What must be set before JAX starts."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Eight CPU devices, for the sharding tests.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# What is compiled is kept, for the other workers and the next run: they take a third of
# the time.
_KEPT = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_KEPT))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# A script that needs PyTorch, and what `make compiled` runs.
collect_ignore = ["reference", "compiled"]

import jax  # noqa: E402
import jax.export  # noqa: E402
import pytest  # noqa: E402

# Where the last bit counts, or how XLA contracts products and sums.
OPTIMISED = {
    f"test_{name}"
    for name in (
        *("contract", "dtypes", "native", "numerics", "properties", "rectification"),
        *("rounding", "stages", "stepping"),
    )
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes a long suite a short one."""
    parser.addoption(
        "--every",
        type=int,
        default=5,
        help="of the cases of a test, all are crossings but the first and then each "
        "so-manieth (default: 5)",
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Mark as crossings what --every says."""
    every, counted = config.getoption("--every"), dict[str, int]()
    for item in items:
        test = item.nodeid.partition("[")[0]
        counted[test] = number = counted.get(test, -1) + 1
        if number % every:
            item.add_marker("crossing")


@pytest.fixture(autouse=True, scope="module")
def compile_little(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let LLVM optimise little elsewhere: most programs run once."""
    little = request.module.__name__ not in OPTIMISED
    jax.config.update("jax_disable_most_optimizations", little)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Let a search for leaks pass over what was there before: it takes a tenth then."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
