"""Checks at the first trace: refuse trees that no step can handle.

Shape and structure checks are chex assertions; `chex.disable_asserts()` disables them.
"""

from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from adam_jax import numerics
from adam_jax.hyperparams import a_type, shown

_SHOWN = 5  # leaves named in a message: a model has thousands


def check_arrays(tree: Any, what: str) -> None:
    """Assert that every leaf of `tree` is an array, or a number used as one.

    Args:
      tree: a pytree; None and empty subtrees pass.
      what: the tree's name, for the message.

    Raises:
      TypeError: if a leaf is not; the message names its path and a fix.
    """
    for path, leaf in tree_leaves_with_path(tree):
        if not _is_array(leaf):
            raise TypeError(
                f"{what}{keystr(path)} is {a_type(type(leaf))}, not an array of "
                "numbers: keep it out of the parameters or, if it holds arrays, make "
                "its class a pytree (jax.tree_util.register_dataclass)."
            )


def check_inexact(tree: Any, what: str) -> None:
    """Assert that every leaf of `tree` is a floating-point or complex array.

    Args:
      tree: a pytree of arrays; None and empty subtrees pass.
      what: the tree's name, for the message.

    Raises:
      TypeError: if a leaf is not; the message names its path and a fix.
    """
    check_arrays(tree, what)
    for path, leaf in tree_leaves_with_path(tree):
        dtype = numerics.dtype_of(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{what}{keystr(path)} has dtype {dtype}: an optimizer "
                "updates only floating-point (or complex) leaves. Convert it, or leave "
                "it out with optax.masked or optax.multi_transform."
            )
        if numerics.is_narrow(dtype):
            raise TypeError(
                f"{what}{keystr(path)} has dtype {dtype}, too narrow for an optimizer: "
                "keep parameters in bfloat16 or float32 and cast them where the model "
                "uses them; cast gradients to float32."
            )


def prune(params: Any, updates: Any) -> Any:
    """Return `params` with None wherever `updates` has None.

    Nobody reads what stands there. In an Equinox model it may be a function.

    Args:
      params: a pytree, or None.
      updates: a pytree of arrays and None. If its structure is another one, `params`
        are returned as they are, for `check_like` to tell where they differ.
    """
    if params is None or jax.tree.structure(params) == jax.tree.structure(updates):
        return params
    leaves, structure = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    try:
        given = structure.flatten_up_to(params)
    except ValueError:
        return params
    pairs = zip(leaves, given, strict=True)
    return structure.unflatten([None if x is None else p for x, p in pairs])


def fit_params(params: Any, updates: Any) -> Any:
    """Return the parameters that have updates, if an optimizer can step them.

    Args:
      params: a pytree of arrays; where `updates` has None, anything.
      updates: a pytree of arrays and None.

    Raises:
      TypeError: if a parameter is neither floating-point nor complex.
      AssertionError: (from chex) if structures or shapes differ.
    """
    params = prune(params, updates)
    check_like(updates, params, "updates", "params")
    check_inexact(params, "params")
    return params


def check_like(tree: Any, reference: Any, what: str, reference_what: str) -> None:
    """Assert that `tree` has the structure and shapes of `reference`.

    Args:
      tree: a pytree of arrays.
      reference: the pytree to compare it with.
      what: the name of `tree`, for the message.
      reference_what: the name of `reference`.

    Raises:
      AssertionError: (from chex) if not; the message names the paths that differ and
        a fix.
      TypeError: if they differ, and a leaf is not an array.
    """
    differing = _differences(tree, reference, reference_what)
    if not differing:
        return
    check_arrays(tree, what)
    check_arrays(reference, reference_what)
    listed = "; ".join(differing[:_SHOWN])
    if len(differing) > _SHOWN:
        listed += f"; and {len(differing) - _SHOWN} more"
    owner = reference_what if what == "params" else "the parameters"
    try:
        chex.assert_equal(differing, [])
    except AssertionError:  # chex decides whether to assert; it would print whole trees
        raise AssertionError(
            f"{what} do not fit {reference_what}: {listed}. Pass {what} with the "
            f"structure and shapes of {owner}, or make a new state with "
            "tx.init(params)."
        ) from None


def resolve_mask(mask: Any, params: Any) -> Any:
    """Return the value of a mask for these parameters: a prefix of them, of booleans.

    Args:
      mask: the pytree, or a function from params to it. (A tree that can be called,
        such as an Equinox module, is a tree.)
      params: the parameters.

    Raises:
      TypeError: if a leaf of it is not a boolean; the message names its path.
      ValueError: if it is not a prefix.
    """
    is_function = callable(mask) and all(map(callable, jax.tree.leaves(mask)))
    mask = mask(params) if is_function else mask
    for path, leaf in tree_leaves_with_path(mask):
        is_boolean = isinstance(leaf, bool)
        if not is_boolean and getattr(leaf, "dtype", None) == np.dtype(bool):
            is_boolean = np.ndim(leaf) == 0
        if not is_boolean:
            raise TypeError(
                "mask must be a pytree of booleans, or a function from params to one, "
                f"got {shown(leaf)}" + (f" at {keystr(path)}." if path else ".")
            )
    try:
        jax.tree.map(lambda *_: None, mask, params)
    except ValueError as error:
        raise ValueError(f"mask is not a prefix of the parameters: {error}") from None
    return mask


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, str | type | np.dtype):  # JAX reads a dtype out of these
        return False
    try:
        numerics.dtype_of(leaf)
    except TypeError:
        return False
    return True


def _differences(tree: Any, reference: Any, reference_what: str) -> list[str]:
    """Return a phrase for each leaf where two trees differ."""
    if jax.tree.structure(tree) == jax.tree.structure(reference):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
        if all(np.shape(x) == np.shape(y) for x, y in pairs):
            return []
    found, expected = (dict(tree_leaves_with_path(x)) for x in (tree, reference))
    phrases = []
    for path in {**expected, **found}:
        name = keystr(path) or "the array"
        if path not in expected:
            phrases.append(f"{name} is not in {reference_what}")
        elif path not in found:
            phrases.append(f"{name} is missing")
        elif np.shape(found[path]) != np.shape(expected[path]):
            shapes = np.shape(found[path]), np.shape(expected[path])
            phrases.append(f"{name} has shape {shapes[0]}, not {shapes[1]}")
    return phrases or list(_other_containers(tree, reference, ()))


def _other_containers(tree: Any, reference: Any, path: Any) -> Iterator[str]:
    """Yield a phrase for each node whose type differs between two trees."""
    if type(tree) is not type(reference):
        found, expected = type(tree).__name__, type(reference).__name__
        yield f"{keystr(path) or 'the tree'} is a {found}, not a {expected}"
        return
    children, other_children = (
        tree_leaves_with_path(x, is_leaf=lambda node, x=x: node is not x)
        for x in (tree, reference)
    )
    if [key for key, _ in children] != [key for key, _ in other_children]:
        yield f"{keystr(path) or 'the tree'} differs in its subtrees without leaves"
        return
    for (key, child), (_, other) in zip(children, other_children, strict=True):
        if child is not tree:
            yield from _other_containers(child, other, (*path, *key))
