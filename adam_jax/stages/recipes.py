"""How an update came about, noted for kernels that can make it in one pass.

While somebody records, stages note of each array that they emit how it follows from
gradients, moments and parameters: its recipe. A kernel that knows the whole recipe may
compute the array, and the new moments with it, in place of what was traced.

A note belongs to one array object. Whatever else touches an update (another
transformation, a select, a branch) makes a new array, of which nothing is noted; so
there is no wrong note, and stages need not know what stands around them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax import numerics
from adam_jax.hyperparams import at
from adam_jax.moments.moment import Gathered, Moment
from adam_jax.stages.flow import Moments


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """One call of `scale_by_moments`, where it keeps both moments.

    Attributes:
      first: the first moment.
      second: the second moment.
      state: the `MomentsState` before.
      grads: the gradients as they came.
      mu: the first moment after the step.
      nu: the second moment after the step.
    """

    first: Moment
    second: Moment
    state: Any
    grads: Any
    mu: Gathered
    nu: Gathered


@dataclasses.dataclass(frozen=True, eq=False)
class Decay:
    """How a parameter decays.

    Attributes:
      rate: by which it is multiplied: a float, or a float32 scalar.
      param: the parameter, as it was given to the stage.
    """

    rate: Any
    param: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
    """How `round_to_params` rounds a parameter.

    Attributes:
      seed: of the random bits.
      count: int32 scalar, the steps before this one.
      leaf: the number of the leaf in the tree that is rounded.
      param: the parameter.
      wide: the parameter in float32, as the optimizer inside sees it.
    """

    seed: int
    count: Any
    leaf: int
    param: Any
    wide: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Where a leaf lies in the buffer that an update was made of.

    Attributes:
      position: of the leaf among those in the buffer.
      grads: the gradients of these leaves, in order.
      param: the leaf's parameter, or None where nobody was told.
      buffer: the buffer of parameters that it lies in, likewise.
    """

    position: int
    grads: tuple[Any, ...]
    param: Any
    buffer: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How the update of one leaf came about, line by line of Adam.

        update = mu / (sqrt(nu + eps_root) + eps)     the moments corrected, or not
        update <- update + decay * param
        update <- -learning_rate * update

    Attributes:
      origin: where the moments are from.
      leaf: the number of the leaf among theirs.
      corrected: which of "mu" and "nu" were divided by their weight.
      eps: a float, or a float32 scalar.
      eps_root: the same.
      decay: the weight decay; None: none.
      learning_rate: a float, or a float32 scalar; None: not yet multiplied.
      part: where the leaf lies in a buffer; None: it has a moment of its own.
      rounding: how the new parameter is rounded; None: as `optax.apply_updates` does.
      gates: bool scalars; the step is taken where all of them are true.
    """

    origin: Origin
    leaf: int
    corrected: frozenset[str]
    eps: Any
    eps_root: Any
    decay: Decay | None = None
    learning_rate: Any = None
    part: Part | None = None
    rounding: Rounding | None = None
    gates: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """An array of a state, where a gate chooses between the new one and the old.

    Attributes:
      chosen: the array.
      new: what it is where the gate is true.
      old: what it is where it is not.
      gate: a bool scalar.
    """

    chosen: Any
    new: Any
    old: Any
    gate: Any


# In this order, each at most once.
_LINES = ("decay", "learning_rate", "rounding")


Check = Callable[["Notes", Any, Any], Any]
"""From notes, updates and params to whether all updates are finite."""


class Notes:
    """What is noted of arrays.

    Attributes:
      check: tells whether updates with a recipe are finite, without making them.
    """

    def __init__(self, check: Check):
        """Start with nothing noted."""
        self.check = check
        self._choices: dict[int, Choice] = {}
        self._notes: dict[int, tuple[Any, Recipe]] = {}

    def write(self, array: Any, recipe: Recipe) -> None:
        """Note the recipe of an array."""
        self._notes[id(array)] = array, recipe  # kept alive, so that no id comes twice

    def read(self, array: Any) -> Recipe | None:
        """Return the recipe of an array, or None."""
        return self._notes.get(id(array), (None, None))[1]

    def choose(self, choice: Choice) -> None:
        """Note that a gate chooses between two arrays of a state."""
        self._choices[id(choice.new)] = choice

    def choice_of(self, new: Any) -> Choice | None:
        """Return the choice between a new array and the old one, or None."""
        return self._choices.get(id(new))


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def recording(check: Check) -> Iterator[Notes]:
    """Let stages note how what they emit came about.

    Args:
      check: as in `Notes`.
    """
    token = _notes.set(Notes(check))
    try:
        notes = _notes.get()
        assert notes is not None
        yield notes
    finally:
        _notes.reset(token)


def note_division(updates: Any, moments: Moments, eps: Any, eps_root: Any) -> None:
    """Note that `precondition` has divided moments.

    Args:
      updates: what came of it.
      moments: what was divided.
      eps: as a stage keeps it: a float, an array or a schedule.
      eps_root: the same.
    """
    notes = _notes.get()
    if notes is None or moments.origin is None:
        return
    eps, eps_root = (at(x, moments.count - 1, jnp.float32) for x in (eps, eps_root))
    leaves = zip(jax.tree.leaves(updates), jax.tree.leaves(moments.mu), strict=True)
    for leaf, (update, mu) in enumerate(leaves):
        if update.dtype == mu.dtype == jnp.float32:
            recipe = Recipe(moments.origin, leaf, moments.corrected, eps, eps_root)
            notes.write(update, recipe)


def carry(before: Any, after: Any, **line: Any) -> None:
    """Note the next line of Adam: `decay`, `learning_rate` or `rounding`.

    Args:
      before: the updates before it.
      after: the updates after it.
      **line: that attribute of `Recipe`, or a function of the leaf's number.
    """
    notes = _notes.get()
    if notes is None:
        return
    [(name, value)] = line.items()
    later = _LINES[_LINES.index(name) :]
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    for number, (old, new) in enumerate(leaves):
        recipe = notes.read(old)
        in_order = recipe and all(getattr(recipe, k) is None for k in later)
        if recipe and in_order and old.dtype == jnp.float32:
            own = value(number) if callable(value) else value
            notes.write(new, dataclasses.replace(recipe, **{name: own}))


def note_parts(
    update: Any, parts: list[Any], grads: list[Any], params: list[Any], buffer: Any
) -> None:
    """Note that a buffer of updates was cut into leaves.

    Args:
      update: the updates of several leaves.
      parts: the update of each.
      grads: the gradient of each.
      params: the parameter of each, or None.
      buffer: the parameters as they were given to the optimizer, or None.
    """
    notes = _notes.get()
    recipe = notes and notes.read(update)
    if notes is None or recipe is None:
        return
    for position, (part, param) in enumerate(zip(parts, params, strict=True)):
        place = Part(position, tuple(grads), param, buffer)
        notes.write(part, dataclasses.replace(recipe, part=place))


def note_gate(updates: tuple[Any, Any], state: tuple[Any, Any, Any], gate: Any) -> None:
    """Note that a guard takes a step, or leaves everything as it is.

    Args:
      updates: those of the step, and what the guard emits: these, or zeros.
      state: the new state, the old one, and what the guard keeps: the one or the other.
      gate: a bool scalar, true where the step is taken.
    """
    notes = _notes.get()
    if notes is None:
        return
    for old, new in zip(*map(jax.tree.leaves, updates), strict=True):
        recipe = notes.read(old)
        if recipe and recipe.learning_rate is not None:
            gates = (*recipe.gates, gate)
            notes.write(new, dataclasses.replace(recipe, gates=gates))
    for new, old, chosen in zip(*map(jax.tree.leaves, state), strict=True):
        notes.choose(Choice(chosen, new, old, gate))


def all_finite(updates: Any, params: Any = None) -> jax.Array:
    """Return whether all elements of a tree are finite, a bool scalar.

    Args:
      updates: a pytree of arrays.
      params: the parameters, if these are updates of them.
    """
    notes = _notes.get()
    if notes is not None and params is not None:
        return notes.check(notes, updates, params)
    return are_finite(jax.tree.leaves(updates))


def are_finite(arrays: Sequence[Any]) -> jax.Array:
    """Return whether all elements of some arrays are finite, a bool scalar."""
    # 0 times what is not finite is NaN; so a sum, which XLA vectorises, tells.
    sums = [jnp.sum(numerics.widen(x) * 0) for x in arrays]
    return jnp.all(jnp.isfinite(jnp.array(sums))) if sums else jnp.asarray(True)
