"""What is refused at the first trace: trees that no step can be right on.

Shapes and structures are chex assertions; `chex.disable_asserts()` turns them off.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adam_jax import numerics


def check_inexact(tree: Any, what: str) -> None:
    """Assert that every leaf of `tree` is a floating-point or complex array.

    Args:
      tree: a pytree of arrays; None and empty subtrees pass.
      what: the tree's name, for the message.

    Raises:
      TypeError: if a leaf is not; the message names its path and the cure.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = numerics.dtype_of(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{what}{jax.tree_util.keystr(path)} has dtype {dtype}: an optimizer "
                "moves floating-point (or complex) leaves only. Convert it, or leave "
                "it out with optax.masked or optax.multi_transform."
            )


def check_like(tree: Any, reference: Any, what: str, reference_what: str) -> None:
    """Assert that `tree` has the structure and the shapes of `reference`.

    Raises:
      AssertionError: (from chex) if not; the message names the path and the cure.
    """
    chex.assert_trees_all_equal_comparator(
        lambda x, y: np.shape(x) == np.shape(y),
        lambda x, y: f"shape {np.shape(x)} is not {np.shape(y)}",
        tree,
        reference,
        custom_message=f"tree 0 is {what}, tree 1 is {reference_what}. Pass {what} of "
        "the tree that init() was given, or make a new state with tx.init(params)",
    )
