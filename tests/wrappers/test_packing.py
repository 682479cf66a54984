"""Packed and unpacked take the same steps, wherever an optimizer may stand."""

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LEAFWISE
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import packed, unpack
from adam_jax.states.buffers import Packed, Place

OFTEN = ("adamw", "adagrad", "amsgrad", "lion")
every_optimizer = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=() if name in OFTEN else pytest.mark.crossing)
        for name, make in adam_jax.OPTIMIZERS.items()
        if name not in LEAFWISE
    ]
    + [optax.adamw],
)


@pytest.mark.parametrize("name", LEAFWISE)
def test_what_looks_at_whole_leaves_is_refused(name):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}
    with pytest.raises(ValueError, match=r"packed\(\) was given an optimizer"):
        tx = packed(adam_jax.OPTIMIZERS[name](0.1))
        tx.update(params, tx.init(params), params)


DTYPES = ("float32",) * 3 + ("bfloat16", "complex64")


def odd_tree(seed=0, dtypes=DTYPES):
    """Small leaves of every shape and dtype, and what else a tree may hold."""
    rng = np.random.default_rng(seed)
    shapes = [(), (1,), (7,), (3, 5), (0, 3), (2, 3, 4), (64,)]
    leaves = {
        f"leaf{i}": jnp.asarray(
            rng.normal(size=shapes[i % 7]), dtypes[i // 7 % len(dtypes)]
        )
        for i in range(35)
    }
    large = jnp.asarray(rng.normal(size=(100, 100)), jnp.float32)
    return {"a": leaves, "b": [None, {}, (large,)], "c": optax.MaskedNode()}


def train(tx, params, grads, state, jit=True):
    """Take three steps; return the parameters, the last updates and the state."""

    def step(params, state, scale):
        scaled = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
        updates, state = tx.update(scaled, state, params)
        return optax.apply_updates(params, updates), updates, state

    step, updates = jax.jit(step) if jit else step, None
    for scale in (1.0, -0.5, 2.0):
        params, updates, state = step(params, state, scale)
    return params, updates, state


def assert_same(x, y, rtol=0.0):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        assert jax.typeof(a) == jax.typeof(b)
        a, b = np.asarray(a, complex), np.asarray(b, complex)
        message = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol, 1e-2 * rtol, err_msg=message)


def assert_same_run(tx, together, params=None, grads=None, jit=True, rtol=0.0):
    """Updates, parameters and states of three steps agree, bit for bit at rtol 0."""
    params = odd_tree() if params is None else params
    grads = odd_tree(1) if grads is None else grads
    *ours, state = train(together, params, grads, together.init(params), jit)
    *theirs, expected = train(tx, params, grads, tx.init(params), jit)
    assert_same(ours, theirs, rtol)
    if not rtol:
        assert_same(unpack(state), expected)


@every_optimizer
def test_bit_for_bit(make):
    assert_same_run(make(1e-2), packed(make(1e-2)), jit=False)


@pytest.mark.parametrize("make", [adam_jax.adamw, optax.adamw])
def test_compiled(make):
    """Within the last bits: XLA contracts products and sums as it likes."""
    params, grads = odd_tree(dtypes=["float32"]), odd_tree(1, ["float32"])
    assert_same_run(make(1e-2), packed(make(1e-2)), params, grads, rtol=1e-6)


def test_scan():
    params, tx = odd_tree(), packed(adam_jax.adam(1e-2))
    grads = odd_tree(1)

    def step(state, _):
        updates, state = tx.update(grads, state, params)
        return state, updates["a"]["leaf3"]

    state, updates = jax.jit(lambda s: jax.lax.scan(step, s, length=3))(tx.init(params))
    assert updates.shape == (3, 3, 5) and state.inner_state[0].count == 3


def test_the_state_is_a_few_arrays_of_one_dtype_each():
    params = odd_tree()
    state = packed(adam_jax.adam(1e-3)).init(params)
    groups = state.inner_state[0].mu.groups()
    leaves = jax.tree.leaves(params)
    shapes = dict(leaf for group in groups for leaf in group)
    assert shapes == {i: leaf.shape for i, leaf in enumerate(leaves)}
    for group in groups:
        assert len({leaves[i].dtype for i, _ in group}) == 1
    assert sorted(map(len, groups)) == [*[1] * 11, 5, 5, 15]
    assert (100, 100) in [mu.shape for mu in jax.tree.leaves(state)]  # left alone


@pytest.mark.parametrize(
    ("shape", "count", "buffers"),
    [((2,), 40, 3), ((4096,), 17, 3), ((4097,), 4, 4), ((), 20, 20)],
)
def test_buffers_are_bounded(shape, count, buffers):
    """By 16 leaves, and by 2^15 elements; single elements are left alone."""
    tx = packed(adam_jax.adam(1e-3))
    state = tx.init([jnp.ones(shape)] * count)
    assert len(state.inner_state[0].mu.buffers) == buffers
    state = packed(adam_jax.adam(1e-3), max_size=1).init([jnp.ones(2)] * 3)
    assert len(state.inner_state[0].mu.buffers) == 3


@pytest.mark.parametrize("make", [adam_jax.adamw, adam_jax.sgd])
def test_it_leaves_leaves_alone_but_on_cpu(make, monkeypatch):
    """Unless it is told which are small. A state goes on as it was packed."""
    params = {f"leaf{i}": jnp.ones(64) for i in range(100)}
    default, told = packed(make(1e-3)), packed(make(1e-3), max_size=2**12)
    plain, together = jax.tree.leaves(make(1e-3).init(params)), default.init(params)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert len(jax.tree.leaves(default.init(params))) == len(plain)
    few = jax.tree.structure(together)
    assert jax.tree.structure(told.init(params)) == few
    assert jax.tree.structure(default.update(params, together, params)[1]) == few


@pytest.mark.crossing
def test_leaves_that_fit_are_packed_in_float64_too():
    with jax.enable_x64(True):
        dtypes = ("float64",)
        params, grads = odd_tree(dtypes=dtypes), odd_tree(1, dtypes=dtypes)
        tx = adam_jax.adamw(1e-2)
        assert_same_run(tx, packed(tx), params, grads, jit=False)


def decays(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.crossing
@pytest.mark.parametrize("make", [adam_jax.adamw, optax.adamw])
@pytest.mark.parametrize(
    "mask",
    [decays, decays(odd_tree()), {"a": True, "b": False, "c": False}],
    ids=["function", "tree", "prefix"],
)
def test_masks_of_the_weight_decay(make, mask):
    maker = functools.partial(make, 1e-2, weight_decay=0.5)
    assert_same_run(maker(mask=mask), packed(maker, mask=mask), jit=False)


def test_masks_and_labels_inside_are_refused():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    for tx in [
        adam_jax.adamw(1e-3, mask=decays),
        optax.adamw(1e-3, mask={"w": True, "b": False}),
        optax.MultiSteps(adam_jax.adamw(1e-3, mask=decays), 2),
        optax.multi_transform({"x": optax.sgd(1.0)}, {"w": "x", "b": "x"}),
        packed(adam_jax.adam(1e-3)),
    ]:
        tx = getattr(tx, "gradient_transformation", lambda tx=tx: tx)()
        with pytest.raises(ValueError, match="an optimizer with a mask, labels or"):
            packed(tx).init(params)


def decays_matrices(updates, params):
    return jax.tree.map(lambda u, p: u + 1e-4 * p if p.ndim > 1 else u, updates, params)


def counts_calls(updates, params):
    jax.experimental.io_callback(pytest.fail, None, "it was run")
    return updates


ALIKE = {
    "clip": optax.chain(optax.clip(1.0), adam_jax.adam(0.1)),
    "norm of all": optax.chain(optax.clip_by_global_norm(1.0), adam_jax.adam(0.1)),
    "narrow": adam_jax.adamw(0.1, mu_dtype="bfloat16", nu_dtype="bfloat16"),
    "guarded": adam_jax.skip_spikes(adam_jax.adam(0.1)),
    "recorded": adam_jax.record(adam_jax.adam(0.1)),
    "kept finite": optax.apply_if_finite(adam_jax.adam(0.1), 3),
    "noise": optax.add_noise(0.1, 0.5, jax.random.key(0)),
    "rprop": optax.rprop(0.1),
    "wants more": optax.polyak_sgd(),  # it is not traced without the value of the loss
    "callback": optax.chain(optax.stateless(counts_calls), adam_jax.adam(0.1)),
}
UNLIKE = {
    "lamb": optax.lamb(1e-3),
    "lamb, warm": optax.lamb(optax.linear_schedule(0.0, 1e-3, 1000)),
    "block_rms": optax.clip_by_block_rms(1.0),
    "block_rms, late": optax.chain(adam_jax.adam(0.1), optax.clip_by_block_rms(1.0)),
    "adaptive clip": optax.adaptive_grad_clip(0.01),
    "adafactor": optax.adafactor(1e-3),
    "factored if large": optax.scale_by_factored_rms(min_dim_size_to_factor=12),
    "sm3": optax.sm3(0.1),
    "novograd": optax.novograd(0.1),
    "centralize": optax.centralize(),
    "by rank": optax.stateless(decays_matrices),
}


def test_what_does_not_treat_all_elements_alike_is_refused():
    shapes = [(4, 3), (4,), (5, 5), (13, 12), (99, 99)]
    params = {str(shape): jnp.ones(shape) for shape in shapes}
    message = "does not treat all elements alike: .*optax.chain.*packed"
    for name, tx in UNLIKE.items():
        tx = packed(tx)
        for init in (tx.init, tx.init, jax.jit(tx.init)):
            with pytest.raises(ValueError, match=message):
                init(params)
                pytest.fail(name)
    packed(optax.lamb(1e-3), max_size=0).init(params)  # nothing shares a buffer
    for tx in ALIKE.values():
        jax.jit(packed(tx).init)(params)


def test_it_is_tried_with_traced_hyperparameters():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}
    states = jax.vmap(lambda lr: packed(adam_jax.adamw(lr)).init(params))(jnp.ones(2))
    assert states.inner_state[0].count.shape == (2,)
    tx = optax.inject_hyperparams(
        lambda learning_rate: packed(optax.lamb(learning_rate))
    )
    with pytest.raises(ValueError, match="does not treat all elements alike"):
        jax.eval_shape(tx(1e-3).init, params)


def test_other_errors():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="with a mask it takes a function"):
        packed(adam_jax.adamw(1e-3), mask=decays)
    with pytest.raises(ValueError, match="with a mask it takes a function"):
        packed(functools.partial(adam_jax.adamw, 1e-3))
    with pytest.raises(ValueError, match="max_size must be an integer >= 0, got -1"):
        packed(adam_jax.adamw(1e-3), max_size=-1)
    tx = packed(adam_jax.adamw(1e-3))
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"add_decayed_weights\(\) needs the param"):
        tx.update(params, state)
    mixed = {"w": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"\['w'\] is bfloat16, but \['b'\], whic"):
        tx.update(mixed, state, params)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32"):
        tx.init({**params, "n": jnp.arange(3)})
    moments = adam_jax.scale_by_moments()
    with pytest.raises(TypeError, match=r"packed\(\) takes gradients or updates"):
        tx.update(moments.update(params, moments.init(params))[0], state, params)


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"w": jnp.ones((2, 2)), "b": jnp.ones(3)}, r"\['b'\].*\(3,\).*\(2,\)"),
        # As many elements in all: the buffers alone would not tell.
        ({"w": jnp.ones((1, 4)), "b": jnp.ones(2)}, r"\['w'\].*\(1, 4\).*\(2, 2\)"),
        (
            {"w": jnp.ones((2, 2)), "c": jnp.ones(2)},
            r"\['b'\] is missing; \['c'\] is not in the optimizer's packed state",
        ),
        ({"w": jnp.ones((2, 2))}, r"\['b'\] is missing"),
    ],
)
def test_a_restructured_tree_is_refused_by_path(grads, message):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = packed(adam_jax.adam(1e-3))
    state = tx.init(params)
    with pytest.raises(AssertionError, match=message):
        tx.update(grads, state, grads)
    with pytest.raises(AssertionError, match="updates do not fit params"):
        tx.update(grads, state, params)


@pytest.mark.parametrize("name", ["bfloat16", "8bit"])
def test_formats_keep_their_leaves(name):
    """Eight bits hold the leaves that they held alone; random bits differ."""
    tx = adam_jax.adam(1e-2, mu_dtype=name, nu_dtype=name)
    params = [jnp.ones(shape) for shape in [64] * 5 + [4095] * 2 + [(80, 64)] * 2]
    grads = jax.tree.map(
        lambda p: jnp.linspace(0.5, 1.5, p.size).reshape(p.shape), params
    )
    together = packed(tx)
    state, expected = together.init(params), tx.init(params)
    assert_same(unpack(state), expected)
    ours, _, state = train(together, params, grads, state)
    theirs, _, expected = train(tx, params, grads, expected)
    state = unpack(state)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, expected)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-3)
        if name == "8bit" and x.size < 4096:  # float32
            assert_same(x, y)


def test_stochastic_rounding_stays_unbiased():
    tx = packed(adam_jax.adam(1e-3, nu_dtype="bfloat16"))
    params = [jnp.zeros(500) for _ in range(40)]
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(20):
        _, state = jax.jit(tx.update)(grads, state)
    mean = np.mean(
        [np.float32(x).mean() for x in state.inner_state[0].nu.buffers.values()]
    )
    # nu = 1 - 0.999^20, rounded 20 times by 2^-9 of itself; 20,000 elements.
    np.testing.assert_allclose(mean, 1 - 0.999**20, rtol=2e-4)


@pytest.mark.crossing
@pytest.mark.parametrize("name", ["mean_over", "factored", "maxima", "8bit", "float32"])
def test_a_converted_state_keeps_leaves_apart(name):
    """As if the run had begun in the other format."""
    formats = {
        "mean_over": adam_jax.mean_over(),
        "factored": adam_jax.factored(min_size=2),
        "maxima": adam_jax.axis_maxima(),
        "8bit": adam_jax.eight_bit(min_size=64),
    }
    params = {
        f"p{i}": jnp.linspace(1, 2, 8 * (1 + i % 9)).reshape(8, -1) for i in range(20)
    }
    begun, other = (
        adam_jax.adam(1e-2, nu_dtype=formats.get(format, format))
        for format in (("8bit", "float32") if name == "float32" else (None, name))
    )
    _, state = packed(begun).update(params, packed(begun).init(params), params)
    _, plain = begun.update(params, begun.init(params), params)
    state, plain = (
        adam_jax.convert_state(x, nu_dtype=formats.get(name, name))
        for x in (state, plain)
    )
    found, state = packed(other).update(params, state, params)
    expected, plain = other.update(params, plain, params)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.1 if name == "8bit" else 1e-5)
    _, nu = adam_jax.load_moments(state, params)
    _, expected = adam_jax.load_moments(plain, params)
    for x, y in zip(*map(jax.tree.leaves, (nu, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.1 if name == "8bit" else 1e-5)


@pytest.mark.parametrize("fields", [False, True], ids=["a Stored", "two fields"])
def test_a_stage_with_a_moment_of_its_own(fields):
    """Of means, which buffers of several leaves would mix."""
    mean = adam_jax.mean_over()
    size = adam_jax.Moment(adam_jax.total(), mean, 2, "size", "format")

    class OneField(NamedTuple):
        stored: Any

    class TwoFields(NamedTuple):
        size: Any
        size_format: Any

    def init_fn(params):
        stored = size.init(params)
        return TwoFields(*stored) if fields else OneField(stored)

    def update_fn(updates, state, params=None):
        stored = adam_jax.Stored(*state) if fields else state.stored
        before = size.read(stored, updates)
        after = size.step(stored, before, updates, jnp.int32(0))
        updates = jax.tree.map(lambda g, s: g / jnp.sqrt(s), updates, after.flows)
        return updates, TwoFields(*after.stored) if fields else OneField(after.stored)

    own = optax.GradientTransformation(init_fn, update_fn)
    params = {f"p{i}": jnp.full(3 + i, 1.0 + i) for i in range(6)}
    expected, _ = own.update(params, own.init(params), params)
    found, _ = packed(own).update(params, packed(own).init(params), params)
    assert_same(found, expected)


def test_the_state_is_ours_to_read_and_convert():
    params = {f"p{i}": jnp.full((3, 1 + i % 3), 0.1) for i in range(30)}
    tx = packed(adam_jax.adamw(1e-2))
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert isinstance(state.inner_state[0].mu, Packed)
    for held in (state, unpack(state)):
        mu, _ = adam_jax.load_moments(held)
        np.testing.assert_allclose(mu["p7"], jnp.full((3, 2), 0.01), rtol=1e-6)
    half = adam_jax.convert_state(state, mu_dtype="bfloat16", nu_dtype="bfloat16")
    tx = packed(adam_jax.adamw(1e-2, mu_dtype="bfloat16", nu_dtype="bfloat16"))
    assert all(x.dtype == "bfloat16" for x in half.inner_state[0].mu.in_order())
    updates, _ = jax.jit(tx.update)(params, half, params)
    np.testing.assert_allclose(updates["p7"], -1e-2, rtol=2e-2)
    assert_same(
        pickle.loads(pickle.dumps(jax.device_get(state))), jax.device_get(state)
    )
    alone, _ = adam_jax.adamw(1e-2).update(params, unpack(state), params)
    again, _ = packed(adam_jax.adamw(1e-2)).update(params, state, params)
    assert_same(alone, again)


@pytest.mark.crossing
def test_where_an_optimizer_may_stand():
    """Without params, empty, masked, multi_transform, MultiSteps, injected, guarded."""
    params = {f"p{i}": jnp.full((3,) if i % 2 else (2, 2), i / 3) for i in range(6)}
    grads = jax.tree.map(lambda p: jnp.cos(p + jnp.arange(p.shape[-1])), params)
    tx, together = adam_jax.adam(1e-2), packed(adam_jax.adam(1e-2))
    assert_same(
        tx.update(grads, tx.init(params))[0],
        together.update(grads, together.init(params))[0],
    )
    assert together.update({}, together.init({}), {})[0] == {}
    scalar, _ = together.update(2.0, together.init(1.0), 1.0)
    np.testing.assert_allclose(scalar, -1e-2, rtol=1e-6)

    for wrap in [
        lambda tx: optax.masked(tx, decays),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.multi_transform(
            {True: tx, False: packed(adam_jax.sgd(1.0, momentum=0.9))}, decays
        ),
        adam_jax.skip_nonfinite,
        adam_jax.skip_spikes,
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    ]:
        assert_same_run(wrap(tx), wrap(together), params, grads, rtol=1e-6)
    inner = optax.MultiSteps(tx, 2).gradient_transformation()
    assert_same_run(inner, packed(inner), params, grads, rtol=1e-6)
    injected = optax.inject_hyperparams(adam_jax.adamw)(1e-2)
    outside = optax.inject_hyperparams(
        lambda learning_rate: packed(adam_jax.adamw(learning_rate))
    )(learning_rate=1e-2)
    assert_same_run(injected, packed(injected), params, grads, jit=False)
    state = outside.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    updates, _ = outside.update(grads, state, params)
    assert jnp.abs(updates["p2"]).min() > 0.49


@pytest.mark.crossing
def test_vmap_extra_arguments_meta_gradients_and_map_params():
    tx, together = adam_jax.adam(1e-2), packed(adam_jax.adam(1e-2))
    many = {f"p{i}": jnp.arange(6.0).reshape(2, 3) + i for i in range(6)}
    ours, _ = jax.vmap(together.update)(many, jax.vmap(together.init)(many), many)
    theirs, _ = jax.vmap(tx.update)(many, jax.vmap(tx.init)(many), many)
    assert_same(ours, theirs)

    def loss(tx, grads):
        state = tx.init(many)
        updates, _ = tx.update(grads, state, many)
        return sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))

    slopes = jax.grad(functools.partial(loss, together))(many)
    assert_same(slopes, jax.grad(functools.partial(loss, tx))(many), rtol=1e-5)

    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau())
    together = packed(plateau)
    updates, _ = together.update(many, together.init(many), many, value=1.0)
    np.testing.assert_array_equal(updates["p3"], -many["p3"])

    state = packed(tx).init(many)
    mapped = optax.tree.map_params(packed(tx), lambda x: x + 1, state)
    assert (adam_jax.load_moments(mapped)[0]["p1"] == 1).all()
    assert unpack(mapped)[0].count == 0

    abstract = packed(tx).init(jax.eval_shape(lambda: many))
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    types = zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True)
    assert all(jax.typeof(x) == jax.typeof(y) for x, y in types)


def mesh(kind):
    return jax.make_mesh((8,), ("x",), axis_types=(kind,))


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2])
@pytest.mark.parametrize("make", [adam_jax.adamw, adam_jax.sgd])
def test_sharding_does_not_change_the_buffers(kind, make):
    """Nor does jit: a checkpoint of one device fits many. Right, if slow."""
    tx, together = make(1e-2), packed(make(1e-2))
    plain = {f"p{i}": jnp.full((8, 2), i, jnp.float32) for i in range(6)}
    sharding = NamedSharding(mesh(kind), P("x"))
    params = {
        k: jax.device_put(p, sharding) if i % 2 else p
        for i, (k, p) in enumerate(plain.items())
    }
    expected = together.init(plain)
    with jax.set_mesh(mesh(kind)):
        for init in (together.init, jax.jit(together.init)):
            state = init(params)
            assert jax.tree.structure(state) == jax.tree.structure(expected)
            step = jax.jit(together.update)
            updates, _ = step(params, state, params)
            alone, _ = tx.update(plain, tx.init(plain), plain)
            for x, y in zip(*map(jax.tree.leaves, (updates, alone)), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-6)
            if kind == jax.sharding.AxisType.Explicit:
                for update, param in zip(
                    updates.values(), params.values(), strict=True
                ):
                    spec = jax.typeof(update).sharding.spec
                    assert spec == jax.typeof(param).sharding.spec


def test_the_leaves_are_named_in_the_state():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "large": jnp.ones(9000)}
    state = packed(adam_jax.adam(1e-3)).init(params)
    assert list(state.inner_state[0].mu.buffers) == ["0:2 2:2x2", "1:9000"]
    assert state.places == dict.fromkeys(params, Place())
    key = [f"{i:02}:" for i in range(11)]  # single elements sort as their numbers do
    alone = packed(adam_jax.adam(1e-3)).init([jnp.float32(i) for i in range(11)])
    assert sorted(alone.inner_state[0].mu.buffers) == key


def test_one_trace_and_donation():
    params, grads = odd_tree(), odd_tree(1)
    tx, traces = packed(adam_jax.adamw(1e-2)), 0

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        nonlocal traces
        traces += 1
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    params, state = step(params, tx.init(params))
    assert traces == 1
