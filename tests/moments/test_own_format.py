"""A format of one's own, scaled, in every place where a state is read."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LEAFWISE, gradients, often, run
from flax import nnx, serialization
from jax.experimental import checkify

import adam_jax
from adam_jax import fused


class Integers(NamedTuple):
    """What is kept beside 16-bit integers: how much one of them is."""

    unit: jax.Array

    def decode(self, values, leaf):
        return of_integers(values, self.unit)


@jax.jit
def of_integers(values, unit):
    return values * unit


class IntegerFormat(adam_jax.Format):
    reader = Integers

    def init(self, x, signed):
        unit = jnp.maximum(jnp.abs(x).max(keepdims=True), 1e-30) / 32767
        return adam_jax.Stored(jnp.round(x / unit).astype(jnp.int16), Integers(unit))

    def encode(self, x, old, noise):
        return self.init(x, True)


class Maxima(NamedTuple):
    """Beside the maxima of rows those of columns (SM3)."""

    columns: jax.Array

    def decode(self, values, leaf):
        return jnp.minimum(values, self.columns)


class MaximaFormat(adam_jax.Format):
    """SM3: what flows on is the moment, not what is kept of it."""

    reader = Maxima

    def init(self, x, signed):
        rows, columns = (x.max(axis, keepdims=True) for axis in (1, 0))
        return adam_jax.Stored(rows, Maxima(columns))

    def encode(self, x, old, noise):
        return self.init(x, False)


OWN = IntegerFormat()
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones(2)}
GRADS = jax.tree.map(lambda p: jnp.cos(2 * p) + 0.5, PARAMS)


def own_adam(**options):
    return adam_jax.adam(1e-2, mu_dtype=OWN, nu_dtype=OWN, **options)


def after_two_steps(tx, params=PARAMS):
    state = tx.init(params)
    for scale in (1.0, 0.5):
        grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS)
        grads = jax.tree.map(lambda p, g: g, params, grads)
        updates, state = tx.update(grads, state, params)
    return updates, state


def assert_near(tree, expected, rtol=2e-4):
    """One of 32,767 parts of the leaf's largest element, rounded twice."""
    for x, y in zip(*map(jax.tree.leaves, (tree, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * jnp.abs(y).max())


EXACT = adam_jax.load_moments(after_two_steps(adam_jax.adam(1e-2))[1])


@pytest.mark.parametrize("wrapper", [None, "skip_nonfinite", "skip_spikes", "packed"])
@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_a_moment_is_decoded_once_an_update(name, wrapper):
    if wrapper == "packed" and name in LEAFWISE:
        return
    make = adam_jax.OPTIMIZERS[name]
    named = ("mu_dtype", "nu_dtype", "accumulator_dtype")
    storage = [k for k in named if k in inspect.signature(make).parameters]
    options = {"momentum": 0.9} if name == "sgd" else {}
    tx = make(1e-2, **options, **dict.fromkeys(storage, OWN))
    tx = getattr(adam_jax, wrapper)(tx) if wrapper else tx
    state = tx.init(PARAMS)
    moments = sum(x.dtype == jnp.int16 for x in jax.tree.leaves(state))
    jaxpr = str(jax.make_jaxpr(tx.update)(GRADS, state, PARAMS))
    assert moments or name in ("rowwise_adagrad", "adafactor")  # means, as they are
    turned = 2 * (name == "soap")  # in the branch in which mu turns with the basis
    assert jaxpr.count("name=of_integers") == moments + turned


def test_it_is_adam():
    grads = jnp.asarray(gradients(50)[:, :4], jnp.float32)
    exact, _, _ = run(adam_jax.adam(1e-2), grads, jnp.zeros(4))
    rounded, _, state = run(adam_jax.adam(1e-2, mu_dtype=OWN), grads, jnp.zeros(4))
    assert optax.tree.get(state, "mu").dtype == jnp.int16
    np.testing.assert_allclose(rounded[:, 3], exact[:, 3], rtol=0.02, atol=1e-5)


WRAPPED = {
    "plain": lambda: own_adam(),
    "packed": lambda: adam_jax.packed(own_adam()),
    "record": lambda: adam_jax.record(own_adam()),
    "guard": lambda: adam_jax.skip_nonfinite(own_adam()),
    "multi_transform": lambda: optax.multi_transform(
        {"a": own_adam(), "b": own_adam()}, {"w": "a", "b": "b"}
    ),
    "injected": lambda: optax.inject_hyperparams(adam_jax.adam)(
        1e-2, mu_dtype=OWN, nu_dtype=OWN
    ),
    "MultiSteps": lambda: optax.MultiSteps(own_adam(), 1).gradient_transformation(),
    "masked, packed": lambda: optax.masked(
        adam_jax.packed(own_adam()), {"w": True, "b": True}
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_moments_are_read_and_converted(name):
    """Not the codes of them, wherever they lie."""
    _, state = after_two_steps(WRAPPED[name]())
    assert_near(adam_jax.load_moments(state), EXACT)
    wide = adam_jax.convert_state(state, mu_dtype="float32", nu_dtype="float32")
    assert all(x.dtype != jnp.int16 for x in jax.tree.leaves(wide))
    assert_near(adam_jax.load_moments(wide), EXACT)
    back = adam_jax.convert_state(wide, mu_dtype=OWN, nu_dtype=OWN)
    assert jax.tree.map(jax.typeof, back) == jax.tree.map(jax.typeof, state)
    assert_near(adam_jax.load_moments(back), EXACT)


def test_figures_are_those_of_the_moments():
    tx = adam_jax.record(own_adam(), learning_rate=1e-2)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    ratio = state.figures["signal_to_noise"]
    np.testing.assert_allclose([ratio.total, *ratio.leaves], 1.0, rtol=1e-3)


def test_guards_packed_and_the_fused_step_change_nothing():
    expected, _ = after_two_steps(own_adam())
    for wrap in (adam_jax.skip_nonfinite, adam_jax.skip_spikes, adam_jax.packed):
        updates, _ = after_two_steps(wrap(own_adam()))
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
    tx = own_adam()
    moved, _ = fused.step(tx)(PARAMS, GRADS, tx.init(PARAMS))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert_near(moved, optax.apply_updates(PARAMS, updates), rtol=1e-6)


def test_a_check_names_the_moment():
    tx = adam_jax.checked(own_adam())
    update = checkify.checkify(jax.jit(tx.update))
    error, _ = update(GRADS, tx.init(PARAMS), PARAMS)
    assert error.get() is None
    state = tx.init(PARAMS)
    unit = state[0].nu_format.unit | {"w": jnp.full((1, 1), -1.0)}
    nu = jax.tree.map(jnp.ones_like, state[0].nu)
    negative = state[0]._replace(nu=nu, nu_format=Integers(unit))
    error, _ = update(GRADS, (negative, *state[1:]), PARAMS)
    assert "nu['w'] has 12 negative elements" in error.get()


def test_another_state_is_refused():
    state = adam_jax.adam(1e-2).init(PARAMS)
    with pytest.raises(ValueError, match=r"mu\['b'\].*another format.*IntegerFormat"):
        own_adam().update(GRADS, state, PARAMS)
    with pytest.raises(
        ValueError, match=r"mu\['b'\].*\(Integers, int16\[2\]\).*float32 or"
    ):
        adam_jax.adam(1e-2).update(GRADS, own_adam().init(PARAMS), PARAMS)


def test_flax_and_nnx_keep_it():
    _, state = after_two_steps(own_adam())
    data = serialization.to_bytes(state)
    restored = serialization.from_bytes(own_adam().init(PARAMS), data)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, own_adam(), wrt=nnx.Param)
    before = model.kernel[...]
    grads = nnx.grad(lambda m: m(jnp.ones((2, 3))).sum())(model)
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.kernel[...] - before, -1e-2, rtol=1e-3)


def test_a_format_that_shares_and_flows_what_was_computed():
    """SM3 (Anil et al. 2019, Algorithm SM3-II), of a matrix, in NumPy."""
    grads = np.random.default_rng(0).normal(size=(20, 4, 5))
    rows, columns = np.zeros((4, 1)), np.zeros((1, 5))
    expected = []
    for g in grads:
        nu = np.minimum(rows, columns) + g**2
        rows, columns = nu.max(1, keepdims=True), nu.max(0, keepdims=True)
        expected.append(-g / np.sqrt(nu))
    tx = optax.chain(
        adam_jax.scale_by_moments(None, adam_jax.total(), nu_dtype=MaximaFormat()),
        adam_jax.precondition(eps=0.0),
        adam_jax.scale_by_lr(1.0),
    )
    with jax.enable_x64(True):
        updates, _, state = run(tx, jnp.asarray(grads), jnp.zeros((4, 5)))
    np.testing.assert_allclose(updates, expected, rtol=1e-12)
    assert [x.shape for x in jax.tree.leaves(state[0].nu)] == [(4, 1)]
    mu, nu = adam_jax.load_moments(state)
    assert mu is None and nu.shape == (4, 5)


@pytest.mark.parametrize("nu_dtype", [OWN, adam_jax.mean_over(-1)])
def test_packed_moments_in_a_mask_are_converted(nu_dtype):
    """Leaf numbers in a packed state count the leaves that the mask selects."""
    mask = {"b": False, "w": True}
    tx = optax.masked(adam_jax.packed(adam_jax.adam(1e-2, nu_dtype=nu_dtype)), mask)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    wide = adam_jax.convert_state(state, nu_dtype="float32", params=PARAMS)
    _, expected = adam_jax.load_moments(state, PARAMS)
    np.testing.assert_array_equal(adam_jax.load_moments(wide)[1]["w"], expected["w"])
    after = optax.masked(adam_jax.packed(adam_jax.adam(1e-2, nu_dtype="float32")), mask)
    after.update(GRADS, wide, PARAMS)


@pytest.mark.parametrize("nu_dtype", [None, adam_jax.mean_over(-1)])
def test_moments_in_nnx_are_read_with_the_parameters(nu_dtype):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = adam_jax.adam(1e-2, nu_dtype=nu_dtype)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: m(jnp.ones((1, 3))).sum())(model)
    optimizer.update(model, grads)
    params = nnx.state(model, nnx.Param)
    _, nu = adam_jax.load_moments(optimizer.opt_state, params)
    assert [x.shape for x in jax.tree.leaves(nu)] == [(2,), (3, 2)]
    wide = adam_jax.convert_state(
        optimizer.opt_state, nu_dtype="float32", params=params
    )
    np.testing.assert_array_equal(
        *(jax.tree.leaves(x)[1] for x in (adam_jax.load_moments(wide)[1], nu))
    )


def test_parameters_that_do_not_fit_are_refused():
    tx = adam_jax.adam(1e-2, nu_dtype=adam_jax.mean_over(-1))
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"\['w'\] has shape \(9, 4\), its moment"):
        adam_jax.load_moments(state, PARAMS | {"w": jnp.ones((9, 4))})
    with pytest.raises(ValueError, match=r"\['w'\] is None, not an array"):
        adam_jax.load_moments(state, PARAMS | {"w": None})
    with pytest.raises(ValueError, match=r"\['w'\] is not in them"):
        adam_jax.load_moments(state, {"b": jnp.ones(2)})


@pytest.mark.parametrize("nu_dtype", ["8bit", adam_jax.factored(2), OWN])
def test_optax_maps_the_state_of_a_recorded_optimizer(nu_dtype):
    tx = adam_jax.record(adam_jax.adam(1e-2, nu_dtype=nu_dtype))
    state = tx.init(PARAMS)
    mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
    np.testing.assert_array_equal(optax.tree.get(mapped, "mu")["w"], 1.0)
