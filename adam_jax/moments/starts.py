"""Moments that start from given values, for states that are continued elsewhere."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from adam_jax import placement
from adam_jax.moments.formats import Format, Stored, list_types


class Resumed(NamedTuple):
    """How `init` starts in a block of `resuming`.

    Attributes:
      values: by the name of a moment, such as "mu", arrays by the path of the leaf, as
        `jax.tree_util` gives it. A leaf that has none starts anew.
      stored: the same as they were stored. What the new format could have written is
        kept as it is, bit for bit.
      count: the number of steps taken so far; weights are what they then are.
    """

    values: Mapping[str, Mapping[Any, Any]]
    stored: Mapping[str, Mapping[Any, Any]]
    count: int


_RESUMED: ContextVar[Resumed | None] = ContextVar("resumed", default=None)


def resumed() -> Resumed | None:
    """Return how moments start here; None if anew."""
    return _RESUMED.get()


def keep(new: Stored, format: Format, name: str, path: Any, param: Any) -> Stored:
    """Return a leaf's moment as it was stored, if it could have been so here.

    Args:
      new: how it is stored now.
      format: what stored it.
      name: of the moment.
      path: of the leaf.
      param: anything with the shape of the parameter.
    """
    start = resumed()
    old = start and start.stored.get(name, {}).get(path)
    if not old or not all(hasattr(x, "dtype") for x in jax.tree.leaves(old)):
        return new  # plain numbers were not stored by a format
    if list_types(old) != list_types(new) or not format.wrote(old, param):
        return new
    return jax.tree.map(lambda x, y: placement.copy_beside(x, y, y.dtype), old, new)


def steps_since(past: Any, every: int | None) -> Any:
    """Return the number of steps since a moment started, or started anew.

    Args:
      past: int32 scalar, the number of steps so far.
      every: the number of steps after which it starts anew, or None.
    """
    return past % every if every else past


def expect_weight(weight: jax.Array, past: ArrayLike, name: str, moment: Any) -> None:
    """Refuse a state whose moment has no weight, though it has counted steps.

    Under jit nobody can see it. A moment of zeros has none: it starts anew, beside one
    that goes on.

    Args:
      weight: as in `MomentsState`, for one moment.
      past: int32 scalar, the number of steps so far.
      name: of the moment.
      moment: a pytree of its arrays.

    Raises:
      ValueError: if it has none.
    """
    arrays = jax.tree.leaves(moment)
    if any(isinstance(x, Tracer) for x in (past, weight, *arrays)):
        return
    if jnp.asarray(past) > 0 and weight[0] == 0 and any(map(jnp.any, arrays)):
        raise ValueError(
            f"the state has taken {past} steps, but the weight of its {name} is 0: it "
            "was not made by update(), and its next steps would be too long. Give "
            "moments to an optimizer by set_moments() or adopt_state()."
        )


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
