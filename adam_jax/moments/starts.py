"""Moments that start from given values, for states that are continued elsewhere."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple


class Resumed(NamedTuple):
    """How `init` starts in a block of `resuming`.

    Attributes:
      name: of the moments, such as "mu", that start from what `init` is given in place
        of parameters; others start anew.
      count: the number of steps taken so far; weights are what they then are.
    """

    name: str
    count: int


_RESUMED: ContextVar[Resumed | None] = ContextVar("resumed", default=None)


def resumed() -> Resumed | None:
    """Return how moments start here; None if anew."""
    return _RESUMED.get()


@contextlib.contextmanager
def resuming(name: str, count: int) -> Iterator[None]:
    """Let `tx.init(values)` make a state whose moments of a name are these values.

    All wrappers then store them as they store what they start with.

    Args:
      name: as in `Resumed`.
      count: as in `Resumed`.
    """
    token = _RESUMED.set(Resumed(name, count))
    try:
        yield
    finally:
        _RESUMED.reset(token)
