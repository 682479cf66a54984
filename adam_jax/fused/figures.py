"""The figures of `record` that a kernel sums while it steps, instead of XLA."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.figures.measuring import leaves_of, measure_sums, name_sums
from adam_jax.figures.native_sums import find_factors, find_large
from adam_jax.fused.kernels import Asked, stand_in_for_sums
from adam_jax.fused.plan import Call, Operands
from adam_jax.native.calls import SUMS
from adam_jax.recipes.recipe import Watch
from adam_jax.stages.gathering import MomentsState
from adam_jax.states.reading import find_nodes

_OF_GRADS = {"square grad", "nonfinite"}
_OF_PARAMS = {"square param", "swallowed"}
_OF_MOMENTS = {"signal_to_noise", "has_signal"}


class Watched(NamedTuple):
    """The arrays of a `Reading`, a pytree.

    Attributes:
      asked: which sums are asked for, of the leaves in order.
      looked: true once all figures are known, those of the kernel too, which are known
        after the step: not to be waited for.
      others_looked: the same of the figures that the kernel does not sum.
      sums: for each leaf, an array that stands for what the kernel will sum.
      figures: the figures, computed from it.
    """

    asked: Asked
    looked: Any
    others_looked: Any
    sums: list[Any]
    figures: list[Any]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The figures of one `record`: the part that is fixed when a step is traced.

    Attributes:
      leaves: for each leaf, the number of its call, and its own among those there.
      replaces: the numbers of the figures among the leaves of the new state.
    """

    leaves: list[tuple[int, int]]
    replaces: list[int]

    @property
    def calls(self) -> set[int]:
        """The numbers of the calls that sum them."""
        return {call for call, _ in self.leaves}

    def ask(self, asked: Asked, number: int, call: Call) -> Asked:
        """Return what to ask of one of the calls.

        Args:
          asked: that of `Watched`.
          number: the number of the call.
          call: the call.
        """
        large = [jnp.float32(jnp.inf) for group in call.numbers for _ in group]
        for (i, own), least in zip(self.leaves, asked.large, strict=True):
            if i == number:
                large[own] = least
        return Asked(asked.wanted, large)


def find_readings(
    watches: Sequence[Watch],
    calls: Sequence[Call],
    operands: Sequence[Operands],
    updates: Any,
    state: Any,
) -> tuple[list[Reading], list[Watched]]:
    """Find the figures that kernels can sum.

    Args:
      watches: how figures are measured.
      calls: the calls of the kernel.
      operands: the arrays of each.
      updates: the updates that `update` emitted, in the places of the parameters.
      state: the new state that `update` returned.

    Returns:
      The readings, and the arrays of each.
    """
    # Before 0.10, JAX refuses in a shard_map what varies beside what does not.
    if jax.__version_info__ < (0, 10) and any(map(_is_in_mesh, updates)):
        return [], []
    numbers = {id(update): i for i, update in enumerate(updates)}
    leaves: dict[int, tuple[int, int]] = {}
    for i, call in enumerate(calls):
        own = [number for group in call.numbers for number in group]
        leaves |= {number: (i, k) for k, number in enumerate(own)}
    places = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(state))}
    readings, watched, taken = [], [], set()
    for watch in watches:
        found = [
            leaves.get(numbers.get(id(update), -1))
            for update in jax.tree.leaves(watch.updates)
        ]
        if found and all(found):
            known = [leaf for leaf in found if leaf]
            one = _read(watch, known, operands, places)
            if one and not one[0].calls & taken:  # or another record comes first
                taken |= one[0].calls
                readings.append(one[0])
                watched.append(one[1])
    return readings, watched


def _is_in_mesh(x: Any) -> bool:
    return not jax.typeof(x).sharding.mesh.empty


def _read(
    watch: Watch,
    found: list[tuple[int, int]],
    operands: Sequence[Operands],
    places: Mapping[int, int],
) -> tuple[Reading, Watched] | None:
    """Return the reading of a record, if the kernel can sum any of its figures."""
    step = watch.step()
    leaves, named = leaves_of(step), name_sums(watch.figures, step)
    members = [_members(operands[call])[own] for call, own in found]
    counts = [operands[call].counts.moments for call, _ in found]
    summed = _summed(watch, step, members, counts)
    slots = {
        name: [id(x) for x in jax.tree.leaves(watch.found[name])]
        for name in watch.figures
    }
    kept = all(slot in places for own in slots.values() for slot in own)
    if len(leaves) != len(found) or not kept:
        return None
    own = [name for name, sums in named.items() if summed.issuperset(sums)]
    keys = {key for name in own for key in named[name]}
    if not keys:
        return None
    others, others_looked = {}, jnp.bool_(True)
    if len(own) < len(named):
        others, others_looked = watch.look([x for x in named if x not in own])
    sums = [stand_in_for_sums(member.read) for member in members]
    needed = [name for name in SUMS if name in keys]
    columns = np.array([SUMS.index(name) for name in needed])
    scaled = []
    for leaf, row in zip(leaves, sums, strict=True):
        factors = find_factors(leaf, needed)
        products = jnp.where(factors == 0, 0, row[columns] * factors)
        scaled.append(dict(zip(needed, products, strict=True)))
    measured = measure_sums(
        {name: watch.figures[name] for name in own},
        step,
        scaled,
        axis_name=watch.axis_name,
    )
    measured = jax.tree.map(
        lambda new, old: jnp.where(watch.wanted, new.astype(old.dtype), old),
        measured,
        {name: watch.old[name] for name in own},
    )
    both = {**measured, **others}
    reading = Reading(found, [places[slot] for name in both for slot in slots[name]])
    return reading, Watched(
        asked=Asked(watch.wanted, [find_large(leaf, keys) for leaf in leaves]),
        looked=watch.looked,
        others_looked=others_looked,
        sums=sums,
        figures=[x for name in both for x in jax.tree.leaves(both[name])],
    )


class _Member(NamedTuple):
    """A leaf that the kernel steps: its arrays, and all that its sums depend on."""

    param: Any
    grad: Any
    read: list[Any]


def _members(operands: Operands) -> list[_Member]:
    """Return the leaves of a call, in order."""
    return [
        _Member(param, grad, [operands.take, grad, *params, moments.mu])
        for params, grads, moments, _ in operands.groups
        for param, grad in zip(params, grads, strict=True)
    ]


def _summed(
    watch: Watch, step: Any, members: Sequence[_Member], counts: Sequence[Any]
) -> set[Any]:
    """Return which sums the kernel takes over the very arrays that are measured."""

    def are_those(tree, arrays):
        leaves = jax.tree.leaves(tree)
        alike = (x is y for x, y in zip(leaves, arrays, strict=False))
        return len(leaves) == len(arrays) and all(alike)

    summed = {*SUMS}
    if not are_those(watch.params, [member.param for member in members]):
        summed -= _OF_PARAMS
    if not are_those(watch.grads, [member.grad for member in members]):
        summed -= _OF_GRADS
    before = find_nodes(watch.before, MomentsState)
    both = [x for x in step.moments if x.mu is not None and x.nu is not None]
    alone = len(before) == len(step.moments) == len(both) == 1
    if not alone or any(count is not before[0].count for count in counts):
        summed -= _OF_MOMENTS
    return summed
