"""Moments that follow the coordinates in which they were gathered."""

from typing import Any

import jax
import optax
from jax import lax
from jax.tree_util import tree_flatten_with_path, tree_leaves_with_path

from adam_jax import numerics, placement
from adam_jax.coordinates.interface import Coordinates
from adam_jax.moments.formats import Dense, Stored
from adam_jax.moments.starts import Resumed, resuming
from adam_jax.moments.trees import decode

# The fields of a state that hold moments of the gradient itself. They turn with it;
# those of its square do not.
_FIRST = ("mu", "trace")


def turn_moments(
    coordinates: Coordinates,
    inner: optax.GradientTransformation,
    state: Any,
    grads: Any,
    old: list[Any],
    new: list[Any],
    past: Any,
) -> Any:
    """Return the states of the stages with first moments in the new coordinates.

    Args:
      coordinates: the coordinates.
      inner: the chain of the stages.
      state: its state.
      grads: the gradients in the new coordinates.
      old: what the leaves kept before this step.
      new: what they keep now.
      past: int32 scalar, the number of steps before this one.
    """
    paths, structure = tree_flatten_with_path(grads)
    kept = {p: (x, y) for (p, _), x, y in zip(paths, old, new, strict=True) if x}
    nodes, whole = jax.tree.flatten(state, is_leaf=lambda x: bool(_find_firsts(x)))

    def turn_field(number, name):
        """Return the new fields of one node that hold one of its moments."""
        node, reader = nodes[number], f"{name}_format"
        format = getattr(node, reader, Dense())
        held = decode(Stored(getattr(node, name), format), None)
        values = dict(tree_leaves_with_path(held))
        turned = {
            path: coordinates.follow(*kept[path], numerics.widen(x))
            if path in kept
            else x
            for path, x in values.items()
        }
        if not hasattr(node, reader):  # one of Optax
            leaves, tree = tree_flatten_with_path(held)
            return {
                name: tree.unflatten([turned[p].astype(x.dtype) for p, x in leaves])
            }
        # The stages themselves store it, as they do when a run is continued.
        like = structure.unflatten(
            [g.astype(values[p].dtype) if p in values else g for p, g in paths]
        )
        with resuming(Resumed({name: turned}, {}, 0)):
            fresh = whole.flatten_up_to(inner.init(like))[number]
        return {
            field: jax.tree.map(
                placement.beside, getattr(fresh, field), getattr(node, field)
            )
            for field in (name, reader)
        }

    def turn(fields):
        del fields
        return [
            {
                k: x
                for name in _find_firsts(node)
                for k, x in turn_field(i, name).items()
            }
            for i, node in enumerate(nodes)
        ]

    fields = [
        {
            field: getattr(node, field)
            for name in _find_firsts(node)
            for field in (name, f"{name}_format")
            if hasattr(node, field)
        }
        for node in nodes
    ]
    if not kept or not any(fields):
        return state
    fields = lax.cond(coordinates.changes(past), turn, lambda x: x, fields)
    return whole.unflatten(
        [
            node._replace(**made) if made else node
            for node, made in zip(nodes, fields, strict=True)
        ]
    )


def _find_firsts(node: Any) -> list[str]:
    """Return the fields of a node that hold first moments."""
    own = getattr(node, "_fields", ())
    return [name for name in _FIRST if name in own and getattr(node, name) is not None]
