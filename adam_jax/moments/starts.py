"""Moments that start from given values, for states that are continued elsewhere."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple


class Resumed(NamedTuple):
    """How `init` starts in a block of `resuming`.

    Attributes:
      values: by the name of a moment, such as "mu", arrays by the path of the leaf, as
        `jax.tree_util` gives it. A leaf that has none starts anew.
      count: the number of steps taken so far; weights are what they then are.
    """

    values: Mapping[str, Mapping[Any, Any]]
    count: int


_RESUMED: ContextVar[Resumed | None] = ContextVar("resumed", default=None)


def resumed() -> Resumed | None:
    """Return how moments start here; None if anew."""
    return _RESUMED.get()


@contextlib.contextmanager
def resuming(start: Resumed) -> Iterator[None]:
    """Let `tx.init(params)` make a state with given moments.

    So each wrapper stores them where and as it stores what it starts with.

    Args:
      start: how moments start.
    """
    token = _RESUMED.set(start)
    try:
        yield
    finally:
        _RESUMED.reset(token)
