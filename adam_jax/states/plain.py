"""States that were restored without their structure, as dicts and lists."""

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.moments.blocks import EightBit
from adam_jax.moments.formats import Dense, Stored
from adam_jax.moments.maxima import AxisMaxima
from adam_jax.moments.sharing import Factored
from adam_jax.stages.correction import RunningMaxState
from adam_jax.stages.gathering import MomentsState
from adam_jax.stages.holding import NuTraceState, TraceState
from adam_jax.states.parts import MOMENTS, by_name

# What a node with moments has at most, beside their formats.
_MOMENTS = {*MOMENTS, "sum_of_squares"}
_KNOWN = _MOMENTS | {"count", "weights"}
_READERS = {"exponents": EightBit, "columns": Factored, "others": AxisMaxima}
_NODES: dict[str, Any] = {
    x.__name__: x for x in (MomentsState, TraceState, NuTraceState, RunningMaxState)
}


def find_plain_nodes(tree: Any) -> tuple[list[Any], list[str]]:
    """Return the nodes of a state, and the names of the other arrays beside them.

    Orbax restores dicts and lists where it is given no target, and so does
    `flax.serialization`. Known are nodes that hold moments, by the names of their
    fields, and counts of schedules. (A `mean_over` cannot be told from an array.)

    Args:
      tree: nested dicts and lists of arrays.
    """
    nodes: list[Any] = []
    others: list[str] = []

    def visit(tree: Any, path: str) -> None:
        if isinstance(tree, list | tuple):
            tree = {str(number): child for number, child in enumerate(tree)}
        if not isinstance(tree, Mapping):
            others.extend([path] if jax.tree.leaves(tree) else [])
        elif node := _recognize(tree):
            nodes.append(node)
        else:
            for name, child in tree.items():
                visit(child, f"{path}/{name}" if path else str(name))

    visit(tree, "")
    return nodes, others


def _recognize(tree: Mapping[str, Any]) -> Any:
    """Return the node that a dict stands for; None if it is none."""
    if [*tree] in (["count"], ["steps"]):
        (count,) = tree.values()
        return optax.ScaleByScheduleState(count) if _counts(count) else None
    moments = {name: _name(tree[name]) for name in _MOMENTS & {*tree}}
    moments = {name: values for name, values in moments.items() if values}
    formats = {f"{name}_format" for name in _MOMENTS}
    # A layer of a model may be called "mu", too, and a parameter "count".
    if not moments or {*tree} - _KNOWN - formats or [*moments] == ["mu"] == [*tree]:
        return None
    if "count" in tree and not _counts(tree["count"]):
        return None
    if "weights" in tree and (
        np.shape(tree["weights"])[-2:] != (2, 2) or {*moments} - {"mu", "nu"}
    ):
        return None
    stored = {}
    for name, values in moments.items():
        beside = tree.get(f"{name}_format") or {}
        reader = next((x for key, x in _READERS.items() if key in beside), Dense)
        kept = {field: _name(beside[field]) for field in reader._fields}
        stored[name] = join_stored(reader, values, kept)
    others = {name: tree[name] for name in ("count", "weights") if name in tree}
    kind = "ScaleByRssState" if "sum_of_squares" in moments else "ScaleByAdamState"
    return make_node("MomentsState" if "weights" in others else kind, stored, others)


def make_node(
    kind: str, moments: Mapping[str, Stored], others: Mapping[str, Any]
) -> Any:
    """Return a node of a state.

    Args:
      kind: the name of its class. Those of Optax are only named alike.
      moments: those that it holds, by its fields.
      others: its other fields.
    """
    fields = dict(others)
    for field, stored in moments.items():
        fields |= {field: stored.values, f"{field}_format": stored.format}
    node = _NODES.get(kind) or namedtuple(kind, fields)
    return node(**dict.fromkeys(node._fields) | fields)


def join_stored(
    reader: Any, values: dict[str, Any], beside: dict[str, dict[str, Any]]
) -> Stored:
    """Return a moment of arrays by the names of their parameters.

    Args:
      reader: the class of its format's reader.
      values: as in `Stored`.
      beside: what the reader keeps, by its fields. A parameter may lack it, and of
        "w" it may keep several arrays, "w/0", "w/1" and so on.
    """
    holes = dict.fromkeys(values, optax.MaskedNode())
    kept = (_gather(beside[field], values) for field in reader._fields)
    return Stored(values, reader(*(holes | named for named in kept)))


def _gather(named: Mapping[str, Any], owners: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept beside each owner: an array, or a tuple of them."""
    kept: dict[str, Any] = {}
    several: dict[str, dict[int, Any]] = {}
    for name, x in named.items():
        owner, _, number = name.rpartition("/")
        if name not in owners and owner in owners and number.isdigit():
            several.setdefault(owner, {})[int(number)] = x
        else:
            kept[name] = x
    return kept | {
        owner: tuple(x for _, x in sorted(numbered.items()))
        for owner, numbered in several.items()
    }


def _counts(x: Any) -> bool:
    """Return whether it may count steps. (Flax counts random keys in uint32.)"""
    return jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.signedinteger)


def _name(tree: Any) -> dict[str, Any]:
    """Return arrays by the names of their parameters, without the boxes of Flax."""
    named = by_name(tree)
    box = "/value"
    if named and all(name.endswith(box) for name in named):
        named = {name.removesuffix(box): x for name, x in named.items()}
    return named
