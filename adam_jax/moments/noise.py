"""The random bits by which moments are rounded."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike
from typing_extensions import TypeAliasType

from adam_jax import randomness

Noise = TypeAliasType("Noise", Callable[[tuple[int, ...]], jax.Array])
"""A function from a shape to uint32s of that shape, whose upper 16 bits are random.

The lower bits are not for use: those of a first moment's noise round the second moment.
"""


@dataclasses.dataclass(frozen=True)
class LeafNoise:
    """The random bits that round one leaf of a moment in one step: a `Noise`.

    The first moment takes the upper half of a hash, the second the lower half. XLA
    makes one hash for both if their seeds are equal.

    Attributes:
      known: what `hash_leaf` returned.
      past: int32 scalar, the number of steps before this one.
      order: 1 or 2, that of the moment.
      like: an array that the bits are sharded like.
    """

    known: ArrayLike
    past: ArrayLike
    order: int
    like: jax.Array

    def __call__(self, shape: tuple[int, ...]) -> jax.Array:
        """Return uint32s of a shape."""
        bits = randomness.random_bits(shape, [self.past], self.like, self.known)
        return bits if self.order == 1 else bits << 16


def hash_leaf(seed: int, number: int) -> np.ndarray:
    """Return what is known of the random bits of a leaf, for `LeafNoise`.

    Args:
      seed: of the moment's format.
      number: the leaf's place in the tree.
    """
    return randomness.hash_known((seed, 0, number))  # round_to_params has no 0
