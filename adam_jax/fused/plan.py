"""Which leaves of a traced step the native kernel takes, and with what.

While `update` is traced, stages note how each update came about (`stages.recipes`).
What is noted in full, of moments that the kernel knows, it can compute in place of what
was traced: the new parameter, and the new moments that lie in the new state.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax import numerics
from adam_jax.fused.cpu import native
from adam_jax.hyperparams import at
from adam_jax.moments.blocks import EightBitFormat
from adam_jax.moments.formats import DenseFormat, Stored
from adam_jax.moments.moment import as_leaves
from adam_jax.stages.recipes import Notes, Origin, Recipe

_FLOATS = (jnp.float32, jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the kernel: what is fixed when a step is traced.

    Attributes:
      places: for each group of leaves its number among the leaves of the moments.
      numbers: for each group the numbers of its parameters.
      keys: for each group the numbers of its parameters in the tree that is rounded.
      slots: for each group where its new moments lie among the leaves of the new state:
        mu, nu and the exponents of either, None where it has none.
      decays: whether these parameters decay.
      options: further arguments of `native.call`.
    """

    places: list[int]
    numbers: list[list[int]]
    keys: list[list[int]]
    slots: list[tuple[int | None, ...]]
    decays: bool
    options: dict[str, Any]

    def replaces(self, params: int) -> list[int]:
        """Return the numbers of the leaves that it makes, as `run` does.

        Args:
          params: how many parameters there are.
        """
        numbers = [i for group in self.numbers for i in group]
        slots = [i for group in self.slots for i in group if i is not None]
        return [*numbers, *(params + i for i in slots)]

    def run(self, operands: dict[str, Any], params: int) -> dict[int, Any]:
        """Call the kernel.

        Args:
          operands: the arrays of this call, as `make_plan` returned them.
          params: how many parameters there are.

        Returns:
          What it makes by number: parameters, and after them the leaves of the state.
        """
        groups = [
            native.Group(place, keys, *arrays)
            for place, keys, arrays in zip(
                self.places, self.keys, operands["groups"], strict=True
            )
        ]
        scalars = native.Scalars(**operands["scalars"])
        counts = native.Counts(*operands["counts"])
        decays = [self.decays] * len(groups)
        stepped = native.call(groups, scalars, counts, decays=decays, **self.options)
        made = [
            x
            for group in stepped
            for x in (group.mu, group.nu, group.mu_exponents, group.nu_exponents)
            if x is not None
        ]
        leaves = [*(x for group in stepped for x in group.params), *made]
        return dict(zip(self.replaces(params), leaves, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class _Member:
    """A group of leaves that share moments, and how they are stepped."""

    recipe: Recipe
    numbers: list[int]
    keys: list[int]
    arrays: tuple[Any, ...]
    slots: tuple[int | None, ...]


def make_plan(
    notes: Notes, params: Any, updates: Any, state: Any
) -> tuple[list[Call], list[dict[str, Any]]]:
    """Decide what the kernel takes.

    Args:
      notes: what was noted while `update` was traced.
      params: the parameters.
      updates: what `update` emitted.
      state: the new state that it returned.

    Returns:
      The calls, and the arrays of each: a pytree.
    """
    slots = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(state))}
    leaves = jax.tree.leaves(params)
    by_moment: dict[Any, list[tuple[int, Recipe]]] = {}
    for i, update in enumerate(_leaves_like(updates, params)):
        recipe = notes.read(update)
        if recipe and _is_whole(recipe, leaves[i], update):
            by_moment.setdefault((id(recipe.origin), recipe.leaf), []).append(
                (i, recipe)
            )
    calls: dict[Any, list[_Member]] = {}
    by_origin: dict[int, Any] = {}
    for (name, _), found in by_moment.items():
        if name not in by_origin:
            by_origin[name] = _leaves_of(found[0][1].origin)
        member = _join(found, by_origin[name], leaves, slots)
        if member:
            calls.setdefault(_key(member.recipe), []).append(member)
    made = [_make_call(members) for members in calls.values()]
    return [call for call, _ in made], [operands for _, operands in made]


def _leaves_like(tree: Any, params: Any) -> list[Any]:
    """Return the leaves of a tree, None for those that are not there."""
    return jax.tree.structure(params).flatten_up_to(tree)


def _is_whole(recipe: Recipe, param: Any, update: Any) -> bool:
    """Return whether the kernel takes every line of a recipe, with this parameter."""
    origin, rounding = recipe.origin, recipe.rounding
    if recipe.learning_rate is None:
        return False
    first, second = origin.first, origin.second
    known = (
        first.accumulator.kernel in ("ema", "nesterov")
        and second.accumulator.kernel == "ema"
        and all(
            type(m.format) in (DenseFormat, EightBitFormat) for m in (first, second)
        )
    )
    # Parameters are rounded as they land: by apply_updates from an update of their own
    # dtype, or by round_to_params. The same ones must have decayed.
    if rounding is None:
        lands = update.dtype == numerics.dtype_of(param)
        own = (param,)
    else:
        lands = rounding.param is param
        own = (param, rounding.wide)
    if recipe.part and any(recipe.part.param is x for x in own):
        own = (recipe.part.buffer,)
    decayed = recipe.decay is None or any(recipe.decay.param is x for x in own)
    return known and lands and decayed and numerics.dtype_of(param) in _FLOATS


def _leaves_of(origin: Origin) -> list[tuple[Any, list[Any], list[Any]]]:
    """Return of each leaf the gradient, and what stores its moments before and after.

    That is mu, nu and the exponents of either, None where there are none.
    """
    structure = jax.tree.structure(origin.grads)
    before = (
        Stored(origin.state.mu, origin.state.mu_format),
        Stored(origin.state.nu, origin.state.nu_format),
    )
    columns = [
        [[one.values, _exponents(one)] for one in as_leaves(stored, structure)]
        for stored in (*before, origin.mu.stored, origin.nu.stored)
    ]
    return [
        (
            grad,
            [mu[0], nu[0], mu[1], nu[1]],
            [new_mu[0], new_nu[0], new_mu[1], new_nu[1]],
        )
        for grad, mu, nu, new_mu, new_nu in zip(
            jax.tree.leaves(origin.grads), *columns, strict=True
        )
    ]


def _position(recipe: Recipe) -> int:
    return recipe.part.position if recipe.part else 0


def _join(
    found: list[tuple[int, Recipe]],
    leaves: list[tuple[Any, list[Any], list[Any]]],
    params: list[Any],
    slots: dict[int, int],
) -> _Member | None:
    """Return the leaves of one moment, if they are all there and fit the kernel."""
    recipe = found[0][1]
    grads, old, new = leaves[recipe.leaf]
    grads = list(recipe.part.grads) if recipe.part else [grads]
    found = sorted(found, key=lambda one: _position(one[1]))
    positions = [_position(r) for _, r in found]
    alike = len({_key(r) for _, r in found}) == 1
    if positions != list(range(len(grads))) or not alike:
        return None
    numbers = [i for i, _ in found]
    own = tuple(None if x is None else slots.get(id(x)) for x in new)
    if any(x is not None and slot is None for x, slot in zip(new, own, strict=True)):
        return None  # somebody has changed the state since
    wide = [numerics.widen(g) if g.dtype == jnp.float16 else g for g in grads]
    chosen = [params[i] for i in numbers]
    if not _fits(chosen, wide, *old):
        return None
    keys = [r.rounding.leaf if r.rounding else i for i, r in found]
    return _Member(recipe, numbers, keys, (chosen, wide, *old), own)


def _exponents(stored: Stored) -> Any:
    """Return what 8-bit codes have beside them, or None."""
    kept = [x for x in stored.format if not isinstance(x, optax.MaskedNode)]
    return kept[0] if kept else None


def _fits(
    params: Sequence[Any],
    grads: Sequence[Any],
    mu: Any,
    nu: Any,
    mu_exponents: Any,
    nu_exponents: Any,
) -> bool:
    """Return whether the kernel knows the shapes and dtypes of a group."""
    shapes = [jnp.shape(param) for param in params]
    alone = len(shapes) == 1
    stored = shapes[0] if alone else (sum(map(math.prod, shapes)),)
    coded = mu_exponents is not None or nu_exponents is not None
    return (
        shapes == [jnp.shape(grad) for grad in grads]
        and jnp.shape(mu) == jnp.shape(nu) == stored
        and all(numerics.dtype_of(x) in _FLOATS for x in (*params, *grads))
        and (mu_exponents is not None or mu.dtype in _FLOATS)
        and (nu_exponents is not None or nu.dtype in _FLOATS)
        and (alone or not coded)
    )


def _key(recipe: Recipe) -> Any:
    """Return what the recipes in one call of the kernel have in common."""

    def name(value):  # floats by value, arrays by identity
        return value if isinstance(value, float) else id(value)

    rounding = recipe.rounding
    return (
        id(recipe.origin),
        recipe.corrected,
        name(recipe.eps),
        name(recipe.eps_root),
        recipe.decay and name(recipe.decay.rate),
        name(recipe.learning_rate),
        rounding and (rounding.seed, id(rounding.count)),
    )


def _make_call(members: list[_Member]) -> tuple[Call, dict[str, Any]]:
    """Return one call, and its arrays."""
    recipe = members[0].recipe
    origin, rounding = recipe.origin, recipe.rounding
    past, first, second = origin.state.count, origin.first, origin.second
    b1, b2 = (
        at(moment.accumulator.hyperparams["decay"], past, jnp.float32)
        for moment in (first, second)
    )
    seen, one = origin.mu.seen, np.float32(1)
    scalars = native.Scalars(
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
    call = Call(
        places=[member.recipe.leaf for member in members],
        numbers=[member.numbers for member in members],
        keys=[member.keys for member in members],
        slots=[member.slots for member in members],
        decays=recipe.decay is not None,
        options={
            "rounding": "nearest" if rounding is None else "stochastic",
            "nesterov": first.accumulator.kernel == "nesterov",
            "seeds": native.Seeds(
                first.format.seed, second.format.seed, rounding.seed if rounding else 0
            ),
        },
    )
    operands = {
        "scalars": scalars._asdict(),
        "counts": [past, rounding.count if rounding else past],
        "groups": [member.arrays for member in members],
    }
    return call, operands
