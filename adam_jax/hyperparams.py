"""Hyperparameters: floats, 0-d arrays or schedules, checked on entry.

A float stays a Python float up to the last operation, so it neither promotes the
parameters' dtype nor is rounded to it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from typing_extensions import TypeAliasType

# This alias prints as its name, in help() too.
Hyperparam = TypeAliasType("Hyperparam", ArrayLike | Callable[[Any], ArrayLike])
"""A number, a 0-d array, or a schedule: a function of the step count (from 0)."""


def exact(value: float) -> Any:
    """Return a default value that `optax.inject_hyperparams` leaves at full precision.

    Optax casts float defaults to the parameters' dtype, which turns b2 = 0.999 into
    1.0 in bfloat16 (optax issue 1414), but passes typed JAX arrays on unchanged. A
    JAX array in a signature would start the backend on import. This object stands in
    for one and creates it on demand: float32, or float64 if x64 is enabled.

    It pickles and copies as itself. As a pytree, so under `jax.jit`, it is the array.

    Args:
      value: a float.

    >>> exact(0.999), exact(0.999) == 0.999, jnp.asarray(exact(0.999)).dtype
    (0.999, True, dtype('float32'))
    """
    return _Exact(float(value))


class _Exact:
    weak_type = False

    def __init__(self, value: float):
        self.value = value

    # inject_hyperparams calls isinstance(value, jax.Array), which looks here.
    __class__ = property(lambda self: jax.Array)  # pyright: ignore[reportAssignmentType]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype or jnp.result_type(float), copy=copy)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(np.asarray(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Exact, (self.value,)

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == other

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


def _as_child(exact: _Exact) -> tuple[tuple[Any], None]:
    return (np.asarray(exact),), None


def _only_child(_: None, children: tuple[Any]) -> Any:
    return children[0]


jax.tree_util.register_pytree_node(_Exact, _as_child, _only_child)


def check_decay(name: str, value: Any) -> Any:
    """Return `value` if it is a valid decay rate: in [0, 1) and not half precision.

    Args:
      name: the argument's name, for the message.
      value: a number, a 0-d array or a schedule.

    Raises:
      ValueError: if it is not; the message names the argument and a fix.
      TypeError: if it is not a number, a 0-d array or a schedule.
    """

    def check_range(number: float) -> None:
        if not 0 <= number < 1:
            raise ValueError(
                f"{name} must be a decay rate in [0, 1), got {number}: 0 forgets the "
                "past; 0.9 and 0.999 are typical."
            )

    return _checked(name, value, check_range)


def check_non_negative(name: str, value: Any, half_precision: bool = False) -> Any:
    """Return `value` if it is a finite number >= 0.

    Args:
      name: the argument's name, for the message.
      value: a number, a 0-d array or a schedule.
      half_precision: whether to accept a float16 or bfloat16 array.

    Raises:
      ValueError: if it is negative or not finite; the message names the argument.
      TypeError: if it is not a number, a 0-d array or a schedule.
    """

    def check_range(number: float) -> None:
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {number}.")

    return _checked(name, value, check_range, half_precision)


def check_between(name: str, value: Any, least: float, largest: float) -> Any:
    """Return `value` if it is a number between two bounds, which it may be.

    Args:
      name: the argument's name, for the message.
      value: a number, a 0-d array or a schedule.
      least: the lower bound.
      largest: the upper bound.

    Raises:
      ValueError: if it is outside, or half precision; the message names the argument.
      TypeError: if it is not a number, a 0-d array or a schedule.
    """

    def check_range(number: float) -> None:
        if not least <= number <= largest:
            raise ValueError(
                f"{name} must be a number in [{least}, {largest}], got {number}."
            )

    return _checked(name, value, check_range)


def check_number(name: str, value: Any) -> Any:
    """Return `value` if it is a finite number.

    Args:
      name: the argument's name, for the message.
      value: a number, a 0-d array or a schedule.

    Raises:
      ValueError: if it is not finite; the message names the argument.
      TypeError: if it is not a number, a 0-d array or a schedule.
    """

    def check_range(number: float) -> None:
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {number}.")

    return _checked(name, value, check_range)


def check_no_schedule(name: str, value: Any) -> Any:
    """Return a checked hyperparameter if it is not a schedule.

    Args:
      name: the argument's name, for the message.
      value: a float, an array or a checked schedule.

    Raises:
      TypeError: if it is a schedule.
    """
    if callable(value):
        raise TypeError(f"{name} must be a number, not a schedule: it is read once.")
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class _Schedule:
    """A schedule whose values are checked."""

    function: Callable[..., Any]
    check: Callable[..., Any]

    def __call__(self, count: ArrayLike) -> jax.Array:
        return jnp.asarray(self.check(value=self.function(count)))


def is_same(value: Any, other: Any) -> bool:
    """Return whether two checked hyperparameters are known to be equal at every step.

    Args:
      value: a float, a 0-d array or a schedule.
      other: the same. Arrays and schedules are equal only if they are the same object.
    """
    if isinstance(value, float) and isinstance(other, float):
        return value == other
    return _unchecked(value) is _unchecked(other)


def _unchecked(value: Any) -> Any:
    """Return the function behind a schedule, however often it was checked."""
    while isinstance(value, _Schedule):
        value = value.function
    return value


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """Return `value` if it is an integer that is known when the optimizer is made.

    Args:
      name: the argument's name, for the message.
      value: what a user passed.
      least: the least that it may be; the most is 2^32 - 1.

    Raises:
      ValueError: if it is something else; the message names the argument.
    """
    kind = "a positive integer" if least == 1 else f"an integer in [{least}, 2^32)"
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} must be {kind} that is known when the optimizer is made, got an "
            "array. Under optax.inject_hyperparams, which makes arrays of all numbers, "
            f"say static_args={name!r}."
        )
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not least <= value < 2**32:
        raise ValueError(f"{name} must be {kind}, got {shown(value)}.")
    return int(value)


def shown(value: Any) -> str:
    """Return how a message shows a value: as it is, or by its type if that is long.

    Args:
      value: what a user passed, which may be a whole model.

    >>> shown("adamw"), shown([1.0] * 100)
    ("'adamw'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= 100 and "\n" not in text else a_type(type(value))


def a_type(kind: type) -> str:
    """Return the name of a class with its article; that of None is None.

    Args:
      kind: the class.
    """
    name = kind.__name__
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    return "None" if kind is type(None) else f"{article} {name}"


def _checked(
    name: str,
    value: Any,
    check_range: Callable[[float], None],
    half_precision: bool = False,
) -> Any:
    """Return a Python float, an array in float32 or wider, or a checked schedule."""
    if type(value) is _Exact:
        value = float(value)
    elif callable(value):
        check = functools.partial(
            _checked, name, check_range=check_range, half_precision=half_precision
        )
        return _Schedule(value, check)
    if isinstance(value, bool) or not isinstance(
        value, (int, float, np.number, np.ndarray, jax.Array)
    ):
        raise TypeError(
            f"{name} must be a number, a 0-d array or a schedule (a function of the "
            f"step count), got {shown(value)}."
        )
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")
    dtype = jnp.result_type(value)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if not is_float and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be a real number, got {value!r} of {dtype}.")
    if is_float and jnp.finfo(dtype).bits < 32 and not half_precision:
        raise ValueError(
            f"{name} is a {dtype} array, which cannot hold it (bfloat16 rounds 0.999 "
            "to 1.0, float16 rounds 1e-8 to 0): pass a float32 array, or a float. "
            "optax.inject_hyperparams casts floats to the parameters' dtype unless it "
            "is given hyperparam_dtype=jnp.float32."
        )
    if not isinstance(value, Tracer):
        check_range(float(value))
    return value if isinstance(value, jax.Array) else float(value)


def at(value: Any, count: ArrayLike, dtype: DTypeLike) -> Any:
    """Return the value of a checked hyperparameter at step `count` (from 0).

    Args:
      value: a float, a 0-d array or a schedule.
      count: int32 scalar, the number of steps before this one.
      dtype: the dtype of arrays and schedule values; floats stay floats.
    """
    if callable(value):
        value = value(count)
    return value if isinstance(value, float) else jnp.asarray(value, dtype)


def all_at(
    values: Mapping[str, Any], count: ArrayLike, dtype: DTypeLike
) -> SimpleNamespace:
    """Return every hyperparameter of `values` at step `count`, as attributes.

    Args:
      values: checked hyperparameters by name.
      count: int32 scalar, the number of steps before this one.
      dtype: as in `at`.
    """
    return SimpleNamespace(**{k: at(v, count, dtype) for k, v in values.items()})


def derived(function: Callable[..., Any], *values: Any) -> Any:
    """Return a hyperparameter computed from others: a float, or else a schedule.

    Args:
      function: takes the values at one step.
      *values: checked hyperparameters.

    >>> derived(lambda b1, gamma: gamma * b1 / (1 - b1), 0.5, 3.0)
    3.0
    """
    if all(isinstance(value, float) for value in values):
        return function(*values)
    dtype = jnp.result_type(float)
    return lambda count: function(*[at(value, count, dtype) for value in values])
