"""Notes of the stages on how they compute their outputs.

While recipes are collected, each stage notes how its outputs follow from gradients,
moments and parameters. A kernel that supports the whole recipe may then compute an
update and the new moments, instead of the traced operations.

A note belongs to one array object. Any other operation on an array (a custom
transformation, a select, a branch) makes a new array, which has no note. So no note is
ever wrong, and stages need not know the code around them. Inside a branch, notes would
keep its tracers alive and be of no use outside, so none are taken there.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.hyperparams import at
from adam_jax.recipes.recipe import Choice, Flowing, Origin, Part, Recipe, Watch

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # in older jax
    from jax.core import get_opaque_trace_state

# In this order, each at most once.
_LINES = ("decay", "learning_rate", "rounding")


class ByArray:
    """Notes on array objects, by their identity."""

    def __init__(self) -> None:
        """Start empty."""
        self._notes: dict[int, tuple[Any, Any]] = {}

    def __setitem__(self, array: Any, note: Any) -> None:
        """Attach a note to an array, and keep it alive so that its id stays unique."""
        self._notes[id(array)] = array, note

    def get(self, array: Any) -> Any:
        """Return the note on an array, or None."""
        return self._notes.get(id(array), (None, None))[1]


class Notes:
    """All notes on arrays.

    Attributes:
      recipes: notes on updates, each a `Recipe`.
      moments: notes on moments between stages, each a `Flowing`.
      choices: notes on new arrays of a state, each a `Choice`.
      averages: notes on the weights of a state, each True or False.
      watches: how figures of the step are measured.
      trace: the trace in which they are taken.
    """

    def __init__(self) -> None:
        """Start empty, in the current trace."""
        self.trace: Any = get_opaque_trace_state()
        self.recipes: ByArray = ByArray()
        self.moments: ByArray = ByArray()
        self.choices: ByArray = ByArray()
        self.averages: ByArray = ByArray()
        self.watches: list[Watch] = []


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[Notes]:
    """Let stages note how they compute their outputs, if they do not yet."""
    notes = _current() or Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def _current() -> Notes | None:
    """Return the notes that are taken in the current trace, if any are."""
    notes = _notes.get()
    return notes if notes and notes.trace == get_opaque_trace_state() else None


def note_averages(weights: Any, averages: bool) -> None:
    """Note whether a state keeps averages of gradients and of their squares.

    Args:
      weights: the weights of the new state.
      averages: whether it does.
    """
    notes = _current()
    if notes is not None:
        notes.averages[weights] = averages


def note_moments(origin: Origin) -> None:
    """Note which moments `scale_by_moments` emits.

    Args:
      origin: the call.
    """
    notes = _current()
    if notes is None:
        return
    for name, gathered in (("mu", origin.mu), ("nu", origin.nu)):
        for leaf, moment in enumerate(jax.tree.leaves(gathered.flows)):
            notes.moments[moment] = Flowing(origin, name, leaf)


def note_correction(before: Any, after: Any, weight: Any) -> None:
    """Note that a moment was divided by the weight that it has seen.

    Args:
      before: the moment.
      after: the corrected one.
      weight: the divisor.
    """
    notes = _current()
    if notes is None:
        return
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        flowing = notes.moments.get(old)
        if flowing and weight is getattr(flowing.origin, flowing.name).seen:
            notes.moments[new] = flowing._replace(corrected=True)


def note_division(
    updates: Any, mu: Any, nu: Any, past: ArrayLike, eps: Any, eps_root: Any
) -> None:
    """Note that `precondition` has divided moments.

    Args:
      updates: the quotients.
      mu: the first moment.
      nu: the second moment.
      past: int32 scalar, the steps before this one.
      eps: a float, a 0-d array or a schedule.
      eps_root: the same.
    """
    notes = _current()
    if notes is None:
        return
    eps, eps_root = (at(x, past, jnp.float32) for x in (eps, eps_root))
    for update, *moments in zip(*map(jax.tree.leaves, (updates, mu, nu)), strict=True):
        first, second = map(notes.moments.get, moments)
        if (
            first
            and second
            and first.origin is second.origin
            and (first.name, second.name) == ("mu", "nu")
            and first.leaf == second.leaf
            and {x.dtype for x in (update, *moments)} == {jnp.dtype("float32")}
        ):
            corrected = frozenset(x.name for x in (first, second) if x.corrected)
            recipe = Recipe(first.origin, first.leaf, corrected, eps, eps_root)
            notes.recipes[update] = recipe


def note_line(name: str, before: Any, after: Any, values: Sequence[Any]) -> None:
    """Note the next line of Adam.

    Args:
      name: the attribute of `Recipe`: "decay", "learning_rate" or "rounding".
      before: the updates before it.
      after: the updates after it.
      values: the values of the attribute, one for each leaf.
    """
    notes = _current()
    if notes is None:
        return
    later = _LINES[_LINES.index(name) :]
    leaves = jax.tree.leaves(before), jax.tree.leaves(after)
    for old, new, value in zip(*leaves, values, strict=True):
        recipe = notes.recipes.get(old)
        in_order = recipe and all(getattr(recipe, k) is None for k in later)
        if in_order and old.dtype == jnp.float32:
            notes.recipes[new] = dataclasses.replace(recipe, **{name: value})


def note_parts(
    update: Any,
    parts: list[Any],
    grads: list[Any],
    params: list[Any],
    buffers: tuple[Any, Any],
) -> None:
    """Note that a buffer of updates was cut into leaves.

    Args:
      update: the updates of several leaves.
      parts: the update of each.
      grads: the gradient of each.
      params: the parameter of each, or None.
      buffers: the gradients, and the parameters or None, as the optimizer was given
        them.
    """
    notes = _current()
    recipe = notes and notes.recipes.get(update)
    if notes is None or recipe is None:
        return
    for position, (part, param) in enumerate(zip(parts, params, strict=True)):
        place = Part(position, tuple(grads), param, *buffers)
        notes.recipes[part] = dataclasses.replace(recipe, part=place)


def note_gate(updates: tuple[Any, Any], state: tuple[Any, Any, Any], gate: Any) -> None:
    """Note that a guard either takes a step or leaves everything as it is.

    Args:
      updates: the updates of the step, and what the guard emits: these or zeros.
      state: the new state, the old state, and the one that the guard keeps.
      gate: a bool scalar, true if the step is taken.
    """
    notes = _current()
    if notes is None:
        return
    for old, new in zip(*map(jax.tree.leaves, updates), strict=True):
        recipe = notes.recipes.get(old)
        if recipe and recipe.learning_rate is not None:
            gates = (*recipe.gates, gate)
            notes.recipes[new] = dataclasses.replace(recipe, gates=gates)
    for new, old, chosen in zip(*map(jax.tree.leaves, state), strict=True):
        notes.choices[new] = Choice(chosen, old, gate)


def note_watch(watch: Watch) -> None:
    """Note how figures of the step are measured.

    Args:
      watch: how.
    """
    notes = _current()
    if notes is not None:
        notes.watches.append(watch)


def all_finite(notes: Notes, updates: Any, grads: Any) -> jax.Array:
    """Return whether all updates are finite, a bool scalar, where the gradients are.

    From finite gradients, moments and parameters, Adam's lines compute finite updates,
    unless a scalar is absurd (`Recipe.bounds`). So of an update with a recipe only the
    scalars are looked at. To look at the update itself would take as long as a step.

    Args:
      notes: the notes taken while the updates were computed.
      updates: the updates, a pytree of arrays.
      grads: the gradients, whose elements are looked at elsewhere.
    """
    seen = {id(x) for x in jax.tree.leaves(grads)}
    arrays, alike = [], {}
    for update in jax.tree.leaves(updates):
        recipe = notes.recipes.get(update)
        if not recipe or not recipe.is_bounded or update.dtype == jnp.float16:
            arrays.append(update)
        elif not recipe.gates:  # or a guard inside has looked
            arrays += [x for x in recipe.grads if id(x) not in seen]
            key = [x if isinstance(x, float) else id(x) for x in recipe.scalars]
            alike[tuple(key)] = recipe
    bounds = [x for recipe in alike.values() for x in recipe.bounds]
    return are_finite([*arrays, *bounds])


def are_finite(arrays: Sequence[Any]) -> jax.Array:
    """Return whether all elements of some arrays are finite, a bool scalar."""
    # 0 times a non-finite number is NaN, so a sum, which XLA vectorises, shows it.
    sums = [jnp.sum(numerics.widen(x) * 0) for x in arrays]
    # XLA computes what is cheap anew in the loop of each leaf that needs it; it takes a
    # root for expensive. Without it, 200 leaves compile for 28 seconds, not for 2.
    return jnp.isfinite(jnp.sqrt(sum(sums, start=jnp.zeros([]))))
