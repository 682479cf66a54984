"""The fused optimizers beside the composed ones: in every place, and as each other."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import dense, eight_bit, fused
from adam_jax.fused import native, transformation

STORED = {
    "float32": None,
    "bfloat16": "bfloat16",
    "8bit": eight_bit(min_size=64),
}
needs_native = pytest.mark.skipif(
    not native.available(), reason="the native library was not built"
)


def falling(count):
    return 1e-2 / (1.0 + 0.1 * count)


# Learning rates are 1e-2 at most, so that an update is near 1e-2.
CASES = {
    "defaults": {},
    "nesterov, mask": {
        "nesterov": True,
        "mask": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        "weight_decay": 0.1,
    },
    "schedules, a prefix as mask": {
        "learning_rate": falling,
        "b1": lambda count: 0.9 - 0.1 / (1.0 + count),
        "weight_decay": falling,
        "mask": {"w": True, "rest": False},
    },
    "arrays, eps_root": {
        "learning_rate": jnp.float32(1e-2),
        "b2": jnp.float32(0.99),
        "eps": 1e-3,
        "eps_root": 1e-4,
    },
}


def tree(dtype=jnp.float32):
    """Leaves of many shapes: coded and not, with a short last block, of no elements."""
    rng = np.random.default_rng(0)
    shapes = {"w": (5, 70), "rest": {"b": (7,), "c": (), "none": (3, 0), "v": (130,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def gradients(step, params):
    rng = np.random.default_rng(step + 1)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 10.0**-step, p.dtype), params
    )


def pair(name, case):
    """Return the fused and the composed optimizer of a case."""
    stored = STORED[name]
    h = {"learning_rate": 1e-2, **CASES[case], "mu_dtype": stored, "nu_dtype": stored}
    return fused.adamw(**h), adam_jax.adamw(**h)


@functools.partial(jax.jit, static_argnums=(0, 1))
def update_and_apply(tx, rounds, params, grads, state):
    tx = adam_jax.round_to_params(tx) if rounds else tx
    updates, state = tx.update(grads, state, params)
    return updates, optax.apply_updates(params, updates), state


def assert_close(tree, expected, rtol=1e-6, atol=1e-8):
    """Compare to 1e-6 of the value, or of the learning rate where terms cancel."""

    def check(x, y):
        assert x.dtype == y.dtype and x.shape == y.shape
        wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
        np.testing.assert_allclose(np.asarray(x, wide), np.asarray(y, wide), rtol, atol)

    jax.tree.map(check, tree, expected)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float32") for case in CASES] + [("nesterov, mask", "bfloat16")],
)
@pytest.mark.parametrize("name", STORED)
def test_update_and_step_are_those_of_the_chain(name, case, dtype):
    tx, chain = pair(name, case)
    params = tree(dtype)
    state = chain.init(params)
    assert jax.tree.structure(tx.init(params)) == jax.tree.structure(state)
    assert_close(tx.init(params), state, rtol=0, atol=0)
    bfloat16 = dtype == "bfloat16"
    step = jax.jit(tx.step)
    for number in range(3):
        grads = gradients(number, params)
        updates, _, next_state = update_and_apply(chain, False, params, grads, state)
        emitted, after_update = jax.jit(tx.update)(grads, state, params)
        # XLA may contract sums of products in another way: by a last place of bfloat16.
        assert_close(emitted, updates, rtol=2**-7 if bfloat16 else 1e-6)
        # Rounding stochastically, the step is that of round_to_params.
        rounded = adam_jax.round_to_params(chain).init(params)
        rounded = rounded._replace(inner_state=state, count=state[0].count)
        _, landed, _ = update_and_apply(
            chain, bfloat16, params, grads, rounded if bfloat16 else state
        )
        new_params, after_step = step(params, grads, state)
        assert_close(new_params, landed, rtol=2**-7 if bfloat16 else 1e-6)
        same = [
            np.mean(np.asarray(x) == np.asarray(y))
            for x, y in zip(
                jax.tree.leaves(new_params), jax.tree.leaves(landed), strict=True
            )
            if x.size > 1
        ]
        assert np.mean(same) > 0.9
        for after in (after_update, after_step):
            for x, y in zip(
                jax.tree.leaves(after), jax.tree.leaves(next_state), strict=True
            ):
                assert x.dtype == y.dtype
                # A contraction moves a code by one, rarely.
                different = np.asarray(x, np.float32) != np.asarray(y, np.float32)
                assert different.sum() <= 1 + 0.01 * x.size
        params, state = new_params, after_step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STORED)
def test_a_packed_step_is_that_of_the_packed_chain(name, dtype):
    # With powers of two products are exact, and so is every bit.
    def half(count):
        return jnp.where(count < 1000, 0.5, 0.9)

    mask = {"w": True, "rest": {"b": False, "c": True, "none": True, "v": True}}
    h = {"learning_rate": 2.0**-7, "b1": half, "b2": half, "weight_decay": 0.25}
    h |= {"mu_dtype": STORED[name], "nu_dtype": STORED[name]}
    tx = fused.adamw(**h, mask=mask, packed=True)
    chain = adam_jax.packed(functools.partial(adam_jax.adamw, **h), mask=mask)
    if dtype == "bfloat16":
        chain = adam_jax.round_to_params(chain)
    params = tree(dtype)
    state, expected = tx.init(params), chain.init(params)
    assert len(state[0].mu.buffers) == (5 if name == "8bit" else 3)
    landed, step = params, jax.jit(tx.step)
    for number in range(2):
        grads = gradients(number, params)
        assert not native.available() or is_native(tx.step, params, grads, state)
        params, state = step(params, grads, state)
        _, landed, expected = update_and_apply(chain, False, landed, grads, expected)
        assert_close(params, landed, rtol=0, atol=0)
        inner = expected.inner_state if dtype == "bfloat16" else expected
        assert_close(state, inner, rtol=0, atol=0)


@pytest.mark.parametrize("name", STORED)
def test_either_continues_the_others_run(name):
    tx, chain = pair(name, "defaults")
    params = tree()
    state = chain.init(params)
    grads = [gradients(i, params) for i in range(4)]
    mixed, expected = (params, state), (params, state)
    for number, grad in enumerate(grads):
        expected = update_and_apply(chain, False, expected[0], grad, expected[1])[1:]
        if number % 2:
            mixed = update_and_apply(chain, False, mixed[0], grad, mixed[1])[1:]
        else:
            mixed = jax.jit(tx.step)(mixed[0], grad, mixed[1])
    # A code that differs by one moves later steps by 1/16 of the learning rate.
    atol = 1e-7 if name == "float32" else 1e-3
    assert_close(mixed[0], expected[0], rtol=1e-6, atol=atol)


def test_nearest_rounding_is_that_of_apply_updates():
    tx, chain = (
        make(1e-3, **kwargs)
        for make, kwargs in (
            (fused.adamw, {"rounding": "nearest"}),
            (adam_jax.adamw, {}),
        )
    )
    params = tree("bfloat16")
    state = chain.init(params)
    grads = gradients(0, params)
    _, landed, _ = update_and_apply(chain, False, params, grads, state)
    new, _ = jax.jit(tx.step)(params, grads, state)
    assert_close(new, landed, rtol=0, atol=0)


def test_adam_decays_nothing_and_bias_correction_can_be_left_out():
    params = tree()
    grads = gradients(0, params)
    for tx, chain in (
        (fused.adam(1e-3), adam_jax.adam(1e-3)),
        (fused.adam(1e-3, bias_correction=False), adam_jax.simplified_adam(1e-3)),
    ):
        state = chain.init(params)
        assert jax.tree.structure(tx.init(params)) == jax.tree.structure(state)
        landed = update_and_apply(chain, False, params, grads, state)[1]
        assert_close(jax.jit(tx.step)(params, grads, state)[0], landed)
        assert_close(tx.update(grads, state)[0], chain.update(grads, state)[0])


def is_native(function, *args):
    return "adam_jax_fused_step" in jax.jit(function).lower(*args).as_text()


@needs_native
def test_steps_are_native_and_updates_are_the_chains():
    assert fused.backend() == "native"
    params = {"w": jnp.ones((4, 64)), "v": jnp.ones((4, 64))}
    for stored in (None, "bfloat16", "8bit"):
        for packs in (False, True):
            tx = fused.adamw(1e-3, mu_dtype=stored, nu_dtype=stored, packed=packs)
            state = tx.init(params)
            assert is_native(tx.step, params, params, state)
            assert not is_native(tx.update, params, state, params)
    own = dense("bfloat16")._replace(decode=lambda stored: stored.values)
    tx = fused.adamw(1e-3, mu_dtype=own)
    assert not is_native(tx.step, params, params, tx.init(params))


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
def test_other_dtypes_take_the_chain(dtype):
    params = tree(dtype)
    grads = gradients(0, params)
    tx, chain = fused.adamw(1e-2), adam_jax.adamw(1e-2)
    state = chain.init(params)
    updates, landed, _ = update_and_apply(chain, False, params, grads, state)
    assert_close(tx.update(grads, state, params)[0], updates, rtol=1e-3)
    if dtype == "float16":  # complex numbers do not compare
        assert_close(tx.step(params, grads, state)[0], landed, rtol=1e-3)
    assert not is_native(tx.step, params, grads, state)


def test_float64_takes_the_chain():
    with jax.enable_x64(True):
        params = tree("float64")
        grads = gradients(0, params)
        tx, chain = fused.adamw(1e-2), adam_jax.adamw(1e-2)
        state = chain.init(params)
        _, landed, _ = update_and_apply(chain, False, params, grads, state)
        assert_close(tx.step(params, grads, state)[0], landed, rtol=1e-14)


@needs_native
def test_half_precision_gradients_of_float32_parameters_are_native():
    params = tree()
    tx, chain = fused.adamw(1e-2), adam_jax.adamw(1e-2)
    state = chain.init(params)
    for dtype in ("float16", "bfloat16"):
        grads = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        assert is_native(tx.step, params, grads, state)
        landed = update_and_apply(chain, False, params, grads, state)[1]
        assert_close(jax.jit(tx.step)(params, grads, state)[0], landed)


@pytest.mark.parametrize("name", STORED)
def test_vmap_over_gradients_and_learning_rates(name):
    params = tree()
    batch = jax.tree.map(lambda g: jnp.stack([g, -2 * g]), gradients(0, params))

    def trained(make, learning_rate, grads):
        stored = STORED[name]
        tx = make(learning_rate, mu_dtype=stored, nu_dtype=stored)
        state, updates = tx.init(params), None
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
        return updates

    rates = jnp.array([1e-2, 1e-3])
    ours, theirs = (
        jax.jit(jax.vmap(functools.partial(trained, make)))(rates, batch)
        for make in (fused.adamw, adam_jax.adamw)
    )
    assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_step_under_vmap():
    params = tree()
    tx, chain = fused.adamw(1e-2), adam_jax.adamw(1e-2)
    batch = jax.tree.map(lambda g: jnp.stack([g, -2 * g]), gradients(0, params))
    state = chain.init(params)
    new, _ = jax.jit(jax.vmap(lambda g: tx.step(params, g, state)))(batch)
    for i in range(2):
        grads = jax.tree.map(lambda g, i=i: g[i], batch)
        landed = update_and_apply(chain, False, params, grads, state)[1]
        assert_close(jax.tree.map(lambda x, i=i: x[i], new), landed)


def test_derivatives_through_the_step_are_the_chains():
    params = {"w": jnp.linspace(-1, 1, 5)}

    def loss(make, uses_step, learning_rate, scale):
        tx = make(learning_rate)
        new, state = params, tx.init(params)
        for power in (1, 2):
            grads = jax.tree.map(lambda x, power=power: scale * x**power, params)
            if uses_step:
                new, state = tx.step(new, grads, state)
            else:
                updates, state = tx.update(grads, state, new)
                new = optax.apply_updates(new, updates)
        return jnp.sum(new["w"] ** 2)

    def mixed(make, uses_step):
        first = jax.grad(functools.partial(loss, make, uses_step))
        return jax.jit(jax.grad(lambda a, b: first(a, b), argnums=(0, 1)))(1e-2, 1.0)

    expected = mixed(adam_jax.adamw, False)
    assert_close(mixed(fused.adamw, True), expected, rtol=1e-4, atol=1e-6)
    assert_close(mixed(fused.adamw, False), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.masked(tx, {"w": True, "rest": False}),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        adam_jax.skip_nonfinite,
        adam_jax.record,
        adam_jax.round_to_params,
    ],
    ids=["chain", "masked", "MultiSteps", "finite", "guard", "record", "rounding"],
)
def test_it_stands_where_the_chain_does(wrap):
    params = tree()

    @functools.partial(jax.jit, static_argnums=0)
    def train(tx):
        def step(carry, number):
            params, state = carry
            grads = jax.tree.map(lambda p: p * jnp.cos(number), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(4.0))[0][0]

    narrow = {"mu_dtype": "bfloat16", "nu_dtype": "bfloat16"}
    ours, theirs = (
        train(wrap(make(1e-2, **narrow))) for make in (fused.adamw, adam_jax.adamw)
    )
    assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_inject_hyperparams():
    params = tree()
    grads = gradients(0, params)
    injected = optax.inject_hyperparams(fused.adamw)(learning_rate=1e-2)
    updates, _ = injected.update(grads, injected.init(params), params)
    chain = adam_jax.adamw(1e-2)
    assert_close(updates, chain.update(grads, chain.init(params), params)[0])


def sharded(params):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    specs = {"w": P("a", "b"), "b": P("a")}
    place = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    return mesh, specs, place, jax.device_put(params, place)


@pytest.mark.parametrize("name", STORED)
def test_on_a_mesh_xla_shards_the_chain(name):
    params = {"w": jnp.linspace(-1, 1, 8 * 128).reshape(8, 128), "b": jnp.ones(8)}
    _, _, place, placed = sharded(params)
    tx, _ = pair(name, "defaults")
    state = jax.jit(tx.init)(placed)
    compiled = jax.jit(tx.step).lower(placed, placed, state).compile()
    assert "all-gather" not in compiled.as_text()
    expected, _ = jax.jit(tx.step)(params, params, tx.init(params))
    assert_close(compiled(placed, placed, state)[0], expected)
    # Told of the shardings late, XLA gathers what it cannot cut; the numbers are right.
    late = jax.jit(tx.step, in_shardings=(place, place, None))
    assert_close(late(params, params, tx.init(params))[0], expected)


@needs_native
@pytest.mark.parametrize("name", STORED)
def test_in_a_shard_map_each_shard_is_native(name):
    params = {"w": jnp.linspace(-1, 1, 8 * 128).reshape(8, 128), "b": jnp.ones(8)}
    mesh, specs, _, _ = sharded(params)
    tx, _ = pair(name, "defaults")

    def local(params, grads):
        return tx.step(params, grads, tx.init(params))[0]

    step = jax.shard_map(local, mesh=mesh, in_specs=(specs, specs), out_specs=specs)
    assert is_native(step, params, params)
    expected, _ = jax.jit(tx.step)(params, params, tx.init(params))
    assert_close(jax.jit(step)(params, params), expected)


@needs_native
def test_a_donated_step_happens_in_place():
    params = {"w": jnp.ones((64, 1024))}
    tx = fused.adamw(1e-3)
    state = tx.init(params)
    step = jax.jit(tx.step, donate_argnums=(0, 2)).lower(params, params, state)
    memory = step.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096
    assert memory.alias_size_in_bytes >= 3 * params["w"].nbytes


@needs_native
def test_a_step_is_exported_where_its_call_is_allowed():
    params = tree()
    tx = fused.adamw(1e-2)
    state = tx.init(params)
    allowed = jax.export.DisabledSafetyCheck.custom_call("adam_jax_fused_step")
    exported = jax.export.export(jax.jit(tx.step), disabled_checks=[allowed])(
        params, params, state
    )
    called = exported.call(params, params, state)
    assert_close(called, tx.step(params, params, state))


def test_flax_train_state():
    params = tree()
    grads = gradients(0, params)
    ours, theirs = (
        TrainState.create(apply_fn=None, params=params, tx=tx)
        for tx in (fused.adamw(1e-2), adam_jax.adamw(1e-2))
    )
    ours = jax.jit(fused.apply_gradients)(ours, grads)
    theirs = jax.jit(lambda s, g: s.apply_gradients(grads=g))(theirs, grads)
    assert ours.step == theirs.step == 1
    assert_close(ours.params, theirs.params)
    assert_close(ours.opt_state, theirs.opt_state)


def test_flax_nnx():
    def train(make, update):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, make(1e-2), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((4, 3))) ** 2))(model)
            update(optimizer, model, grads)

        for _ in range(3):
            step(model, optimizer)
        assert optimizer.step[...] == 3
        return nnx.to_pure_dict(nnx.state(model))

    ours = train(fused.adamw, fused.update_model)
    theirs = train(adam_jax.adamw, nnx.Optimizer.update)
    assert_close(ours, theirs, 1e-6)


def test_errors_are_those_of_the_chain():
    params = tree()
    tx = fused.adamw(1e-3)
    state = tx.init(params)
    small = fused.adamw(1e-3, packed=True)
    with pytest.raises(AssertionError, match="leaves were packed"):
        small.step(*[{"v": jnp.ones(3)}] * 2, small.init(params))
    with pytest.raises(ValueError, match="weight decay needs the parameters"):
        tx.update(params, state)
    with pytest.raises(AssertionError, match="grads"):
        tx.step(params, {"w": params["w"]}, state)
    with pytest.raises(AssertionError, match=r"shape \(5,\) is not \(5, 70\)"):
        tx.step(params, params | {"w": jnp.ones(5)}, state)
    with pytest.raises(TypeError, match="dtype int32"):
        tx.step(params, params | {"w": jnp.ones((5, 70), int)}, state)
    with pytest.raises(ValueError, match="rounding must be 'stochastic' or 'nearest'"):
        fused.adamw(1e-3, rounding="down")
    with pytest.raises(ValueError, match="b1 must be a decay rate"):
        fused.adam(1e-3, b1=1.0)
    with pytest.raises(ValueError, match="another format"):
        fused.adamw(1e-3, mu_dtype="8bit").step(params, params, state)


def test_without_the_library_it_says_so_once_and_goes_through_xla(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    transformation._warn_once.cache_clear()
    params = tree()
    with pytest.warns(UserWarning, match="without its native library"):
        tx = fused.adamw(1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused.adamw(1e-2)
    assert fused.backend() == "xla"
    chain = adam_jax.adamw(1e-2)
    grads = gradients(0, params)
    landed = update_and_apply(chain, False, params, grads, chain.init(params))[1]
    assert_close(tx.step(params, grads, tx.init(params))[0], landed)
    assert not is_native(tx.step, params, grads, tx.init(params))


def test_adam_multiplies_no_parameter_by_a_decay_of_0():
    params = {"w": jnp.array([jnp.inf, 1.0])}
    tx = fused.adam(1e-2, mu_dtype="bfloat16", nu_dtype="bfloat16")
    updates, _ = jax.jit(tx.update)({"w": jnp.ones(2)}, tx.init(params), params)
    assert_close(updates, {"w": jnp.full(2, -1e-2)})
