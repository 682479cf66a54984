"""Stored moments of many leaves, as trees like the parameters."""

from typing import Any

from jax.tree_util import tree_flatten_with_path

from adam_jax import placement
from adam_jax.moments.formats import Format, Stored, check_stored


def store(format: Format, moment: Any, signed: bool) -> Stored:
    """Store a given moment, rounded to nearest.

    Args:
      format: how to store it.
      moment: a pytree of arrays, float32 or wider.
      signed: False for second moments, which are real and never negative.
    """
    leaves, structure = tree_flatten_with_path(moment)
    stored = [
        check_stored(placement.at_leaf(path, format.init, leaf, signed), format)
        for path, leaf in leaves
    ]
    return as_tree(stored, structure, format.reader)


def as_tree(leaves: list[Stored], structure: Any, reader: Any) -> Stored:
    """Turn `Stored` leaves into one `Stored` of trees.

    Args:
      leaves: the stored moment of each leaf.
      structure: the structure of the parameters.
      reader: the class of the reader.
    """
    values = structure.unflatten([leaf.values for leaf in leaves])
    if type(values).__name__ == "_ParamsPlaceholder":
        # optax.tree_map_params looks for copies of the parameters. What a format keeps
        # beside the values is not one: its shapes differ, and some leaves lack it.
        return Stored(values, reader(*[0] * len(reader._fields)))
    fields = [
        structure.unflatten([leaf.format[i] for leaf in leaves])
        for i in range(len(reader._fields))
    ]
    return Stored(values, reader(*fields))


def as_leaves(stored: Stored, structure: Any) -> list[Stored]:
    """Split a stored moment into its leaves.

    Args:
      stored: the stored moment, in trees like the parameters.
      structure: the structure of the parameters.
    """
    if not structure.num_leaves:
        return []
    values = structure.flatten_up_to(stored.values)
    columns = [structure.flatten_up_to(field) for field in stored.format]
    reader = type(stored.format)
    return [
        Stored(value, reader(*row))
        for value, *row in zip(values, *columns, strict=True)
    ]


def decode(stored: Stored, like: Any = None) -> Any:
    """Return the moment that a state holds, whatever its format; None if there is none.

    Args:
      stored: the stored moment, in trees like the parameters.
      like: a pytree like the parameters; without it, values that elements share come
        in arrays that only broadcast to the shapes of the parameters.
    """
    if stored.values is None:
        return None
    paths, structure = tree_flatten_with_path(stored.values)
    leaves = as_leaves(stored, structure)
    likes = [None] * len(leaves) if like is None else structure.flatten_up_to(like)
    decoded = [
        placement.at_leaf(path, one.decode, leaf)
        for (path, _), one, leaf in zip(paths, leaves, likes, strict=True)
    ]
    return structure.unflatten(decoded)
