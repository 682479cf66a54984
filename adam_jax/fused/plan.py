"""The calls of kernels in a traced step, and their arrays.

For a leaf whose recipe is complete and whose moments a kernel knows, the kernel
replaces the traced computation. It computes the new parameter, and the new moments in
the new state.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_jax import placement, randomness
from adam_jax.fused.dispatch import kernels
from adam_jax.fused.kernels import Asked, Counts, Group, Options, Scalars, Seeds
from adam_jax.fused.members import Arrays, Member, find_members, key_of
from adam_jax.hyperparams import at
from adam_jax.moments.accumulators import look_ahead
from adam_jax.recipes.notes import Notes
from adam_jax.recipes.recipe import Recipe


class Operands(NamedTuple):
    """The arrays of one call of the kernel, a pytree.

    Attributes:
      groups: for each group of leaves, its parameters, gradients and moments, and
        where it starts in the leaf that it is a piece of.
      scalars: the scalars for the kernel.
      counts: the step counts for the kernel.
      take: bool scalar, whether the step is taken.
    """

    groups: list[tuple[list[Any], list[Any], Arrays, Any]]
    scalars: Scalars
    counts: Counts
    take: Any


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the kernel: the part that is fixed when a step is traced.

    Attributes:
      places: for each group of leaves, its number among the leaves of the moments.
      keys: for each group, the numbers of its parameters in the tree that is rounded.
      numbers: for each group, the numbers of its parameters.
      slots: for each group, the numbers of its moments among the leaves of the new
        state.
      wholes: for each group, the shape of the leaf that it is a piece of, or None.
      options: the options of the kernel.
      platforms: those whose kernels take all of these leaves.
    """

    places: list[int]
    keys: list[list[int]]
    numbers: list[list[int]]
    slots: list[Arrays]
    wholes: list[tuple[int, ...] | None]
    options: Options
    platforms: tuple[str, ...]

    def replaces(self, params: int) -> list[int]:
        """Return the numbers of the leaves that `step` replaces, in its order.

        Args:
          params: the number of parameters.
        """
        numbers = [i for group in self.numbers for i in group]
        slots = [i for group in self.slots for i in group if i is not None]
        return [*numbers, *(params + i for i in slots)]

    def step(
        self, kernel: Any, operands: Operands, params: int, asked: Asked | None
    ) -> tuple[dict[int, Any], Sequence[Any]]:
        """Take the step.

        Args:
          kernel: the module of the kernel.
          operands: the arrays of this call.
          params: the number of parameters.
          asked: what is to be summed beside; None if nothing.

        Returns:
          A dict from number to new leaf; parameters are numbered first, then the leaves
          of the state. And the sums over each leaf, if any were asked for.
        """
        scalars, counts, take = operands[1:]
        given = self._groups(operands), scalars, counts, self.options, take
        if asked is None:
            stepped, sums = kernel.step(*given), ()
        else:
            stepped, sums = kernel.step_and_sum(*given, asked)
        moments = [x for group in stepped for x in group[1:] if x is not None]
        made = [*(x for group in stepped for x in group.params), *moments]
        return dict(zip(self.replaces(params), made, strict=True)), sums

    def _groups(self, operands: Operands) -> list[Group]:
        return [
            Group(place, keys, params, grads, *moments, start, whole)
            for place, keys, (params, grads, moments, start), whole in zip(
                self.places, self.keys, operands.groups, self.wholes, strict=True
            )
        ]


def make_plan(
    notes: Notes, params: Any, updates: Any, state: Any
) -> tuple[list[Call], list[Operands]]:
    """Decide which leaves the kernel steps, and in which calls.

    Args:
      notes: the notes taken while `update` was traced.
      params: the parameters.
      updates: the updates that `update` emitted.
      state: the new state that `update` returned.

    Returns:
      The calls, and the arrays of each.
    """
    slots = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(state))}
    found = []
    for member in find_members(notes, params, updates):
        places = _find_places(notes, member, slots)
        if places:
            found.append((member, places))
    return _make_calls(found)


def _find_places(notes: Notes, member: Member, slots: dict[int, int]) -> Arrays | None:
    """Return the places of new moments in the new state; None if they were changed.

    A guard may choose between them and the old ones if it chooses the updates, too.
    """
    places = []
    for old, new in zip(member.before, member.after, strict=True):
        gates = []
        while new is not None and (choice := notes.choices.get(new)):
            if choice.old is not old:
                return None
            new, gates = choice.chosen, [*gates, choice.gate]
        place = None if new is None else slots.get(id(new))
        passed = list(map(id, gates)) == list(map(id, member.recipe.gates))
        if new is not None and (place is None or not passed):
            return None
        places.append(place)
    return Arrays(*places)


def _make_calls(
    found: list[tuple[Member, Arrays]],
) -> tuple[list[Call], list[Operands]]:
    """Return the calls that step these leaves, and the arrays of each call."""
    by_key: dict[Any, list[tuple[Member, Arrays]]] = {}
    for member, places in found:
        arrays = member.params, member.grads, *member.before
        group = Group(member.recipe.leaf, member.keys, *arrays)
        takers = tuple(name for name, k in kernels().items() if k.takes(group))
        key = takers, key_of(member.recipe)
        by_key.setdefault(key, []).append((member, places))
    calls, operands = [], []
    for (platforms, _), alike in by_key.items():
        members = [member for member, _ in alike]
        recipe = members[0].recipe
        calls.append(
            Call(
                places=[member.recipe.leaf for member in members],
                keys=[member.keys for member in members],
                numbers=[member.numbers for member in members],
                slots=[places for _, places in alike],
                wholes=[_piece_of(member)[1] for member in members],
                options=_options(recipe),
                platforms=platforms,
            )
        )
        groups = [
            (member.params, member.grads, member.before, _piece_of(member)[0])
            for member in members
        ]
        past, rounding = recipe.origin.state.count, recipe.rounding
        counts = Counts(past, rounding.count if rounding else past)
        take = jnp.all(jnp.array([True, *recipe.gates]))
        operands.append(Operands(groups, _scalars(recipe), counts, take))
    return calls, operands


def _piece_of(member: Member) -> tuple[Any, tuple[int, ...] | None]:
    """Return where a piece of a leaf starts in it, and the shape of that leaf."""
    cut, shape = member.recipe.cut, jnp.shape(member.before.mu)
    if not cut:
        return None, None
    whole = placement.whole_shape(shape, cut)
    return randomness.find_position(placement.find_starts(shape, cut), whole), whole


def _options(recipe: Recipe) -> Options:
    """Return the options of the kernel for a recipe."""
    first, second = recipe.origin.first, recipe.origin.second
    seed = recipe.rounding.seed if recipe.rounding else 0
    return Options(
        decays=recipe.decay is not None,
        rounding="stochastic" if recipe.rounding else "nearest",
        seeds=Seeds(first.format.seed, second.format.seed, seed),
        nesterov=first.accumulator.read is look_ahead,
    )


def _scalars(recipe: Recipe) -> Scalars:
    """Return the scalars of a step for a recipe, computed as the stages do."""
    origin, past = recipe.origin, recipe.origin.state.count
    b1, b2 = (
        at(moment.accumulator.hyperparams["decay"], past, jnp.float32)
        for moment in (origin.first, origin.second)
    )
    seen, one = origin.mu.seen, jnp.ones([], jnp.float32)
    return Scalars(
        b1=b1,
        one_minus_b1=1 - b1,
        b2=b2,
        one_minus_b2=1 - b2,
        learning_rate=recipe.learning_rate,
        eps=recipe.eps,
        eps_root=recipe.eps_root,
        weight_decay=recipe.decay.rate if recipe.decay else 0.0,
        mu_weight=seen if "mu" in recipe.corrected else one,
        nu_weight=origin.nu.seen if "nu" in recipe.corrected else one,
        look_ahead=seen / (b1 * seen + (1 - b1)),
    )
