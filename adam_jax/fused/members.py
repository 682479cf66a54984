"""Which leaves a kernel can step.

While `update` is traced, stages note how they computed each update (see `recipes`).
Kernels are offered the leaves whose notes are complete and whose operations they know.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics, placement, randomness
from adam_jax.moments.formats import Stored
from adam_jax.moments.trees import as_leaves
from adam_jax.placement import Cut
from adam_jax.recipes.notes import Notes
from adam_jax.recipes.recipe import Origin, Recipe

_FLOATS = (jnp.float32, jnp.bfloat16)


class Arrays(NamedTuple):
    """The stored moments of a leaf: the arrays that a step replaces."""

    mu: Any
    nu: Any
    mu_exponents: Any
    nu_exponents: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """Leaves that share moments, and how they are stepped.

    Attributes:
      recipe: the recipe of the first leaf; the others differ in nothing that matters.
      numbers: the numbers of the parameters in their tree.
      keys: the numbers of the parameters in the tree that is rounded; random bits are a
        hash of them.
      params: the parameters.
      grads: the gradients, float32 or bfloat16.
      before: the moments before the step.
      after: the moments of the new state, as they were traced.
    """

    recipe: Recipe
    numbers: list[int]
    keys: list[int]
    params: list[Any]
    grads: list[Any]
    before: Arrays
    after: Arrays


def find_members(notes: Notes, params: Any, updates: Any) -> list[Member]:
    """Return the leaves whose updates a kernel can compute.

    Args:
      notes: the notes taken while `update` was traced.
      params: the parameters.
      updates: the updates that `update` emitted.
    """
    leaves = jax.tree.leaves(params)
    by_moment: dict[Any, list[tuple[int, Recipe]]] = {}
    places = jax.tree.structure(params)
    for i, update in enumerate(places.flatten_up_to(updates)):
        recipe = notes.recipes.get(update)
        if recipe and _is_whole(recipe, leaves[i], update):
            own = (id(recipe.origin), recipe.leaf)
            by_moment.setdefault(own, []).append((i, recipe))
    members, by_origin = [], {}
    for (origin, _), found in by_moment.items():
        if origin not in by_origin:
            by_origin[origin] = _leaves_of(found[0][1].origin)
        members.append(_join(found, by_origin[origin], leaves))
    return [member for member in members if member]


def _is_whole(recipe: Recipe, param: Any, update: Any) -> bool:
    """Return whether kernels know every line of a recipe, for this parameter."""
    rounding = recipe.rounding
    # A parameter is rounded either by apply_updates, from an update of the parameter's
    # dtype, or by round_to_params. A weight decay must be that of the same parameter.
    if rounding is None:
        lands = update.dtype == numerics.dtype_of(param)
        own = (param,)
    else:
        lands = rounding.param is param and (rounding.cut or ()) == (recipe.cut or ())
        own = (param, rounding.wide)
    if recipe.part and any(recipe.part.param is x for x in own):
        own = (recipe.part.param_buffer,)
    decayed = recipe.decay is None or any(recipe.decay.param is x for x in own)
    return recipe.is_known and lands and decayed and numerics.dtype_of(param) in _FLOATS


def _leaves_of(origin: Origin) -> list[tuple[Any, Arrays, Arrays]]:
    """Return the gradient of each leaf, and its stored moments before and after."""
    structure = jax.tree.structure(origin.grads)
    mu, nu, new_mu, new_nu = (
        as_leaves(stored, structure)
        for stored in (
            Stored(origin.state.mu, origin.state.mu_format),
            Stored(origin.state.nu, origin.state.nu_format),
            origin.mu.stored,
            origin.nu.stored,
        )
    )
    return [
        (grad, _arrays(mu[i], nu[i]), _arrays(new_mu[i], new_nu[i]))
        for i, grad in enumerate(origin.leaves)
    ]


def _arrays(mu: Stored, nu: Stored) -> Arrays:
    return Arrays(mu.values, nu.values, _exponents(mu), _exponents(nu))


def _exponents(stored: Stored) -> Any:
    """Return the exponents of 8-bit codes, or None."""
    exponents = getattr(stored.format, "exponents", None)
    return None if isinstance(exponents, optax.MaskedNode) else exponents


def _join(
    found: list[tuple[int, Recipe]],
    leaves: list[tuple[Any, Arrays, Arrays]],
    params: list[Any],
) -> Member | None:
    """Join the leaves of one moment, if all are there and a kernel can step them."""
    found = sorted(found, key=lambda one: _position(one[1]))
    recipe = found[0][1]
    grad, before, after = leaves[recipe.leaf]
    if recipe.part and recipe.part.grad_buffer is not grad:
        return None  # something in `packed` has changed the gradients
    grads = recipe.grads
    positions = [_position(r) for _, r in found]
    alike = len({key_of(r) for _, r in found}) == 1
    if positions != list(range(len(grads))) or not alike:
        return None
    numbers = [i for i, _ in found]
    keys = [r.rounding.leaf if r.rounding else i for i, r in found]
    grads = [numerics.widen(g) if g.dtype == jnp.float16 else g for g in grads]
    chosen = [params[i] for i in numbers]
    if not _fits(chosen, grads, before, recipe.cut):
        return None
    return Member(recipe, numbers, keys, chosen, grads, before, after)


def _position(recipe: Recipe) -> int:
    return recipe.part.position if recipe.part else 0


def _fits(
    params: Sequence[Any], grads: Sequence[Any], moments: Arrays, cut: Cut | None
) -> bool:
    """Return whether kernels support the shapes, dtypes and places of a group."""
    mu, nu, mu_exponents, nu_exponents = moments
    shapes = [jnp.shape(param) for param in params]
    alone = len(shapes) == 1
    stored = shapes[0] if alone else (sum(map(math.prod, shapes)),)
    return (
        shapes == [jnp.shape(grad) for grad in grads]
        and jnp.shape(mu) == jnp.shape(nu) == stored
        and not any(map(placement.in_host, (*params, *grads, *moments)))
        # Kernels count in 32 bits, and number rows one by one.
        and math.prod(placement.whole_shape(stored, cut)) <= randomness.POSITIONS
        and not any((cut or ())[1:-2])
        and all(numerics.dtype_of(x) in _FLOATS for x in (*params, *grads))
        and (mu.dtype in _FLOATS if mu_exponents is None else alone)
        and (nu.dtype in _FLOATS if nu_exponents is None else alone)
    )


def key_of(recipe: Recipe) -> Any:
    """Return a key that is the same for all recipes in one call of a kernel.

    Args:
      recipe: the recipe of a leaf.
    """

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
        tuple(map(id, recipe.gates)),
    )
