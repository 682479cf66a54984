"""Whatever stands in the parameters where there is no update is nobody's business."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import fused

MODEL = eqx.nn.MLP(2, 2, 8, 2, key=jax.random.key(0))  # has functions among its leaves
PARAMS = eqx.filter(MODEL, eqx.is_inexact_array)
GRADS = jax.tree.map(jnp.cos, PARAMS)
TRANSFORMS = {
    "adamw": adam_jax.adamw(1e-2),
    "masked decay": adam_jax.adamw(
        1e-2, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    ),
    "8bit": adam_jax.adamw(1e-2, mu_dtype="8bit", nu_dtype="8bit"),
    "lion": adam_jax.lion(1e-2),
    "packed": adam_jax.packed(adam_jax.adamw(1e-2)),
    "record": adam_jax.record(adam_jax.adamw(1e-2)),
    "skip_nonfinite": adam_jax.skip_nonfinite(adam_jax.adamw(1e-2)),
    "skip_spikes": adam_jax.skip_spikes(adam_jax.adamw(1e-2)),
    "round_to_params": adam_jax.round_to_params(adam_jax.adamw(1e-2)),
    "compensate_params": adam_jax.compensate_params(adam_jax.adamw(1e-2)),
    "checked": adam_jax.checked(adam_jax.adamw(1e-2)),
    "cast_to_params": optax.chain(
        adam_jax.scale_by_moments(),
        adam_jax.precondition(),
        adam_jax.cast_to_params(),
    ),
}


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_unfiltered_equinox_model(name):
    tx = TRANSFORMS[name]
    state = tx.init(PARAMS)
    assert_same(tx.update(GRADS, state, MODEL), tx.update(GRADS, state, PARAMS))


def test_the_fused_step_of_an_unfiltered_model():
    """It returns the model, with what has no gradient as it was."""
    tx = TRANSFORMS["adamw"]
    step, state = fused.step(tx), tx.init(PARAMS)
    model, after = step(MODEL, GRADS, state)
    params, expected = step(PARAMS, GRADS, state)
    assert model.activation is MODEL.activation
    assert_same(eqx.filter(model, eqx.is_inexact_array), params)
    assert_same(after, expected)


def test_frozen_leaves_of_any_kind():
    """An integer, a text and a subtree, where the gradient is None."""
    params = {
        "w": jnp.ones(3),
        "n": jnp.arange(2),
        "s": "name",
        "t": {"u": jnp.ones(2)},
    }
    grads = {"w": jnp.ones(3), "n": None, "s": None, "t": None}
    tx = adam_jax.adamw(1e-2)
    state = tx.init({**params, "n": None, "s": None, "t": None})
    updates, _ = tx.update(grads, state, params)
    assert updates["n"] is updates["s"] is updates["t"] is None
    made, _ = fused.step(tx)(params, grads, state)
    assert made["s"] == "name" and made["t"] is params["t"]
    np.testing.assert_allclose(made["w"], params["w"] + updates["w"])
    # Elsewhere the trees must fit, as ever.
    with pytest.raises(AssertionError, match=r"\['w'\] has shape \(3,\), not \(4,\)"):
        tx.update(grads, state, {**params, "w": jnp.ones(4)})
