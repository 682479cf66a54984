"""Any stages, in other coordinates, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import (
    bias_correct,
    eigenbasis,
    eight_bit,
    ema,
    inverse_roots,
    lion_average,
    precondition,
    residual_variance,
    running_max,
    scale_by_lr,
    scale_by_moments,
    scale_by_trace,
    subspace,
    within,
)

STEPS, EVERY, DECAY = 30, 4, 0.9
PARAMS = {"matrix": np.zeros((4, 3)), "vector": np.zeros(5)}


def stages(name, **storage):
    """Return the stages of an optimizer, without its learning rate."""
    nu = {k: v for k, v in storage.items() if k == "nu_dtype"}
    mu = {k: v for k, v in storage.items() if k == "mu_dtype"}
    divided = [bias_correct(), precondition()]
    return {
        "adam": [scale_by_moments(0.9, 0.99, **storage), *divided],
        "nadam": [scale_by_moments(ema(0.9, nesterov=True), 0.99, **storage), *divided],
        "adabelief": [
            scale_by_moments(0.9, residual_variance(0.99), **storage),
            *divided,
        ],
        "amsgrad": [
            scale_by_moments(0.9, 0.99, **storage),
            bias_correct(),
            running_max(),
            precondition(),
        ],
        "lion": [
            scale_by_moments(lion_average(0.9, 0.99), None, **mu),
            precondition(),
            optax.scale_by_sign(),
        ],
        "laprop": [
            scale_by_moments(None, 0.99, **nu),
            *divided,
            scale_by_moments(0.9, None, **mu),
            *divided,
        ],
        "heavy ball": [scale_by_trace(0.9, accumulator_dtype=storage.get("mu_dtype"))],
        "optax": [optax.scale_by_adam(0.9, 0.99)],
    }[name]


def step_of(name, kept, g, t):
    """Return an update, in float64. `kept["m"]` turns with the coordinates."""
    m, v = kept.get("m", 0 * g), kept.get("v", 0 * g)
    if name == "heavy ball":
        kept["m"] = 0.9 * m + g
        return kept["m"]
    if name == "lion":
        kept["m"] = 0.99 * m + 0.01 * g
        return np.sign(0.9 * m + 0.1 * g)
    value = g
    if name == "laprop":
        kept["v"] = 0.99 * v + 0.01 * g**2
        value = g / (np.sqrt(kept["v"] / (1 - 0.99**t)) + 1e-8)
    kept["m"] = m = 0.9 * m + 0.1 * value
    hat = m / (1 - 0.9**t)
    if name == "laprop":
        return hat
    if name == "nadam":
        hat = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    square = (g - m) ** 2 if name == "adabelief" else g**2
    kept["v"] = 0.99 * v + 0.01 * square + (1e-16 if name == "adabelief" else 0)
    nu = kept["v"] / (1 - 0.99**t)
    if name == "amsgrad":
        kept["top"] = nu = np.maximum(kept.get("top", 0), nu)
    return hat / (np.sqrt(nu) + 1e-8)


def soap_updates(name, grads):
    """Yield the updates of a matrix or a vector, in the eigenvectors of SOAP."""
    left, right = (np.zeros((n, n)) for n in (*grads[0].shape, 0)[:2])
    kept = {}
    for s, g in enumerate(grads):
        if g.ndim == 1:
            yield step_of(name, kept, g, s) if s else 0 * g
            continue
        old = kept.get("Q")
        if s == 1:
            kept["Q"] = [np.linalg.eigh(x)[1][:, ::-1] for x in (left, right)]
        elif s and (s - 1) % EVERY == 0:
            factors = zip((left, right), old, strict=True)
            kept["Q"] = [np.linalg.qr(x @ q)[0] for x, q in factors]
        left = DECAY * left + (1 - DECAY) * g @ g.T
        right = DECAY * right + (1 - DECAY) * g.T @ g
        if s == 0:
            yield 0 * g
            continue
        p, q = kept["Q"]
        if old and "m" in kept:
            kept["m"] = p.T @ old[0] @ kept["m"] @ old[1].T @ q
        yield p @ step_of(name, kept, p.T @ g @ q, s) @ q.T


def make_grads(seed=0, steps=STEPS, params=PARAMS):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda x: rng.normal(size=x.shape), params) for _ in range(steps)
    ]


def run(tx, grads, dtype):
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), grads[0])
    state, update, made = tx.init(params), jax.jit(tx.update), []
    types = jax.tree.map(jax.typeof, state)
    for g in grads:
        g = jax.tree.map(lambda x: jnp.asarray(x, dtype), g)
        updates, state = update(g, state, params)
        assert jax.tree.map(jax.typeof, state) == types
        made.append(jax.tree.map(np.asarray, updates))
    return made, state


NAMES = [
    "adam",
    "nadam",
    "adabelief",
    "amsgrad",
    "lion",
    "laprop",
    "heavy ball",
    "optax",
]


@pytest.mark.parametrize("name", NAMES)
def test_stages_in_the_eigenbasis_follow_the_oracle(name):
    grads = make_grads()
    with jax.enable_x64(True):
        tx = within(eigenbasis(DECAY, every=EVERY), *stages(name))
        found, _ = run(tx, grads, jnp.float64)
    for key in PARAMS:
        rule = "adam" if name == "optax" else name
        expected = soap_updates(rule, [g[key] for g in grads])
        for t, (own, want) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_allclose(
                own[key], want, rtol=0, atol=1e-9, err_msg=str(t)
            )


SMALL = eight_bit(min_size=1)  # for leaves of any size


# The signs of lion may flip where its average is near 0.
@pytest.mark.parametrize("dtype", ["bfloat16", SMALL], ids=["bfloat16", "8bit"])
@pytest.mark.parametrize("name", ["adam", "nadam", "adabelief", "amsgrad", "laprop"])
def test_narrow_moments_turn_with_the_basis(name, dtype):
    grads = make_grads(1)
    wide, _ = run(
        within(eigenbasis(DECAY, every=EVERY), *stages(name)), grads, jnp.float32
    )
    tx = within(
        eigenbasis(DECAY, every=EVERY), *stages(name, mu_dtype=dtype, nu_dtype=dtype)
    )
    narrow, _ = run(tx, grads, jnp.float32)
    for own, want in zip(narrow, wide, strict=True):
        for key in PARAMS:
            np.testing.assert_allclose(own[key], want[key], rtol=0, atol=0.1)


COORDINATES = {
    "eigenbasis": lambda: eigenbasis(DECAY, every=2),
    "inverse_roots": lambda: inverse_roots(every=2),
    "subspace": lambda: subspace(2, every=2),
}
every_kind = pytest.mark.parametrize("kind", COORDINATES)


def made_by(kind, *, steps=4, **storage):
    """Return an optimizer in these coordinates, its state, gradients, parameters."""
    tx = optax.chain(
        within(COORDINATES[kind](), *stages("adam", **storage)), scale_by_lr(1e-2)
    )
    grads = make_grads(2, steps)
    _, state = run(tx, grads, jnp.float32)
    params = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), PARAMS)
    return tx, state, jax.tree.map(jnp.float32, grads[0]), params


@every_kind
def test_map_params_knows_the_moments_alone(kind):
    tx, state, _, _ = made_by(kind)
    mapped = optax.tree.map_params(
        tx, jnp.zeros_like, state, transform_non_params=lambda x: x
    )
    own, given = mapped[0], state[0]
    assert all((x == 0).all() for x in jax.tree.leaves(own.inner_state[0].mu))
    assert all(map(np.array_equal, *map(jax.tree.leaves, (own[:2], given[:2]))))


@every_kind
def test_states_are_cut_like_the_parameters_and_step_so(kind):
    tx, state, grads, params = made_by(kind)
    expected, _ = tx.update(grads, state, params)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=auto)
    spec = {"matrix": jax.P("model"), "vector": jax.P()}
    params = {
        k: jax.device_put(x, jax.NamedSharding(mesh, spec[k]))
        for k, x in params.items()
    }
    shardings = adam_jax.state_shardings(tx, params, over="data")
    state = jax.device_put(state, shardings)
    step = jax.jit(tx.update, out_shardings=(None, shardings))
    updates, new = step(grads, state, params)
    for key in PARAMS:
        np.testing.assert_allclose(updates[key], expected[key], rtol=0, atol=1e-6)
    moment = new[0].inner_state[0].mu["matrix"]
    assert moment.sharding.spec[0] == "model"
    if kind != "subspace":  # whose projector has no axis of 4
        kept = [tree["matrix"] for tree in new[0].coordinates.values()]
        assert any("model" in x.sharding.spec for x in kept)


@every_kind
def test_a_saved_state_goes_on_bit_for_bit(kind, tmp_path):
    pytest.importorskip("safetensors")
    tx, state, _, params = made_by(kind)
    adam_jax.save_state(tmp_path / "state", state)
    adopted = adam_jax.adopt_state(tx, adam_jax.read_state(tmp_path / "state"), params)
    assert adopted.dropped == adopted.started == ()
    assert jax.tree.all(jax.tree.map(np.array_equal, adopted.state, state))


@every_kind
def test_moments_in_other_coordinates_stay_there(kind):
    tx, state, _, params = made_by(kind)
    adam = adam_jax.adam(1e-2)
    with pytest.raises(ValueError, match="coordinates of their own"):
        adam_jax.adopt_state(adam, state, params)
    with pytest.raises(ValueError, match="coordinates of their own"):
        adam_jax.adopt_state(tx, adam.update(params, adam.init(params))[1], params)
    with pytest.raises(ValueError, match="coordinates of their own"):
        adam_jax.set_moments(tx, params, params, params, count=3)
    with pytest.raises(ValueError, match="coordinates of their own"):
        group = {"params": [0, 1], "betas": (0.9, 0.99), "amsgrad": False}
        new = {"state": {}, "param_groups": [group]}
        adam_jax.write_torch(state, new, list(PARAMS), [(3, 4), (5,)])
    with pytest.raises(ValueError, match=r"read_moments\(state\)"):
        adam_jax.load_moments(state)
    [node] = adam_jax.read_moments(state, params)
    assert node.mu["matrix"].shape == ((4, 2) if kind == "subspace" else (4, 3))


def test_moments_of_vectors_alone_are_those_of_adam():
    """Where nothing turns, a state is like any other."""
    params = {"vector": jnp.ones(5)}
    tx = within(eigenbasis(), *stages("adam"))
    adam = adam_jax.adam(1e-2)
    _, old = adam.update(params, adam.init(params))
    adopted = adam_jax.adopt_state(tx, old, params)
    mu, _ = adam_jax.load_moments(adopted.state)
    np.testing.assert_allclose(mu["vector"], 0.1, rtol=1e-6)


@every_kind
def test_a_state_is_converted_and_adopted_in_another_format(kind):
    _, state, grads, params = made_by(kind)
    tx, _, _, _ = made_by(kind, steps=1, mu_dtype=SMALL, nu_dtype="bfloat16")
    formats = {"mu_dtype": SMALL, "nu_dtype": "bfloat16"}
    for old in (
        adam_jax.convert_state(state, **formats),
        adam_jax.convert_state(state, **formats, params=params),
        adam_jax.adopt_state(tx, state, params).state,
    ):
        updates, _ = tx.update(grads, old, params)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(updates))


@every_kind
def test_wrappers_around_it(kind):
    """Figures leave its moments out, a guard keeps its state, fused.step its step."""
    tx, state, grads, params = made_by(kind)
    recorded = adam_jax.record(tx)
    figures = recorded.init(params).figures
    assert "gradient_norm" in figures and "signal_to_noise" not in figures
    guarded = adam_jax.skip_nonfinite(tx)
    bad = {**grads, "matrix": jnp.full((4, 3), jnp.nan)}
    old = guarded.init(params)._replace(inner_state=state)
    _, new = jax.jit(guarded.update)(bad, old, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, new.inner_state, state))
    updates, _ = tx.update(grads, state, params)
    fused, _ = jax.jit(adam_jax.fused.step(tx))(params, grads, state)
    for key in PARAMS:
        moved = params[key] + updates[key]
        np.testing.assert_allclose(fused[key], moved, rtol=0, atol=1e-6)


def test_moments_in_the_host_s_memory_turn_and_stay_there():
    tx, state, grads, params = made_by("eigenbasis", mu_dtype=SMALL)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    shardings = adam_jax.state_shardings(tx, params, memory_kind="pinned_host")
    held = jax.device_put(state, shardings)
    if held[0].inner_state[0].mu["matrix"].sharding.memory_kind != "pinned_host":
        pytest.skip("no such memory")
    step = jax.jit(tx.update, out_shardings=(None, shardings))
    try:
        step(grads, held, params)
    except jax.errors.JaxRuntimeError:  # of an older jax, on CPU
        pytest.skip("no step leaves arrays in such memory")
    for _ in range(3):
        updates, held = step(grads, held, params)
        expected, state = tx.update(grads, state, params)
        for key in PARAMS:
            np.testing.assert_allclose(updates[key], expected[key], rtol=0, atol=1e-5)
    assert held[0].inner_state[0].mu["matrix"].sharding.memory_kind == "pinned_host"


def test_masked_stages_turn_what_they_see():
    tx = within(
        eigenbasis(DECAY, every=2),
        optax.masked(optax.chain(*stages("adam")), {"matrix": True, "vector": False}),
    )
    whole = within(eigenbasis(DECAY, every=2), *stages("adam"))
    grads = make_grads(3, 6)
    masked, plain = (run(x, grads, jnp.float32)[0] for x in (tx, whole))
    np.testing.assert_allclose(
        masked[-1]["matrix"], plain[-1]["matrix"], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(masked[-1]["vector"], grads[-1]["vector"], rtol=1e-6)


def test_complex_gradients_turn_into_a_diagonal():
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3)), "complex64")
    tx = within(eigenbasis(), optax.identity())
    state = tx.init(g)
    for _ in range(2):
        updates, state = tx.update(g, state)
    np.testing.assert_allclose(updates, g, rtol=0, atol=1e-5)
    left, right = (state.coordinates[f"basis{i}"] for i in range(2))
    turned = np.abs(left.conj().T @ g @ right.conj())
    assert turned[~np.eye(3, dtype=bool)].max() < 1e-5 < turned.diagonal().min()
    for other in (subspace(3), inverse_roots(1e-8)):
        tx = within(other, optax.identity())
        updates, _ = tx.update(g, tx.init(g))
        values = jnp.linalg.svd(updates)[1]
        expected = jnp.linalg.svd(g)[1] if isinstance(other, type(subspace(3))) else 1
        np.testing.assert_allclose(values, expected, rtol=1e-4)


@every_kind
def test_derivatives_are_finite_where_eigenvalues_coincide(kind):
    tx = within(COORDINATES[kind](), *stages("adam"))

    def moved(scale):
        state, total = tx.init(jnp.zeros((3, 3))), 0.0
        for _ in range(3):
            updates, state = tx.update(scale * jnp.eye(3), state)
            total += updates.sum()
        return total

    assert jnp.isfinite(jax.grad(moved)(1.0)) and jnp.isfinite(jax.grad(moved)(0.0))


def test_axes_that_do_not_turn():
    params = {
        "long": jnp.ones((3, 8)),
        "three": jnp.ones((2, 3, 4)),
        "none": jnp.ones((0, 3)),
    }
    kept = within(eigenbasis(max_size=4), optax.identity()).init(params).coordinates
    shapes = jax.tree.map(jnp.shape, kept)
    hole = optax.MaskedNode()
    assert shapes["basis0"] == {"long": (3, 3), "three": (2, 2), "none": hole}
    assert shapes["basis1"] == {"long": hole, "three": (3, 3), "none": hole}
    assert shapes["basis2"] == {"long": hole, "three": (4, 4), "none": hole}
    start = subspace(2).init(jnp.ones((3, 8)))["projector"]
    assert start.shape == (3, 2) and subspace(2).shape((8, 3)) == (8, 2)


def test_what_is_refused():
    params = {"matrix": jnp.ones((4, 3))}
    tx = within(eigenbasis(), *stages("adam"))
    state = tx.init(params)
    with pytest.raises(TypeError, match="takes coordinates first"):
        within(*stages("adam"))
    with pytest.raises(TypeError, match="whole optimizer"):
        moments = within(subspace(2), scale_by_moments())
        moments.update(params, moments.init(params))
    with pytest.raises(ValueError, match=r"\['matrix'\] of shape \(3, 4\)"):
        tx.update({"matrix": jnp.ones((3, 4))}, state)
    with pytest.raises(ValueError, match="optimizer that made it"):
        within(subspace(2), *stages("adam")).update(params, state)
    with pytest.raises(ValueError, match="structure of the parameters"):
        tx.update({"other": params["matrix"]}, state)
    with pytest.raises(TypeError, match="WithinState"):
        tx.update(params, adam_jax.adam(1e-3).init(params))
    with pytest.raises(ValueError, match="static_args='every'"):
        eigenbasis(every=jnp.int32(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rank must be a positive integer"):
        subspace(0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="every must be a positive integer"):
        inverse_roots(every=0)
    with pytest.raises(TypeError, match="not a schedule"):
        inverse_roots(lambda count: 1e-6)


def test_pieces_of_a_matrix_are_refused_in_a_shard_map():
    tx = adam_jax.in_shard_map(within(subspace(2), *stages("adam")), jax.P("x"))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(grads):
        return tx.update(grads, tx.init(grads))[0]

    with pytest.raises(ValueError, match="one of several pieces"):
        jax.shard_map(step, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"))(
            jnp.ones((4, 3))
        )
