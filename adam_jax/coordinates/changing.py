"""Stages that work on gradients in other coordinates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from adam_jax import numerics, placement
from adam_jax.checks import check_inexact, fit_params
from adam_jax.coordinates.interface import Coordinates
from adam_jax.coordinates.turning import turn_moments
from adam_jax.hyperparams import shown
from adam_jax.stages.division import emit
from adam_jax.stages.flow import expect_state, expect_updates, expect_whole


class WithinState(NamedTuple):
    """State of `within`.

    Attributes:
      count: int32 scalar, the steps taken.
      coordinates: what the coordinates keep: by name, pytrees like the parameters, with
        `optax.MaskedNode()` for leaves that do not keep it.
      inner_state: the states of the stages, in these coordinates.
    """

    count: ArrayLike
    coordinates: Any
    inner_state: Any


def within(
    coordinates: Coordinates, *stages: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Run stages on gradients in other coordinates, and bring their updates back.

    The stages never see the parameters. What needs them, such as weight decay, belongs
    behind `within`, as does the learning rate.

    First moments follow the coordinates where these turn: fields of the states that are
    called `mu` or `trace`, here and in Optax. They are then rounded to nearest. Second
    moments stay as they are: nobody knows them in other coordinates.

    Derivatives of the coordinates are taken to be 0.

    Args:
      coordinates: such as `eigenbasis()`.
      *stages: transformations that take gradients and emit updates, as in
        `optax.chain`.

    Raises:
      TypeError: if `coordinates` are none; at the first trace, if the stages emit
        `Moments`, or the state belongs to another transformation.
      ValueError: at the first trace, if gradients or other coordinates do not fit the
        state, or in a shard_map that cuts a leaf.
      AssertionError: (from chex) if gradients do not fit the parameters.

    Example: Lion's signs in the subspace of the largest singular value.

      >>> from adam_jax import lion_average, precondition, scale_by_moments, subspace
      >>> lion = scale_by_moments(lion_average(0.9, 0.99), None), precondition()
      >>> tx = within(subspace(1), *lion, optax.scale_by_sign())
      >>> grads = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> print(f"{updates[0, 0]:.4f} {updates[1, 0]:.4f}")
      0.6000 0.8000
      >>> print(state.inner_state[0].mu.shape)
      (1, 2)
    """
    if not isinstance(coordinates, Coordinates):
        raise TypeError(
            "within() takes coordinates first, such as eigenbasis(), got "
            f"{shown(coordinates)}."
        )
    inner = optax.with_extra_args_support(optax.chain(*stages))

    def init_fn(params):
        check_inexact(params, "params")
        leaves, structure = jax.tree.flatten(params)
        kept = _as_tree([coordinates.init(x) for x in leaves], structure)
        inside = structure.unflatten([_start(coordinates, x) for x in leaves])
        if type(params).__name__ == "_ParamsPlaceholder":
            kept = 0  # optax.tree.map_params looks for copies of the parameters
            inside = params
        return WithinState(jnp.zeros([], jnp.int32), kept, inner.init(inside))

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "within")
        expect_state(state, WithinState, "within")
        check_inexact(updates, "grads")
        if params is not None:
            fit_params(params, updates)
        past = state.count
        paths, structure = tree_flatten_with_path(updates)
        grads = [leaf for _, leaf in paths]
        old = _as_leaves(state.coordinates, structure)
        for (path, grad), kept in zip(paths, old, strict=True):
            _expect_fit(coordinates, path, grad, kept)
        wide = [
            numerics.bound(numerics.widen(grad)) if kept else grad
            for grad, kept in zip(grads, old, strict=True)
        ]
        new = [
            lax.stop_gradient(coordinates.advance(kept, grad, past)) if kept else kept
            for grad, kept in zip(wide, old, strict=True)
        ]
        entered = [
            coordinates.enter(kept, grad) if kept else grad
            for grad, kept in zip(wide, new, strict=True)
        ]
        inside, inner_state = structure.unflatten(entered), state.inner_state
        if coordinates.turns:
            inner_state = turn_moments(
                coordinates, inner, inner_state, inside, old, new, past
            )
        emitted, after = inner.update(inside, inner_state, None, **extra_args)
        expect_whole(emitted, "within")
        moved = [
            coordinates.leave(kept, numerics.widen(update), past) if kept else update
            for update, kept in zip(structure.flatten_up_to(emitted), new, strict=True)
        ]
        if coordinates.waits:
            waiting = past < coordinates.waits
            moved = [jnp.where(waiting, jnp.zeros_like(x), x) for x in moved]
            after = jax.tree.map(
                lambda new, old: _choose(waiting, old, new), after, state.inner_state
            )
        state = WithinState(optax.safe_increment(past), _as_tree(new, structure), after)
        return emit(structure.unflatten(moved), updates, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _start(coordinates: Coordinates, param: Any) -> Any:
    """Return an array like a parameter in other coordinates, perhaps abstract."""
    shape = coordinates.shape(np.shape(param))
    if shape == np.shape(param):
        return param
    if not isinstance(param, jax.Array):
        return jax.ShapeDtypeStruct(shape, numerics.dtype_of(param))
    # A part of the parameter, so that it is cut along the same axes.
    return lax.slice(placement.on_device(param), [0] * param.ndim, shape)


def _expect_fit(coordinates: Coordinates, path: Any, grad: Any, kept: Any) -> None:
    """Refuse a gradient that does not fit what its leaf keeps."""
    shape = jax.ShapeDtypeStruct(np.shape(grad), numerics.dtype_of(grad))
    own = {k: x.shape for k, x in jax.eval_shape(coordinates.init, shape).items()}
    found = {k: np.shape(x) for k, x in kept.items()}
    if own != found:
        raise ValueError(
            f"grads{keystr(path)} of shape {np.shape(grad)} needs coordinates of "
            f"shapes {own}, the state has {found}: pass gradients like the parameters "
            "that the state was made for, to the optimizer that made it, or start from "
            "tx.init(params)."
        )
    if kept and any(placement.cut_at(path) or ()):
        raise ValueError(
            f"grads{keystr(path)} is one of several pieces in a shard_map, and its "
            "coordinates follow from the whole: take the step outside of it, under jit."
        )


def _choose(condition: jax.Array, x: Any, y: Any) -> Any:
    """Return `x` where the condition holds, else `y`, in the memory that `y` is in."""
    chosen = jnp.where(condition, *map(placement.on_device, (x, y)))
    return placement.beside(chosen, y)


def _as_tree(leaves: list[dict[str, Any]], structure: Any) -> dict[str, Any]:
    """Turn dicts of the leaves into one dict of trees like the parameters."""
    names = {name: None for leaf in leaves for name in leaf}
    return {
        name: structure.unflatten(
            [leaf.get(name, optax.MaskedNode()) for leaf in leaves]
        )
        for name in names
    }


def _as_leaves(trees: dict[str, Any], structure: Any) -> list[dict[str, Any]]:
    """Turn a dict of trees into dicts of the leaves.

    Raises:
      ValueError: if the trees are not like the gradients.
    """
    try:
        columns = {k: structure.flatten_up_to(tree) for k, tree in trees.items()}
    except ValueError as error:
        raise ValueError(
            "grads do not have the structure of the parameters that the state was made "
            f"for: {error}"
        ) from None
    return [
        {
            name: column[i]
            for name, column in columns.items()
            if not isinstance(column[i], optax.MaskedNode)
        }
        for i in range(structure.num_leaves)
    ]
