"""`Moments`, which pass between stages, and checks of what each stage receives."""

import dataclasses
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.checks import check_arrays, fit_params
from adam_jax.hyperparams import a_type, shown

_CURE = (
    "put precondition(), which turns them into updates, before anything that takes "
    "updates, and put masks, guards and other wrappers around the whole optimizer"
)


class _Named(type):
    """A class whose repr names the fix: JAX prints it when trees differ."""

    def __repr__(cls) -> str:
        return f"<class 'adam_jax.Moments': not updates: {_CURE}>"


@dataclasses.dataclass(frozen=True, eq=False)
class Moments(metaclass=_Named):
    """The moments on their way from `scale_by_moments` to `precondition`.

    They are not a pytree: a transformation of updates that maps over them, a mask or a
    guard gets a TypeError, not another Adam. Transformations of updates, including
    Optax's, belong after `precondition`; wrappers go around a whole optimizer.

    Attributes:
      count: int32 scalar, the number of this step; the first is 1.
      grads: the gradients of this step, in their original dtype.
      mu: the first moment, a pytree like grads, float32 or wider; grads themselves if
        there is no first moment.
      nu: the second moment, a pytree of real arrays like grads, or None.
      mu_weight: scalar, the weight of past gradients in mu, 1 - b1^t for an average
        of constant decay; 1 if mu is not an average.
      nu_weight: the same for nu.
      nu_decay: the decay rate of nu in this step, a float or a scalar; None if it is no
        average.
      plain: whether each element has its own averages of g and |g|^2, as they are.
      one_rate: whether mu and nu decay at the same rate.
      has_mu: whether mu is the first moment, not the gradients themselves or the result
        of `correct_step_size`.
      corrected: which of "mu" and "nu" must not be divided by their weight (again), and
        "step size" after `correct_step_size`.
    """

    count: ArrayLike
    grads: Any
    mu: Any
    nu: Any
    mu_weight: jax.Array
    nu_weight: jax.Array
    nu_decay: Any = None
    plain: bool = False
    one_rate: bool = False
    has_mu: bool = True
    corrected: frozenset[str] = frozenset()

    def _replace(self, **changes: Any) -> "Moments":
        """Return a copy with some values replaced, as a NamedTuple does."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        """Show scalars, but only the types of trees, which may be a whole model."""
        shown = {
            k: jax.tree.map(jax.typeof, v) if k in ("grads", "mu", "nu") else v
            for k, v in vars(self).items()
        }
        return f"Moments({', '.join(f'{k}={v}' for k, v in shown.items())})"

    def __jax_array__(self) -> NoReturn:
        """Refuse to be added to parameters."""
        _refuse()


def _refuse(*_: Any) -> NoReturn:
    raise TypeError(
        "the Moments that scale_by_moments() emits are neither updates nor a pytree "
        f"to map over: {_CURE}."
    )


jax.tree_util.register_pytree_node(Moments, _refuse, _refuse)


def expect_moments(value: Any, stage: str) -> Moments:
    """Return `value` if it is `Moments`.

    Args:
      value: the input of a stage.
      stage: the stage's name, for the message.

    Raises:
      TypeError: if it is something else.
    """
    if not isinstance(value, Moments):
        raise TypeError(
            f"{stage}() takes the Moments that scale_by_moments() emits, got "
            f"{type(value).__name__}: put scale_by_moments() before it, and transforms "
            "of plain updates after precondition()."
        )
    return value


def expect_both(moments: Moments, stage: str) -> None:
    """Refuse moments if one of the two is missing.

    Args:
      moments: the input of a stage.
      stage: the stage's name, for the message.

    Raises:
      ValueError: if there is no first or no second moment.
    """
    if not moments.has_mu:
        raise ValueError(
            f"{stage}() needs the first moment as bias_correct() leaves it: give "
            f"scale_by_moments() a b1, and put {stage}() after bias_correct(), once."
        )
    expect_second(moments, stage)


def expect_second(moments: Moments, stage: str) -> None:
    """Refuse moments without a second moment.

    Args:
      moments: the input of a stage.
      stage: the stage's name, for the message.

    Raises:
      ValueError: if there is none.
    """
    if moments.nu is None:
        raise ValueError(
            f"{stage}() needs a second moment: give scale_by_moments() a b2."
        )


def expect_updates(value: Any, stage: str) -> None:
    """Refuse `Moments`, and leaves that are no arrays, where updates are expected.

    Args:
      value: the input of a stage or a wrapper, or the output of its optimizer.
      stage: the stage's or wrapper's name, for the message.

    Raises:
      TypeError: if it is `Moments`, or has a leaf that is not an array.
    """
    if isinstance(value, Moments):
        raise TypeError(
            f"{stage}() takes gradients or updates, got Moments: put precondition() "
            "before it, to turn them into updates."
        )
    check_arrays(value, "grads")


def expect_params(updates: Any, params: Any, stage: str) -> Any:
    """Return the parameters that have updates.

    Args:
      updates: the input of a stage.
      params: the parameters, if `update` was given any.
      stage: the stage's name, for messages.

    Raises:
      ValueError: if there are none.
      TypeError: for `Moments`, or a leaf that no optimizer can step.
      AssertionError: if structures or shapes differ.
    """
    if params is None:
        raise ValueError(
            f"{stage}() needs the parameters: call tx.update(grads, state, params), "
            "not tx.update(grads, state)."
        )
    expect_updates(updates, stage)
    return fit_params(params, updates)


def expect_optimizer(tx: Any, wrapper: str) -> None:
    """Refuse what is not a transformation, such as a function that makes one.

    Args:
      tx: the argument of a wrapper.
      wrapper: the wrapper's name, for the message.

    Raises:
      TypeError: if it has no `init` and `update`.
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(
            f"{wrapper}() takes an optimizer, got {shown(tx)}: pass one, as in "
            f"{wrapper}(adam(1e-3))."
        )


def expect_whole(emitted: Any, wrapper: str) -> None:
    """Refuse `Moments` from the transformation inside a wrapper.

    Args:
      emitted: the output of the wrapped transformation.
      wrapper: the wrapper's name, for the message.

    Raises:
      TypeError: if it is `Moments`.
    """
    if isinstance(emitted, Moments):
        raise TypeError(
            f"{wrapper}() goes around a whole optimizer, but the transformation in it "
            "emits Moments: end it with precondition() or scale_by_lr()."
        )


def expect_state(state: Any, kind: type, stage: str, can_wrap: bool = False) -> None:
    """Refuse a state that another chain made.

    Args:
      state: the state that `update` received.
      kind: the class of the stage's own states.
      stage: the stage's name, for the message.
      can_wrap: whether a run may go on with its old state as the `inner_state` of a new
        one.

    Raises:
      TypeError: if it is of another class.
    """
    if isinstance(state, kind):
        return
    cure = not_a_state(state)
    if not cure:
        cure = (
            "the state was made by another chain. Start from tx.init(params), or "
            "restore into jax.eval_shape(tx.init, params)"
        )
        if can_wrap:
            cure += (
                f"; if only {stage}() is new, go on from "
                "tx.init(params)._replace(inner_state=state)"
            )
    raise TypeError(
        f"{stage}() was given {a_type(type(state))} for its state, not {a_type(kind)}: "
        f"{cure}."
    )


def not_a_state(value: Any) -> str:
    """Return the cure if `value` is no optimizer's state; if it is one, nothing.

    Args:
      value: what `update` received for its state.
    """

    def is_part(node):
        return hasattr(node, "_fields")

    if any(map(is_part, jax.tree.leaves(value, is_leaf=is_part))):
        return ""
    return (
        "the arguments are in another order (tx.update takes grads, state, params; "
        "fused.step(tx) takes params, grads, state), or the state was restored without "
        "its structure (restore into jax.eval_shape(tx.init, params))"
    )


def expect_values(x: Any, what: str) -> None:
    """Refuse to read on the host what is traced.

    Args:
      x: an array.
      what: what is to be read of its state, for the message.

    Raises:
      TypeError: if it is traced.
    """
    if isinstance(x, Tracer):
        raise TypeError(
            f"the {what} of a traced state have no values yet: read them outside of "
            "jax.jit, from the state that it returns."
        )


def widen(grads: Any, *moments: Any) -> Any:
    """Return `grads` in the widest dtype of grads, moments and float32, leaf by leaf.

    Args:
      grads: a pytree of arrays.
      *moments: pytrees like it, or None.
    """

    def widen_leaf(grad, *stored):
        dtypes = [numerics.dtype_of(x) for x in (grad, *stored)]
        return jnp.asarray(grad, numerics.compute_dtype(*dtypes))

    return jax.tree.map(widen_leaf, grads, *[m for m in moments if m is not None])


def scalar_dtype(params: Any) -> jnp.dtype:
    """Return the dtype of a scalar that belongs to all leaves: real, float32 or wider.

    Args:
      params: a pytree of arrays.
    """
    leaves = jax.tree.leaves(params)
    reals = [numerics.real_dtype(numerics.dtype_of(p)) for p in leaves]
    return numerics.compute_dtype(*reals)


def cast_like(tree: Any, like: Any) -> Any:
    """Cast a tree to the dtypes of another one, leaf by leaf.

    Args:
      tree: a pytree of arrays.
      like: a pytree like it.
    """
    return jax.tree.map(lambda x, y: numerics.cast(x, numerics.dtype_of(y)), tree, like)
