"""Stages of whole matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adam_jax import (
    adam,
    in_shard_map,
    on_matrices,
    orthogonalize,
    scale_by_moments,
    scale_by_shape,
    set_rms,
)

QUINTIC = (3.4445, -4.7750, 2.0315)


def apply(stage, x):
    return jax.jit(stage.update)(x, stage.init(x))[0]


def polynomial(x, steps, eps=1e-8):
    """Return U p(S) V' for x = U S V', in float64."""
    left, values, right = np.linalg.svd(np.asarray(x, complex), full_matrices=False)
    values = values / (np.sqrt(np.sum(values**2)) + eps)
    for a, b, c in np.broadcast_to(QUINTIC, (steps, 3)):
        values = a * values + b * values**3 + c * values**5
    return left * values @ right


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("imaginary", [0, 1j])
def test_singular_values_go_through_the_polynomial(shape, imaginary):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) + imaginary * rng.normal(size=shape)
    with jax.enable_x64(True):
        own = apply(orthogonalize(ns_steps=3), jnp.asarray(x))
    np.testing.assert_allclose(own, polynomial(x, 3), rtol=0, atol=1e-12)


def test_other_axes_count_matrices():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    for stage in (orthogonalize(adaptive=True), scale_by_shape(), set_rms(0.3)):
        whole = apply(stage, x)
        for i, j in np.ndindex(2, 3):
            alone = apply(stage, x[i, j])
            np.testing.assert_allclose(whole[i, j], alone, rtol=0, atol=1e-5)


def test_scale_and_zeros():
    """Nothing overflows, nothing is NaN, bfloat16 stays bfloat16."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    plain = apply(orthogonalize(eps=0.0), x)
    for scale in (1e-30, 1e30):
        scaled = apply(orthogonalize(eps=0.0), scale * x)
        np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-5)
        root = jnp.sqrt(jnp.mean(apply(set_rms(0.2), scale * x) ** 2))
        np.testing.assert_allclose(root, 0.2, rtol=1e-5)
    for stage in (orthogonalize(eps=0.0), set_rms(), scale_by_shape(0.2)):
        assert (apply(stage, jnp.zeros((3, 4))) == 0).all()
        assert apply(stage, jnp.zeros((0, 4))).shape == (0, 4)
        assert apply(stage, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
        slope = jax.grad(lambda y, stage=stage: apply(stage, y).sum())
        assert jnp.isfinite(slope(jnp.zeros((3, 4)))).all()
        assert jnp.isfinite(slope(x)).all()


def test_coefficients_for_each_step():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    same = apply(orthogonalize([QUINTIC] * 2, 5), x)
    np.testing.assert_allclose(same, polynomial(x, 2).real, rtol=0, atol=1e-5)
    named = apply(orthogonalize("standard", 2), x)
    np.testing.assert_allclose(named, same, rtol=0, atol=1e-5)
    values = jnp.linalg.svd(apply(orthogonalize("dion"), x))[1]
    np.testing.assert_allclose(values, 1, rtol=0, atol=0.15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: orthogonalize("muon"), "standard, dion"),
        (lambda: orthogonalize((1.0, 2.0)), "three numbers"),
        (lambda: orthogonalize([QUINTIC] * 3, 2), "3 triples of ns_coeffs"),
        (lambda: orthogonalize(ns_steps=0), "ns_steps must be a positive integer"),
        (lambda: orthogonalize(eps=-1.0), "eps must be"),
        (lambda: scale_by_shape(-0.2), "consistent_rms must be"),
        (lambda: set_rms(float("inf")), "rms must be"),
        (lambda: apply(set_rms(), {"b": jnp.ones(3)}), r"\['b'\] has shape \(3,\)"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="static_args='ns_steps'"):
        orthogonalize(ns_steps=jnp.int32(5))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="not a schedule"):
        orthogonalize(eps=lambda count: 1e-8)
    with pytest.raises(TypeError, match="got Moments"):
        apply(optax.chain(scale_by_moments(), orthogonalize()), jnp.ones((2, 2)))


def test_pieces_of_a_matrix_are_refused_in_a_shard_map():
    tx = in_shard_map(orthogonalize(), jax.P("x"))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="one of several pieces"):
        jax.shard_map(
            lambda x: apply(tx, x), mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x")
        )(jnp.ones((4, 3)))


def test_on_matrices_takes_two_axes_exactly():
    tx = on_matrices(optax.scale(2.0), others=adam(1.0))
    params = {"kernel": jnp.ones((2, 3)), "layers": jnp.ones((2, 2, 3)), "scale": 1.0}
    updates = apply(tx, params)
    assert (updates["kernel"] == 2).all()
    np.testing.assert_allclose(updates["layers"], -1, rtol=1e-6)
    np.testing.assert_allclose(updates["scale"], -1, rtol=1e-6)
