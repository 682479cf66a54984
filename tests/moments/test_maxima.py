"""Maxima along axes: what SM3 keeps, alone and through all that handles formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import axis_maxima, scale_by_moments, total

SHAPES = {
    "matrix": (3, 4),
    "cube": (2, 3, 4),
    "vector": (5,),
    "scalar": (),
    "no": (0, 3),
}


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


def stage():
    return scale_by_moments(None, total(), nu_dtype=axis_maxima())


def bounds(grads):
    """SM3-II, element by element: the maxima of each slice, and nu after the last."""
    shape = grads[0].shape
    kept = [np.zeros(n) for n in shape]
    for g in np.asarray(grads, np.float64):
        new, nu = [np.zeros(n) for n in shape], np.zeros(shape)
        for place in np.ndindex(*shape):
            least = min(kept[axis][i] for axis, i in enumerate(place))
            nu[place] = least + g[place] ** 2
            for axis, i in enumerate(place):
                new[axis][i] = max(new[axis][i], nu[place])
        kept = new
    return nu, kept


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 3)], ids=str)
def test_each_axis_keeps_the_maxima_of_its_slices(shape):
    grads = np.random.default_rng(1).normal(size=(6, *shape))
    tx, params = stage(), jnp.zeros(shape)
    state = tx.init(params)
    for g in grads:
        moments, state = tx.update(jnp.asarray(g, jnp.float32), state)
    nu, kept = bounds(grads)
    np.testing.assert_allclose(moments.nu, nu, rtol=1e-6)
    found = [state.nu, *state.nu_format.others]
    assert [x.size for x in found] == [*shape]
    for x, y in zip(found, kept, strict=True):
        np.testing.assert_allclose(x.reshape(-1), y, rtol=1e-6)


def test_fewer_than_two_axes_are_kept_as_they_are():
    """As AdaGrad has them, and nothing of what has no elements."""
    tx, grads = stage(), draw()
    _, state = tx.update(grads, tx.init(grads))
    for name in ("vector", "scalar", "no"):
        np.testing.assert_allclose(state.nu[name], grads[name] ** 2, rtol=1e-6)
        assert not jax.tree.leaves(state.nu_format.others[name])


def test_states_are_read_converted_and_kept_in_files(tmp_path):
    tx, grads = adam_jax.adam(1e-2, nu_dtype=axis_maxima()), draw()
    _, state = tx.update(grads, tx.init(grads))
    _, nu = adam_jax.load_moments(state)
    wide = adam_jax.convert_state(state, nu_dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, wide[0].nu, nu)
    back = adam_jax.convert_state(wide, nu_dtype=axis_maxima())
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for mixed in ({"w": grads, "w/0": grads["scalar"]}, grads["cube"]):
        _, state = tx.update(mixed, tx.init(mixed))
        adam_jax.save_state(tmp_path / "file", state)
        nodes = adam_jax.read_state(tmp_path / "file")
        adopted = adam_jax.adopt_state(tx, nodes, mixed)
        assert adopted.dropped == adopted.started == ()
        jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


def test_eleven_axes_come_back_in_their_order(tmp_path):
    """Not in that of their names, in which "10" stands before "2"."""
    params = jnp.arange(3 * 2**3.0).reshape(3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2)
    tx = adam_jax.adam(1e-2, nu_dtype=axis_maxima())
    _, state = tx.update(params, tx.init(params))
    adam_jax.save_state(tmp_path / "file", state)
    adopted = adam_jax.adopt_state(tx, adam_jax.read_state(tmp_path / "file"), params)
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


@pytest.mark.parametrize("wrap", [adam_jax.packed, adam_jax.skip_spikes])
def test_maxima_compose(wrap):
    tx, grads = adam_jax.adamw(1e-2, nu_dtype=axis_maxima()), draw()
    expected, _ = tx.update(grads, tx.init(grads), grads)
    updates, _ = wrap(tx).update(grads, wrap(tx).init(grads), grads)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"axis_maxima\(\) stores second moments only"):
        adam_jax.adam(1e-2, mu_dtype=axis_maxima()).init(jnp.ones((2, 2)))
    params = jnp.ones((2, 3))
    tx = adam_jax.adam(1e-2, nu_dtype=axis_maxima())
    for other in (None, adam_jax.factored(2)):
        state = adam_jax.adam(1e-2, nu_dtype=other).init(params)
        with pytest.raises(ValueError, match=r"nu is stored .*axis_maxima\(\)"):
            tx.update(params, state)
    with pytest.raises(AssertionError, match=r"shape \(2, 4\), not \(2, 3\)"):
        tx.update(jnp.ones((2, 4)), tx.init(params))


def test_derivatives_are_finite():
    tx = adam_jax.adam(1.0, nu_dtype=axis_maxima())

    def first(grads):
        return tx.update(grads, tx.init(grads))[0].sum()

    assert jnp.isfinite(jax.grad(first)(jnp.zeros((2, 2)))).all()
