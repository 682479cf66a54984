"""States taken apart: nodes, and in each moments by path and other fields by name."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from adam_jax.moments.formats import Dense, Stored
from adam_jax.moments.trees import as_leaves
from adam_jax.states.buffers import PackedState

MOMENTS = ("mu", "nu", "nu_max", "trace", "nu_trace")
"""The fields of our states that hold moments. Beside each is one with its format."""

# The fields of a node that are trees like the parameters, and what we call them. Nodes
# are known by the names of their classes: those of Optax are not all public.
_MOMENTS = {x: x for x in MOMENTS}
_FOREIGN = {x: x for x in ("raw_nu_max", "scaled_trace", "average")}
TREES = {
    **dict.fromkeys(("MomentsState", "RunningMaxState"), _MOMENTS),
    **dict.fromkeys(("TraceState", "NuTraceState"), _MOMENTS),
    **dict.fromkeys(("ScaleByAdamState", "ScaleByBeliefState"), _MOMENTS),
    **dict.fromkeys(("ScaleByAmsgradState", "ScaleByLionState"), _MOMENTS),
    **dict.fromkeys(("ScaleByRmsState", "ScaleByRmsWithCountState"), _MOMENTS),
    **dict.fromkeys(("ScaleByRStdDevState", "ScaleByRStdDevWithCountState"), _MOMENTS),
    "ScaleByRssState": {"sum_of_squares": "nu"},
    "ForeignState": _MOMENTS | _FOREIGN,
}
# What counts the steps of a node. Other nodes count something else, such as losses.
_COUNTS = {
    **dict.fromkeys(TREES, "count"),
    **dict.fromkeys(("ScaleByScheduleState", "WrappedScheduleState"), "count"),
    **dict.fromkeys(("RecordState", "RoundToParamsState"), "count"),
    **dict.fromkeys(("ScheduleFreeState", "LookaheadState"), "count"),
    "InjectHyperparamsState": "count",
    "InjectStatefulHyperparamsState": "count",
    "ScheduledState": "steps",
    "WeightDecaySchedule": "count",
    "MultiStepsState": "gradient_step",
}
# Both stand for a schedule.
_ALIKE = {"ScheduledState": "schedule", "ScaleByScheduleState": "schedule"}
_KNOWN = {
    *_COUNTS,
    "WithinState",
    "SkipState",
    "CompensateParamsState",
    "PackedState",
    "MaskedState",
}
_KNOWN |= {"PartitionState", "ApplyIfFiniteState"}


@dataclasses.dataclass(eq=False)
class Part:
    """A node of a state, taken apart.

    Attributes:
      node: as it is in the state.
      own: its fields that are neither moments nor other nodes, by name. What counts
        steps is called "count"; the items of a dict are fields of their own, such as
        "figures/update_norm".
      trees: its moments as arrays, by name and by the name of the parameter.
      stored: the same as they are stored.
      paths: the paths of parameters, by name.
      scheduled: the names of its hyperparameters that follow schedules.
    """

    node: Any
    own: dict[str, Any]
    trees: dict[str, dict[str, Any]]
    stored: dict[str, dict[str, Stored]]
    paths: dict[str, Any]
    scheduled: set[str]

    @property
    def kind(self) -> str:
        """The name of its class, or what stands for it here and in Optax."""
        name = type(self.node).__name__
        return _ALIKE.get(name, name)

    @property
    def counts(self) -> bool:
        """Whether its field "count" counts steps."""
        return type(self.node).__name__ in _COUNTS and "count" in self.own

    @property
    def count(self) -> Any:
        """The number of steps that it has counted, or None."""
        return self.own["count"] if self.counts else None

    @property
    def coordinates(self) -> dict[str, Any]:
        """The shapes of what `within` keeps, by its names and those of parameters."""
        return {
            name: {leaf: np.shape(x) for leaf, x in by_name(value).items()}
            for name, value in self.own.items()
            if self.kind == "WithinState" and name.startswith("coordinates/")
        }

    def put(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return new fields of the node.

        Args:
          made: new values for what is in `own`, by its names there.
        """
        fields = {}
        for field, name in _list_own(self.node).items():
            value = getattr(self.node, field)
            if isinstance(value, dict):
                items = {key: made.get(f"{name}/{key}", x) for key, x in value.items()}
                fields[field] = copy.copy(value)
                fields[field].update(items)
            elif name in made:
                fields[field] = made[name]
        return fields


class Loose(NamedTuple):
    """The node for what an optimizer keeps in a container of no fields, such as a dict.

    Attributes:
      value: a pytree that holds arrays, but no other nodes.
    """

    value: Any


def iterate_nodes(state: Any) -> Iterator[Any]:
    """Yield the nodes of a state that hold anything, each before those inside it.

    Args:
      state: an optimizer state, or anything that holds one.
    """
    return _iterate(state, False)


def _iterate(state: Any, inside: bool) -> Iterator[Any]:
    """Yield nodes.

    Args:
      state: a part of a state.
      inside: whether all of it is an optimizer's. What lies beside the state in a
        TrainState is not.
    """
    if hasattr(state, "_fields"):
        inner, is_node = _split(state)
        if is_node:
            yield state
        for name in inner:
            yield from _iterate(getattr(state, name), True)
    elif inside and _is_loose(state):
        yield Loose(state)
    elif not jax.tree_util.all_leaves([state]):
        inside = inside or isinstance(state, tuple)
        for child in jax.tree.leaves(state, is_leaf=lambda x: x is not state):
            yield from _iterate(child, inside)


def _is_loose(tree: Any) -> bool:
    """Return whether a tree holds arrays, but no nodes."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, "_fields"))
    return bool(leaves) and not any(hasattr(x, "_fields") for x in leaves)


def _split(node: Any) -> tuple[list[str], bool]:
    """Return the fields that hold other nodes, and whether there are fields beside."""
    if isinstance(node, PackedState):
        return ["inner_state"], False
    ends = "state", "states"
    inner = [n for n in node._fields if n.startswith("inner") or n.endswith(ends)]
    inner = [name for name in inner if not _is_loose(getattr(node, name))]
    if not inner and type(node).__name__ not in _KNOWN:  # somebody's own container
        inner = [name for name in node._fields if _holds_nodes(getattr(node, name))]
    return inner, len(inner) < len(node._fields)


def _holds_nodes(tree: Any) -> bool:
    def is_node(x):
        return hasattr(x, "_fields") and type(x).__name__ in _KNOWN

    return any(is_node(x) for x in jax.tree.leaves(tree, is_leaf=is_node))


def take_apart(node: Any, likes: Mapping[str, Any]) -> Part:
    """Return a node, taken apart.

    Args:
      node: the node of a state.
      likes: arrays of the shapes of its moments by the names of their parameters, for
        formats that do not know them. A moment that cannot be read is left out.

    Raises:
      ValueError: if two of its parameters have one name.
    """
    trees, leaves, paths = {}, {}, {}
    for name, stored in stored_moments(node).items():
        named = name_leaves(stored.values)
        own = as_leaves(stored, jax.tree.structure(stored.values))
        leaves[name] = dict(zip(named, own, strict=True))
        trees[name] = _read(leaves[name], likes)
        paths |= named
    scheduled = getattr(node, "hyperparams_states", ())
    return Part(node, own_fields(node), trees, leaves, paths, {*scheduled})


def stored_moments(node: Any) -> dict[str, Stored]:
    """Return the moments of a node as they are stored, by name.

    Args:
      node: the node of a state.
    """
    fields = TREES.get(type(node).__name__, {})
    return {
        name: Stored(getattr(node, field), getattr(node, f"{field}_format", Dense()))
        for field, name in fields.items()
        if getattr(node, field, None) is not None
    }


def own_fields(node: Any) -> dict[str, Any]:
    """Return the fields of a node that hold anything, as `Part.own` has them.

    Args:
      node: the node of a state.
    """
    own = {}
    for field, name in _list_own(node).items():
        value = getattr(node, field)
        if isinstance(value, dict):
            own |= {f"{name}/{key}": _unbox(x) for key, x in value.items()}
        else:
            own[name] = _unbox(value)
    return {name: value for name, value in own.items() if jax.tree.leaves(value)}


def _list_own(node: Any) -> dict[str, str]:
    """Return what fields are called that hold no other nodes, moments or weights."""
    kind = type(node).__name__
    others = {*_split(node)[0], *TREES.get(kind, ()), "weights"}
    own = [x for x in node._fields if x not in others and not x.endswith("_format")]
    return {x: "count" if x == _COUNTS.get(kind) else x for x in own}


def _unbox(value: Any) -> Any:
    """Return the array in a variable of Flax; anything else as it is."""
    leaves = jax.tree.leaves(value)
    boxed = not isinstance(value, dict | list | tuple) and len(leaves) == 1
    return leaves[0] if boxed else value


def _read(stored: Mapping[str, Stored], likes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a moment as arrays, by the names of the parameters."""
    arrays = {}
    for name, leaf in stored.items():
        try:
            arrays[name] = leaf.decode(likes.get(name))
        except ValueError:  # of unknown shape
            continue
    return arrays


def name_leaves(tree: Any) -> dict[str, Any]:
    """Return the paths of the leaves of a tree by their names, such as "dense/kernel".

    A box of Flax has no name: that of `kernel.value` is "kernel".

    Args:
      tree: a pytree like the parameters.

    Raises:
      ValueError: if two have one name.
    """
    paths = [path for path, _ in tree_leaves_with_path(tree)]
    named = {}
    for path, kept in zip(paths, drop_boxes(paths), strict=True):
        name = keystr(tuple(kept), simple=True, separator="/")
        if name in named:
            raise ValueError(
                f"two parameters are named {name!r}, at {keystr(path)} and "
                f"{keystr(named[name])}: rename one."
            )
        named[name] = path
    return named


def by_name(params: Any) -> dict[str, Any]:
    """Return the leaves of a tree by the names of the parameters.

    Args:
      params: a pytree like the parameters.
    """
    leaves = jax.tree.leaves(params)
    return dict(zip(name_leaves(params), leaves, strict=True))


def drop_boxes(paths: list[Any]) -> list[Any]:
    """Drop the last key of a path if it is an attribute `value` with none beside it.

    Flax keeps each parameter in such a box, an nnx.Param or linen's Partitioned. The
    key "value" of a dict is no attribute, and the field `value` of an attention layer
    has others beside it.

    Args:
      paths: the paths of all leaves of a tree.
    """
    value = jax.tree_util.GetAttrKey("value")
    leaves = Counter(path[:n] for path in paths for n in range(len(path)))
    return [
        path[:-1] if path[-1:] == (value,) and leaves[path[:-1]] == 1 else path
        for path in paths
    ]


def rebuild(state: Any, made: Iterator[dict[str, Any]]) -> Any:
    """Return a state with other fields.

    Args:
      state: an optimizer state.
      made: the new fields of each of its nodes, in the order of `iterate_nodes`.
    """
    return _rebuild(state, made, False)


def _rebuild(state: Any, made: Iterator[dict[str, Any]], inside: bool) -> Any:
    if hasattr(state, "_fields"):
        inner, is_node = _split(state)
        own = next(made) if is_node else {}
        return state._replace(
            **own,
            **{name: _rebuild(getattr(state, name), made, True) for name in inner},
        )
    if inside and _is_loose(state):
        return next(made).get("value", state)
    if jax.tree_util.all_leaves([state]):
        return state
    inside = inside or isinstance(state, tuple)
    children, structure = jax.tree.flatten(state, is_leaf=lambda x: x is not state)
    return structure.unflatten([_rebuild(child, made, inside) for child in children])
