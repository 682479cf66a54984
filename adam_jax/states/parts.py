"""States taken apart: nodes, and in each moments by path and other fields by name."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from adam_jax.moments.formats import Dense, Stored
from adam_jax.moments.moment import decode
from adam_jax.states.buffers import PackedState
from adam_jax.states.reading import cut_to

# The fields of a node that are trees like the parameters, and what we call them.
# Nodes are known by the names of their classes: those of Optax are not all public.
_MOMENTS = {"mu": "mu", "nu": "nu", "nu_max": "nu_max", "trace": "trace"}
TREES = {
    **dict.fromkeys(("MomentsState", "TraceState", "RunningMaxState"), _MOMENTS),
    "TorchState": _MOMENTS | {"raw_nu_max": "raw_nu_max"},
    **dict.fromkeys(("ScaleByAdamState", "ScaleByBeliefState"), _MOMENTS),
    **dict.fromkeys(("ScaleByAmsgradState", "ScaleByLionState"), _MOMENTS),
    **dict.fromkeys(("ScaleByRmsState", "ScaleByRmsWithCountState"), _MOMENTS),
    **dict.fromkeys(("ScaleByRStdDevState", "ScaleByRStdDevWithCountState"), _MOMENTS),
    "ScaleByRssState": {"sum_of_squares": "nu"},
}
# Both stand for a schedule.
_ALIKE = {"ScheduledState": "schedule", "ScaleByScheduleState": "schedule"}
COUNTS = ("count", "steps", "gradient_step")  # of steps


@dataclasses.dataclass
class Part:
    """A node of a state, taken apart.

    Attributes:
      kind: what it is; nodes of one kind have the same fields.
      own: its fields that are neither moments nor other nodes, by name.
      trees: its moments as arrays, by name and by the path of the parameter.
      found: the moments of these that an old state holds.
      weights: by the name of a moment, the weights of a state with these moments.
      made: what its fields are to be, by name.
      started: the names of what starts anew.
    """

    kind: str
    own: dict[str, Any]
    trees: dict[str, dict[str, Any]]
    found: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: list[str] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> Any:
        """The number of steps that it has counted, or None."""
        counts = [self.own[name] for name in COUNTS if name in self.own]
        return counts[0] if counts else None


def iterate_nodes(state: Any) -> Iterator[Any]:
    """Yield the nodes of a state that hold anything, each before those inside it.

    Args:
      state: an optimizer state, or anything that holds one.
    """
    if hasattr(state, "_fields"):
        if not isinstance(state, PackedState) and _own_fields(state):
            yield state
        for name in _inner_fields(state):
            yield from iterate_nodes(getattr(state, name))
    elif not jax.tree_util.all_leaves([state]):
        for child in jax.tree.leaves(state, is_leaf=lambda x: x is not state):
            yield from iterate_nodes(child)


def _inner_fields(node: Any) -> list[str]:
    """Return the names of the fields that hold other nodes."""
    ends = "state", "states"
    return [n for n in node._fields if n.startswith("inner") or n.endswith(ends)]


def _own_fields(node: Any) -> list[str]:
    return [name for name in node._fields if name not in _inner_fields(node)]


def take_apart(node: Any, params: Any) -> Part:
    """Return a node, taken apart.

    Args:
      node: the node of a state.
      params: parameters, for formats that do not know their shapes; they may be others
        than those of the state.
    """
    name = type(node).__name__
    known, own, trees = TREES.get(name, {}), {}, {}
    for field in _own_fields(node):
        value = getattr(node, field)
        if field in known:
            if value is not None:
                stored = Stored(value, getattr(node, f"{field}_format", Dense()))
                trees[known[field]] = _by_path(_decode(stored, params))
        elif not field.endswith("_format"):
            own[field] = value
    return Part(_ALIKE.get(name, name), own, trees)


def _decode(stored: Stored, params: Any) -> Any:
    try:
        return decode(stored, cut_to(stored.values, params))
    except ValueError:  # parameters of another structure
        return decode(stored)


def _by_path(tree: Any) -> dict[str, Any]:
    return {name_path(path): x for path, x in tree_leaves_with_path(tree)}


def list_fields(own: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Part.own`, those of a dict one by one, but for weights.

    Args:
      own: fields by name.
    """
    flat = {}
    for name, value in own.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": x for key, x in value.items()}
        elif name != "weights":
            flat[name] = value
    return flat


def name_field(name: str) -> str:
    """Return what a field is called in lists: all that count steps are "count".

    Args:
      name: of the field.
    """
    return "count" if name in COUNTS else name


def name_path(path: Any) -> str:
    """Return the name of a parameter, such as "dense/kernel".

    Args:
      path: as `jax.tree_util` gives it.
    """
    return keystr(path, simple=True, separator="/")


def rebuild(state: Any, parts: Iterator[Part]) -> Any:
    """Return a state with the fields that its parts have made.

    Args:
      state: an optimizer state.
      parts: one for each of its nodes, in the order of `iterate_nodes`.
    """
    if hasattr(state, "_fields"):
        made = {}
        if not isinstance(state, PackedState) and _own_fields(state):
            made = next(parts).made
        inner = {n: rebuild(getattr(state, n), parts) for n in _inner_fields(state)}
        return state._replace(**made, **inner)
    if jax.tree_util.all_leaves([state]):
        return state
    children, structure = jax.tree.flatten(state, is_leaf=lambda x: x is not state)
    return structure.unflatten([rebuild(child, parts) for child in children])
