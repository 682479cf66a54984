"""What an old state holds, and what of it a new one takes."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax import placement
from adam_jax.hyperparams import shown
from adam_jax.states.parts import Loose, Part, by_name, iterate_nodes, take_apart
from adam_jax.states.plain import find_plain_nodes

Found = dict[str, dict[str, tuple[Part, str]]]
"""By the names of a moment and a parameter: who holds it, and its old name there."""


class Supply:
    """What an old state holds, and what of it was given away.

    Attributes:
      count: the number of steps taken, or None if it is not known.
      placed: the names of what was given away.
      started: the names of what was asked for in vain.
    """

    def __init__(self, state: Any, params: Any, count: Any, rename: Any):
        """Take all nodes apart, and look for the number of steps."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state)):
            raise ValueError("the old state is abstract: pass its arrays.")
        self._rename = rename
        named = by_name(params)
        likes = {rename(name): x for name, x in named.items()}
        nodes, self._others = [*iterate_nodes(state)], []
        if all(isinstance(node, Loose) for node in nodes):
            nodes, self._others = find_plain_nodes(state)
        self._parts = [take_apart(node, likes) for node in nodes]
        if not nodes and self._others:
            raise ValueError(
                "found no state of an optimizer: pass what tx.init or tx.update "
                "returned. What was restored without its structure may need that of "
                "the old optimizer, jax.eval_shape(tx.init, params), as a target."
            )
        counts = [x.count for x in self._parts if x.count is not None and x.trees]
        counts += [x.count for x in self._parts if x.count is not None]
        if any(np.ndim(x) for x in counts):
            raise ValueError(
                "the state is a batch of states (vmap): take one, as in "
                "jax.tree.map(lambda x: x[0], state)."
            )
        self.count = int(counts[0]) if counts else None
        if count is not None:
            if isinstance(count, bool) or not 0 <= operator.index(count) < 2**31:
                raise ValueError(
                    f"count must be a number of steps, got {shown(count)}."
                )
            if self.count not in (None, operator.index(count)):
                raise ValueError(
                    f"the old state has counted {self.count} steps: leave out count."
                )
            self.count = operator.index(count)
        self._given: set[tuple[Part, str]] = set()
        self.placed: list[str] = []
        self.started: list[str] = []

    def expect_coordinates(self, parts: Sequence[Part]) -> None:
        """Refuse moments in other coordinates than those of the new state.

        Args:
          parts: all new nodes.

        Raises:
          ValueError: if `within` keeps others in either.
        """
        own, held = ([x.coordinates for x in y] for y in (parts, self._parts))
        if [x for x in own if x] != [x for x in held if x]:
            raise ValueError(
                "moments inside within(), as in soap(), are in coordinates of their "
                "own, and the old state has others than the new one: go on with the "
                "optimizer that made it, without rename, or start from tx.init(params)."
            )

    def list_dropped(self) -> Iterator[str]:
        """Yield the names of what was not given away."""
        for part in self._parts:
            for name, tree in part.trees.items():
                names = (f"{name}/{leaf}" for leaf in tree)
                yield from (x for x in names if (part, x) not in self._given)
            yield from (x for x in part.own if (part, x) not in self._given)
        yield from self._others

    def take_moments(self, part: Part) -> Found:
        """Give moments away.

        A parameter without a second moment is given nothing: beside an old count, one
        that starts at 0 would look like tiny gradients, and make steps far too long.

        Args:
          part: the node that needs them.
        """
        found: Found = {name: {} for name in part.trees}
        for leaf in {leaf: None for tree in part.trees.values() for leaf in tree}:
            old = self._rename(leaf)
            wanted = [name for name, tree in part.trees.items() if leaf in tree]
            both = [name for name in wanted if name in ("mu", "nu")]
            groups = [both, *([name] for name in wanted if name not in both)]
            for names in groups:
                holder, given = self._find(part, leaf, old, names)
                for name in names:
                    if holder is None or name not in given:
                        self.started.append(f"{name}/{leaf}")
                        continue
                    found[name][leaf] = holder, old
                    self._give(holder, f"{name}/{old}")
        return found

    def _find(
        self, new: Part, leaf: str, old: str, names: list[str]
    ) -> tuple[Part | None, list[str]]:
        """Return who has moments of a parameter that belong together, and which."""
        held = [(x, self._can_give(x, new, leaf, old, names)) for x in self._parts]
        # Who holds most of them; among equals one of the same kind, the first.
        holder, given = max(
            held, key=lambda x: (len(x[1]), x[0].kind == new.kind), default=(None, [])
        )
        return (None, []) if "nu" in names and "nu" not in given else (holder, given)

    def _can_give(
        self, old: Part, new: Part, leaf: str, name: str, moments: list[str]
    ) -> list[str]:
        """Return which of some moments an old node has, as the new one needs them."""

        def fits(x, y):
            return np.shape(x) == np.shape(y) and (
                jnp.iscomplexobj(y) or not jnp.iscomplexobj(x)
            )

        return [
            moment
            for moment in moments
            if name in old.trees.get(moment, ())
            and (old, f"{moment}/{name}") not in self._given
            and fits(old.trees[moment][name], new.trees[moment][leaf])
        ]

    def count_of(self, found: Found) -> int | None:
        """Return the number of steps that moments have counted; None without any.

        Args:
          found: what `take_moments` returned.

        Raises:
          ValueError: if nobody knows it, or if some have counted others.
        """
        holders = {x for own in found.values() for x, _ in own.values()}
        own = [self.count if x.count is None else int(x.count) for x in holders]
        known = {count for count in own if count is not None}
        if None in own:
            raise ValueError(
                "the old state does not say how many steps were taken: pass count, 0 "
                "if nothing in the new optimizer depends on it."
            )
        if len(known) > 1:
            raise ValueError(
                f"moments that were counted {' and '.join(map(str, sorted(known)))} "
                "steps cannot share a count: give their parameters optimizers of their "
                "own, by optax.multi_transform."
            )
        return next(iter(known), None)

    def take_own(
        self, part: Part, alike: Sequence[Part], steps: int | None
    ) -> dict[str, Any]:
        """Give away what is no moment; return the new fields of a node.

        Args:
          part: the node that needs it.
          alike: all new nodes of its kind, from the outside in.
          steps: the number of steps taken so far, if it has begun to count.
        """
        held = [x for x in self._parts if x.kind == part.kind]
        place = len(held) - len(alike) + alike.index(part)  # from the inside out
        old = held[place] if place >= 0 and not part.trees else None
        made = {}
        for name, start in part.own.items():
            value, keys = _find_field(old, name)
            changed = old and name.removeprefix("hyperparams/") in (
                old.scheduled - part.scheduled
            )
            if old and not changed and _fits(value, start):
                made[name] = _copy_fields(value, start)
                self._given |= {(old, key) for key in keys}
                self.placed.append(name)
            elif name == "count" and part.counts and steps is not None:
                made[name] = copy_like(steps, start)
                self.placed.append(name)
            else:
                self.started.append(name)
        if "count" in made:
            self._given |= {(x, "count") for x in self._parts if x.counts}
        return part.put(made)

    def _give(self, part: Part, name: str) -> None:
        self._given.add((part, name))
        self.placed.append(name)


def _find_field(part: Part | None, name: str) -> tuple[Any, list[str]]:
    """Return a field of a node, and its names there.

    Where it is a list or a tree of Flax, `read_state` returns a dict of its
    arrays, and they are fields of their own.

    Args:
      part: the node.
      name: of the field.
    """
    own = part.own if part else {}
    if name in own:
        return own[name], [name]
    items = {key: x for key, x in own.items() if key.startswith(f"{name}/")}
    return {key.removeprefix(f"{name}/"): x for key, x in items.items()}, [*items]


def _fits(value: Any, like: Any) -> bool:
    """Return whether two fields have arrays of the same names and shapes."""
    shapes = [
        {name: np.shape(x) for name, x in by_name(field).items()}
        for field in (value, like)
    ]
    return shapes[0] == shapes[1]


def _copy_fields(value: Any, like: Any) -> Any:
    """Return a copy of a field, in the containers of another."""
    named = by_name(value)
    copies = [copy_like(named[name], x) for name, x in by_name(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), copies)


def copy_like(value: Any, like: Any) -> Any:
    """Return a copy of an array, in the dtype of another, and where that is.

    Args:
      value: the array.
      like: the other one.
    """
    dtype = getattr(like, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return value
    return placement.copy_beside(value, like, dtype)
