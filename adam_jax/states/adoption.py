"""Continuing an old state with another optimizer, or with the same one elsewhere."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_jax import numerics
from adam_jax.hyperparams import shown
from adam_jax.moments.starts import resuming
from adam_jax.stages.flow import expect_optimizer
from adam_jax.states.buffers import unpack
from adam_jax.states.parts import (
    COUNTS,
    TREES,
    Part,
    iterate_nodes,
    list_fields,
    name_field,
    name_path,
    rebuild,
    take_apart,
)


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

    Call it on the host, not under jit. The state is sharded as `tx.init(params)` is.

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
      ValueError: if no state is found; if the count is missing or negative; if the old
        state has counted steps, but has no weights of them, or other counts for some
        moments than for others that are to share one; if `packed` would share buffers
        in another way, because parameters have several dtypes.
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
    if count is not None and (not isinstance(count, int) or count < 0):
        raise ValueError(f"count must be a number of steps, got {shown(count)}.")
    supply = _Supply(unpack(state), params, count, rename)
    if not supply.parts:
        raise ValueError(
            "found no state of an optimizer: pass what tx.init or tx.update returned. "
            "What was restored without its structure needs that of the old optimizer, "
            "jax.eval_shape(tx.init, params), as a target."
        )
    fresh = tx.init(params)
    parts = [take_apart(node, params) for node in iterate_nodes(unpack(fresh))]
    seen: Counter[Any] = Counter()
    for number, (node, part) in enumerate(
        zip(iterate_nodes(fresh), parts, strict=True)
    ):
        holder = supply.take_moments(part, seen)
        steps = supply.count
        if part.trees:  # what has no old moments has not begun to count
            steps = holder and (supply.count if holder.count is None else holder.count)
        if holder and steps is None:
            raise ValueError(
                "the old state does not say how many steps were taken: pass count, 0 "
                "if nothing in the new optimizer depends on it."
            )
        supply.take_own(part, holder, steps, seen)
        for field, name in TREES.get(type(node).__name__, {}).items():
            if part.found.get(name) and hasattr(node, f"{field}_format"):
                values = _put(params, part.trees[name] | part.found[name])
                with resuming(name, int(steps or 0)):
                    made = next(islice(iterate_nodes(tx.init(values)), number, None))
                own = {f: getattr(made, f) for f in (field, f"{field}_format")}
                if any(not _fits(x, getattr(node, f)) for f, x in own.items()):
                    raise ValueError(
                        "packed() groups parameters by their dtypes, and moments have "
                        "others: adopt the state with the optimizer that it wraps."
                    )
                part.made |= own
                part.weights[name] = getattr(made, "weights", None)
            elif part.found.get(name):
                values = part.trees[name] | part.found[name]
                part.made[field] = _put(getattr(node, field), values, cast=True)
        if holder and "weights" in part.own:
            part.made["weights"] = _weigh(part, holder)
    dropped = {name for name in supply.names() if name not in supply.placed}
    started = {name for part in parts for name in part.started}
    names = (tuple(sorted(x)) for x in (supply.placed, dropped, started))
    return Adopted(rebuild(fresh, iter(parts)), *names)


def set_moments(
    tx: optax.GradientTransformation,
    params: Any,
    mu: Any = None,
    nu: Any = None,
    *,
    count: int,
) -> Any:
    """Return the state of an optimizer with given moments.

    Counts and the weights of bias correction are those after so many steps; all else,
    such as the maximum of amsgrad, starts anew.

    Args:
      tx: the optimizer, of this package or of Optax.
      params: the parameters.
      mu: the first moment, a pytree like the parameters, or None. It may have
        `optax.MaskedNode()` for some leaves, whose moments then start anew.
      nu: the second moment, likewise.
      count: the number of steps taken so far.

    Raises:
      ValueError: if tx has no place for a leaf, or one of another shape; if count is
        negative.
      TypeError: if tx is not an optimizer.

    Example: the next step is the one after 100 equal gradients.

      >>> import adam_jax
      >>> param = jnp.float32(1)
      >>> tx = adam_jax.adam(1e-3)
      >>> state = set_moments(tx, param, 1 - 0.9**100, 1 - 0.999**100, count=100)
      >>> print(f"{tx.update(param, state)[0]:.6f}")
      -0.001000
    """
    given = optax.ScaleByAdamState(count, mu, nu)  # pyright: ignore[reportArgumentType]
    adopted = adopt_state(tx, given, params, count=count)
    if adopted.dropped:
        raise ValueError(
            f"the optimizer has no place for {', '.join(adopted.dropped[:3])}: moments "
            "must have the paths and the shapes of its own."
        )
    return adopted.state


class _Supply:
    """What an old state holds."""

    def __init__(self, state: Any, params: Any, count: int | None, rename: Any):
        """Take all nodes apart, and look for the number of steps."""
        self.parts = [take_apart(node, params) for node in iterate_nodes(state)]
        self.rename = rename or (lambda path: path)
        self.placed: set[str] = set()
        with_moments = sorted(self.parts, key=lambda part: not part.trees)
        counts = [part.count for part in with_moments if part.count is not None]
        if count is None and counts:
            if np.ndim(counts[0]):
                raise ValueError(
                    "the state is a batch of states (vmap): take one, as in "
                    "jax.tree.map(lambda x: x[0], state)."
                )
            count = int(counts[0])
        self.count = count

    def names(self) -> Iterator[str]:
        """Yield the names of all that the state holds."""
        for part in self.parts:
            for name, tree in part.trees.items():
                yield from (f"{name}/{path}" for path in tree)
            yield from (name_field(name) for name in list_fields(part.own))

    def take_moments(self, part: Part, seen: Counter[Any]) -> Part | None:
        """Give a new part the moments of the old state; return who held the first.

        Without any second moment it is given nothing: beside an old count, one that
        starts at 0 would look like tiny gradients, and make steps far too long.

        Args:
          part: the new part.
          seen: how many moments of a name and a path were asked for so far.
        """
        holders: dict[tuple[str, str], tuple[Part, str]] = {}  # and the old path
        for name, tree in part.trees.items():
            for path, start in tree.items():
                place, old = seen[name, path], self.rename(path)
                seen[name, path] += 1
                own = [x for x in self.parts if old in x.trees.get(name, ())]
                for holder in own[place : place + 1]:
                    if np.shape(holder.trees[name][old]) == np.shape(start):
                        holders[name, path] = holder, old
        if "nu" in part.trees and not any(name == "nu" for name, _ in holders):
            holders = {}
        for name, tree in part.trees.items():
            part.found[name] = {}
            for path in tree:
                if (name, path) not in holders:
                    part.started.append(f"{name}/{path}")
                    continue
                holder, old = holders[name, path]
                part.found[name][path] = holder.trees[name][old]
                self.placed.add(f"{name}/{old}")
        counts = {int(x.count) for x, _ in holders.values() if x.count is not None}
        if len(counts) > 1:
            raise ValueError(
                f"moments that were counted {' and '.join(map(str, sorted(counts)))} "
                "steps cannot share a count: give their parameters optimizers of their "
                "own, by optax.multi_transform."
            )
        return next((holder for holder, _ in holders.values()), None)

    def take_own(
        self, part: Part, holder: Part | None, steps: Any, seen: Counter[Any]
    ) -> None:
        """Give a new part what else the old state holds for its kind.

        Args:
          part: the new part.
          holder: the old part whose moments it was given.
          steps: the number of steps taken so far, or None.
          seen: how many parts of a kind were asked for so far.
        """
        like = [x for x in self.parts if x.kind == part.kind][seen[part.kind] :]
        seen[part.kind] += 1
        old = holder if part.trees else next(iter(like), None)
        if old and old.kind != part.kind:
            old = None
        given = list_fields(old.own) if old else {}
        made = {}
        for name, start in list_fields(part.own).items():
            made[name] = start
            if name in given and _fits(given[name], start):
                made[name] = jax.tree.map(_cast, given[name], start)
                self.placed.add(name_field(name))
            elif name in COUNTS and steps is not None:
                made[name] = jnp.full_like(start, steps)
                self.placed.add(name_field(name))
            else:
                part.started.append(name_field(name))
        for name, value in part.own.items():
            if isinstance(value, dict):
                part.made[name] = {key: made[f"{name}/{key}"] for key in value}
            elif name in made:
                part.made[name] = made[name]


def _weigh(part: Part, holder: Part) -> jax.Array:
    """Return the weights of a new `MomentsState`.

    Raises:
      ValueError: if the old state is one, but lacks them.
    """
    rows = list(part.own["weights"])
    for row, name in enumerate(("mu", "nu")):
        if name not in part.trees:
            rows[row] = jnp.array([1, 0], rows[row].dtype)
        elif part.found[name] and "weights" in holder.own and name in holder.trees:
            rows[row] = jnp.asarray(holder.own["weights"][row], rows[row].dtype)
            if holder.count > 0 and rows[row][0] == 0:
                raise ValueError(
                    f"the old state has taken {holder.count} steps, but the weight of "
                    f"its {name} is 0: it was not made by update(). Give it the "
                    "moments of its optimizer by adopt_state."
                )
        elif part.found[name]:
            rows[row] = part.weights[name][row]
    return jnp.stack(rows)


def _fits(value: Any, like: Any) -> bool:
    """Return whether two fields have the same structure and shapes."""
    if jax.tree.structure(value) != jax.tree.structure(like):
        return False
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(like), strict=True)
    return all(np.shape(x) == np.shape(y) for x, y in pairs)


def _cast(value: Any, like: Any) -> Any:
    """Return an array in the dtype of another, sharded like it."""
    if not hasattr(like, "dtype") or jnp.issubdtype(like.dtype, jax.dtypes.extended):
        return value
    return _beside(numerics.cast(jnp.asarray(value), like.dtype), like)


def _beside(value: Any, like: Any) -> Any:
    known = isinstance(like, jax.Array) and not isinstance(like, Tracer)
    known = known and not isinstance(value, Tracer)
    return jax.device_put(value, like.sharding) if known else value


def _put(tree: Any, values: dict[str, Any], cast: bool = False) -> Any:
    """Return a tree with other leaves, by path, where there are any."""

    def put(path, leaf):
        value = values.get(name_path(path))
        if value is None:
            return leaf
        return _cast(value, leaf) if cast else _beside(numerics.widen(value), leaf)

    return jax.tree_util.tree_map_with_path(put, tree)
