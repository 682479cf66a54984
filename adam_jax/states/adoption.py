"""Continuing an old state with another optimizer, or with the same one elsewhere."""

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_leaves_with_path

from adam_jax import placement
from adam_jax.moments.starts import Resumed, expect_weight, resuming
from adam_jax.stages.flow import expect_optimizer
from adam_jax.states.buffers import Packed, unpack, wrap
from adam_jax.states.foreign import ForeignState
from adam_jax.states.parts import (
    TREES,
    Part,
    by_name,
    iterate_nodes,
    rebuild,
    take_apart,
)
from adam_jax.states.reading import is_hole
from adam_jax.states.supply import Found, Supply, copy_like


class Adopted(NamedTuple):
    """What `adopt_state` made of an old state. Names are such as "mu/dense/kernel".

    Attributes:
      state: the state of the new optimizer.
      placed: what it took from the old state.
      dropped: what the old state held beside that.
      started: what the new state holds beside that: it starts anew.
    """

    state: Any
    placed: tuple[str, ...]
    dropped: tuple[str, ...]
    started: tuple[str, ...]


def adopt_state(
    tx: optax.GradientTransformation,
    state: Any,
    params: Any,
    *,
    count: int | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Adopted:
    """Continue an old state with another optimizer.

    Both may be of this package or of Optax. Moments, traces, maxima, counts and
    hyperparameters are found by what they mean, wherever they stand, and stored as the
    new optimizer stores them; narrower formats round to nearest. So a run may change
    its format or its schedules, gain or lose `record`, a guard, a mask, `packed`,
    `MultiSteps` or `inject_hyperparams`, come from Optax or go back to it.

    Two optimizers must mean the same by a moment. In Optax and here those of one name
    do. (A maximum of raw moments, as in PyTorch, is not one of corrected moments.)

    Moments of a parameter that start anew beside others that go on have no correction
    of their own: for some hundred steps its updates may be up to seven times as long.

    Call it on the host, not under jit; if parameters are on several processes, on all.
    The state is sharded as `tx.init(params)` is, and shares no buffers with the old
    one. Hyperparameters in the state of `inject_hyperparams` go on as they are there,
    unless they follow a schedule.

    Args:
      tx: the optimizer to go on with.
      state: the old state, or anything that holds one.
      params: the parameters to go on with.
      count: the number of steps that the old optimizer took; needed if its state has no
        count, such as that of `optax.rmsprop` without a schedule.
      rename: a function from the path of a parameter, such as "dense/kernel", to its
        path in the old state, or to None to start its moments anew; None means that
        paths are the same. A moment of another shape is not placed.

    Raises:
      ValueError: if no state is found; if one of the two has moments inside `within`,
        as those of soap, and the other has none in the same coordinates; if the count
        is missing, or not that of the state; if the old state has counted steps, but
        has no weights of them, or other counts for some moments than for others that
        are to share one; if two parameters have one name; if moments are in pieces on
        several processes, and params on one.
      TypeError: if tx is not an optimizer.

    Example: from Optax to bfloat16 moments, behind a guard.

      >>> import adam_jax
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
      >>> old = optax.adam(1e-3)
      >>> _, state = old.update(params, old.init(params))
      >>> tx = adam_jax.skip_nonfinite(adam_jax.adam(1e-3, mu_dtype="bfloat16"))
      >>> adopted = adopt_state(tx, state, params)
      >>> print(adopted.placed)
      ('count', 'mu/b', 'mu/w', 'nu/b', 'nu/w')
      >>> print(adopted.started, adopted.state.inner_state[0].count)
      ('in_a_row', 'mean_norm', 'skipped', 'taken') 1
    """
    expect_optimizer(tx, "adopt_state")
    fresh = tx.init(params)
    nodes = list(iterate_nodes(fresh))
    parts = [take_apart(x, by_name(params)) for x in iterate_nodes(unpack(fresh))]
    supply = Supply(unpack(state), params, count, rename or (lambda name: name))
    supply.expect_coordinates(parts)
    made = []
    for number, (node, part) in enumerate(zip(nodes, parts, strict=True)):
        found = supply.take_moments(part)
        # What has no old moments has not begun to count.
        steps = supply.count_of(found) if part.trees else supply.count
        own = supply.take_own(part, [x for x in parts if x.kind == part.kind], steps)
        own |= _make_moments(tx, params, number, node, part, found, steps)
        made.append({name: _like(getattr(node, name), x) for name, x in own.items()})
    # What lies on one process alone, such as a count, cannot be saved by several.
    adopted = placement.spread_like(params, rebuild(fresh, iter(made)))
    lists = supply.placed, supply.list_dropped(), supply.started
    return Adopted(adopted, *(tuple(sorted({*x})) for x in lists))


def set_moments(
    tx: optax.GradientTransformation,
    params: Any,
    mu: Any = None,
    nu: Any = None,
    *,
    count: int,
) -> Any:
    """Return the state of an optimizer with given moments.

    It is the inverse of `load_moments`. Counts and the weights of bias correction are
    those after so many steps; all else, such as the maximum of amsgrad, starts anew.

    Args:
      tx: the optimizer, of this package or of Optax.
      params: the parameters.
      mu: the first moment, a pytree like the parameters, or None. It may have
        `optax.MaskedNode()` for some leaves, whose moments then start anew.
      nu: the second moment, likewise.
      count: the number of steps taken so far.

    Raises:
      ValueError: if tx has no place for a leaf, or one of another shape, or needs nu;
        if count is not a number of steps.
      TypeError: if tx is not an optimizer.

    Example: the next step is the one after 100 equal gradients.

      >>> import adam_jax
      >>> param = jnp.float32(1)
      >>> tx = adam_jax.adam(1e-3)
      >>> state = set_moments(tx, param, 1 - 0.9**100, 1 - 0.999**100, count=100)
      >>> print(f"{tx.update(param, state)[0]:.6f}")
      -0.001000
    """
    given: Any = ForeignState(mu=mu, nu=nu)
    adopted = adopt_state(tx, given, params, count=count)
    if adopted.dropped:
        raise ValueError(
            f"the optimizer has no place for {', '.join(adopted.dropped[:3])}: moments "
            "must have the names and shapes of its own, and mu needs nu beside it."
        )
    return adopted.state


def _make_moments(
    tx: optax.GradientTransformation,
    params: Any,
    number: int,
    node: Any,
    part: Part,
    found: Found,
    steps: int | None,
) -> dict[str, Any]:
    """Return the fields of a new node that hold moments.

    Args:
      tx: the new optimizer.
      params: the parameters.
      number: which of its nodes it is.
      node: the node of a new state.
      part: the same, taken apart.
      found: what `take_moments` returned.
      steps: the number of steps taken so far.
    """
    made: dict[str, Any] = {}
    values: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    ours = []  # the fields that a format stores
    for field, name in TREES.get(type(node).__name__, {}).items():
        if not found.get(name):
            continue
        holders = [(part.paths[leaf], *x) for leaf, x in found[name].items()]
        given = {path: x.trees[name][old] for path, x, old in holders}
        kept = {path: x.stored[name][old] for path, x, old in holders}
        values[name] = _spread(given, getattr(node, field), part, field, name)
        stored[name] = {} if isinstance(getattr(node, field), Packed) else kept
        if hasattr(node, f"{field}_format"):
            ours += [field, f"{field}_format"]
        else:
            made[field] = _fill(getattr(node, field), values[name])
    # A node without moments has weights as well: what it passes on counts in full.
    if ours or (steps and hasattr(node, "weights") and not part.trees):
        with resuming(Resumed(values, stored, steps or 0)):
            own = next(islice(iterate_nodes(tx.init(params)), number, None))
        made |= {field: getattr(own, field) for field in ours}
        if hasattr(own, "weights"):
            made["weights"] = _weigh(node, part, found, own.weights)
    return made


def _spread(
    values: dict[Any, Any], tree: Any, part: Part, field: str, name: str
) -> dict[Any, Any]:
    """Return values by their paths in a tree, in whose buffers others may lie.

    Args:
      values: arrays by their paths in a tree without buffers.
      tree: the field of a new node.
      part: the node, taken apart.
      field: which field it is.
      name: which moment it is.
    """
    if not isinstance(tree, Packed):
        return values
    starts = {part.paths[leaf]: x for leaf, x in part.trees[name].items()}
    whole = jax.tree_util.tree_map_with_path(
        lambda path, _: values.get(path, starts[path]), getattr(part.node, field)
    )
    return dict(tree_leaves_with_path(_like(tree, whole)))


def _like(tree: Any, made: Any) -> Any:
    """Return a tree in buffers, if another is."""
    if not isinstance(tree, Packed) or isinstance(made, Packed):
        return made
    leaves = jax.tree.leaves(made, is_leaf=is_hole)

    def fill(group, buffer):
        parts = [leaves[number] for number, _ in group]
        if is_hole(buffer) or len(parts) == 1:
            return buffer if is_hole(buffer) else parts[0]
        return jnp.concatenate([jnp.ravel(part) for part in parts])

    groups = tree.groups()
    return wrap(groups, list(map(fill, groups, tree.in_order())))


def _fill(tree: Any, values: dict[Any, Any]) -> Any:
    """Return a tree with other leaves, where there are any at their paths."""

    def fill(path, leaf):
        if path not in values:
            return leaf
        return placement.beside(copy_like(values[path], leaf), leaf)

    return jax.tree_util.tree_map_with_path(fill, tree)


def _weigh(node: Any, part: Part, found: Found, weights: jax.Array) -> jax.Array:
    """Return the weights of a new `MomentsState`.

    Args:
      node: the node of a new state.
      part: the same, taken apart.
      found: what `take_moments` returned.
      weights: those after as many steps.

    Raises:
      ValueError: if the old state is one, but lacks them.
    """
    rows = []
    for row, name in enumerate(("mu", "nu")):
        holder = next((x for x, _ in found.get(name, {}).values()), None)
        own = weights
        if holder and hasattr(holder.node, "weights"):
            own = holder.node.weights
            expect_weight(own[row], holder.count, name, holder.trees[name])
        elif not holder and name in part.trees:
            own = node.weights
        rows.append(np.asarray(own[row]))
    return copy_like(np.stack(rows), node.weights)
