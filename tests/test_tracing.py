"""Functions of leaves: how often they are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax import placement
from adam_jax.tracing import map_leaves, once

LEAVES = [jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones(4), jnp.ones((2, 3))]


def double(calls):
    def function(x):
        calls.append(np.shape(x))
        return 2 * x

    return function


def check(doubled):
    for x, y in zip(LEAVES, doubled, strict=True):
        np.testing.assert_array_equal(2 * x, y)


def test_leaves_of_one_shape_are_traced_once():
    calls = []
    check(jax.jit(lambda leaves: map_leaves(double(calls), leaves))(LEAVES))
    assert calls == [(2, 3), (4,)]


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap])
def test_nothing_is_compiled_without_jit(transform):
    """There a function of its own would be compiled anew at each step."""
    calls = []
    x = jnp.ones((2, 3))
    doubled = transform(lambda x: map_leaves(double(calls), [x, x]))(x)
    np.testing.assert_array_equal(doubled[1], 2 * x)
    assert len(calls) == 2


def test_numbers_stay_numbers():
    calls = []
    jax.jit(lambda x: map_leaves(double(calls), [x, 1, 1]))(LEAVES[0])
    assert len(calls) == 3


def test_leaves_that_are_cut_differently_are_traced_apart():
    seen = []
    function = once(lambda x: seen.append(placement.current_cut()) or x)
    cuts = {"a": ((),), "b": (("x",),), "c": ((),)}

    @jax.jit
    def call(x):
        with placement.in_pieces(cuts):
            return [placement.at_leaf(path, function, x) for path in cuts]

    call(jnp.ones(2))
    assert seen == [((),), (("x",),)]
