"""Runs that continue with another optimizer: from Optax, back, in other wrappers."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import adopt_state, set_moments

STEPS = 8
RANDOM = np.random.default_rng(0)
SHAPES = {"w": (4, 24), "b": (3,)}


def draw():
    return {name: RANDOM.normal(size=shape) for name, shape in SHAPES.items()}


PARAMS = jax.tree.map(np.float32, draw())
GRADS = [draw() for _ in range(2 * STEPS)]


def falling(count):
    return 1e-2 / (1 + count)


@functools.cache
def jitted(tx):
    return jax.jit(
        lambda params, state, grads: (
            lambda updates, state: (optax.apply_updates(params, updates), state)
        )(*tx.update(grads, state, params))
    )


def run(tx, params, state, grads):
    for grad in grads:
        grad = jax.tree.map(lambda g, p: g.astype(p.dtype), grad, params)
        params, state = jitted(tx)(params, state, grad)
    return params, state


def halfway(tx, params=PARAMS):
    """Return parameters and state after the first half."""
    return run(tx, params, tx.init(params), GRADS[:STEPS])


def assert_close(x, y, rtol):
    assert jax.tree.map(np.shape, x) == jax.tree.map(np.shape, y)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float64(a), np.float64(b), rtol=rtol, atol=rtol
        ),
        x,
        y,
    )


def assert_adopts(adopted, tx, params, started=(), dropped=()):
    """Check the lists, and that the state has the structure and types of a new one."""
    assert (adopted.started, adopted.dropped) == (started, dropped)
    fresh = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jax.typeof, adopted.state) == jax.tree.map(jax.typeof, fresh)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(adopted.state)]
    assert len({*buffers}) == len(buffers), "a buffer cannot be donated twice"


OPTIMIZERS = {
    "adam": {},
    "adamw": {"weight_decay": 0.1},
    "nadam": {},
    "nadamw": {},
    "amsgrad": {},
    "adamax": {},
    "adamaxw": {},
    "adabelief": {},
    "radam": {"b2": 0.9},
    "yogi": {},
    "lion": {},
    "rmsprop": {"centered": True, "momentum": 0.9, "nesterov": True},
    "sgd": {"momentum": 0.9},
    "adagrad": {},
}
COUNTLESS = ("rmsprop", "sgd", "adagrad")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_optax_and_back_in_float64(name):
    """Half of the steps there and half here are all of them in either."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        own, other = (
            getattr(module, name)(1e-2, **OPTIMIZERS[name])
            for module in (adam_jax, optax)
        )
        count = STEPS if name in COUNTLESS else None
        for before, after in ((other, own), (own, other)):
            middle, state = halfway(before, params)
            adopted = adopt_state(after, state, middle, count=count)
            uncounted = ("count",) if after is other and name in COUNTLESS else ()
            assert_adopts(adopted, after, params, dropped=uncounted)
            mixed, _ = run(after, middle, adopted.state, GRADS[STEPS:])
            whole, _ = run(before, middle, state, GRADS[STEPS:])
            assert_close(mixed, whole, 1e-12)


def test_a_schedule_goes_on():
    tx = adam_jax.adamw(falling)
    params, state = halfway(optax.adamw(falling))
    mixed, after = run(tx, params, adopt_state(tx, state, params).state, GRADS[STEPS:])
    whole, _ = run(optax.adamw(falling), params, state, GRADS[STEPS:])
    assert_close(mixed, whole, 1e-6)
    assert [int(x) for x in optax.tree.get_all_with_path(after, "steps")[0][1:]] == [
        2 * STEPS
    ]


def test_weights_of_decays_that_are_arrays_or_schedules():
    """Optax keeps no weights: with zeros there, steps were off by learning rates."""
    decays = [0.999, jnp.float32(0.999), lambda count: 0.999 + 0.0 * count]
    params, state = halfway(optax.adam(1e-2))
    whole, _ = run(optax.adam(1e-2), params, state, GRADS[STEPS:])
    for b2 in decays:
        tx = adam_jax.adam(1e-2, b2=b2)
        adopted = adopt_state(tx, state, params)
        weight = 1 - 0.999**STEPS
        np.testing.assert_allclose(adopted.state[0].weights[1, 0], weight, rtol=3e-5)
        mixed, _ = run(tx, params, adopted.state, GRADS[STEPS:])
        assert_close(mixed, whole, 1e-5)
    falling_b2 = adam_jax.adam(1e-2, b2=lambda count: 1 - 0.5 / (1 + count))
    found = adopt_state(falling_b2, state, params).state[0].weights[1, 0]
    seen = 1 - math.prod(1 - 0.5 / (1 + i) for i in range(STEPS))
    np.testing.assert_allclose(found, seen, rtol=1e-6)


def test_inside_inject_hyperparams():
    """What Optax keeps there goes on: the rates that were set, and the counts."""
    old = optax.inject_hyperparams(optax.adamw)(falling, weight_decay=0.1)
    tx = optax.inject_hyperparams(adam_jax.adamw)(falling, weight_decay=0.1)
    params, state = halfway(old)
    state.hyperparams["weight_decay"] = jnp.float32(0.3)
    adopted = adopt_state(tx, state, params)
    assert_adopts(adopted, tx, params)
    mixed, _ = run(tx, params, adopted.state, GRADS[STEPS:])
    whole, _ = run(old, params, state, GRADS[STEPS:])
    assert_close(mixed, whole, 1e-6)


def wrap(adam):
    """Return optimizers that step like `adam`, by name."""
    clip = optax.clip_by_global_norm(1e9)
    labels = {"w": "one", "b": "two"}
    return {
        "plain": adam(1e-2),
        "schedule": adam(lambda count: 1e-2),
        "array": adam(1e-2, b1=jnp.float32(0.9)),
        "clipped": optax.chain(clip, adam(1e-2)),
        "injected": optax.inject_hyperparams(adam)(1e-2),
        "groups": optax.multi_transform(
            {x: adam(1e-2) for x in ("one", "two")}, labels
        ),
        "MultiSteps": optax.MultiSteps(adam(1e-2), 1).gradient_transformation(),
    }


OURS = wrap(adam_jax.adam) | {
    "record": adam_jax.record(adam_jax.adam(1e-2)),
    "guard": adam_jax.skip_spikes(adam_jax.adam(1e-2)),
    "packed": adam_jax.packed(adam_jax.adam(1e-2), max_size=4096),
    "compensate": adam_jax.compensate_params(adam_jax.adam(1e-2)),
    "amsgrad of the past": adam_jax.amsgrad(0.0),
    "all": adam_jax.record(
        adam_jax.skip_nonfinite(
            adam_jax.round_to_params(
                optax.chain(
                    optax.identity(),
                    adam_jax.packed(adam_jax.adam(1e-2), max_size=4096),
                )
            )
        )
    ),
}
THEIRS = {f"optax, {name}": tx for name, tx in wrap(optax.adam).items()}
ALL = OURS | THEIRS


@pytest.mark.parametrize("name", ALL)
def test_any_wrapper_to_none_and_back(name):
    plain = OURS["plain"]
    params, state = halfway(plain)
    whole, _ = run(plain, params, state, GRADS[STEPS:])
    there = adopt_state(ALL[name], state, params)
    assert not there.dropped
    assert not any(x.startswith(("mu", "nu/", "count")) for x in there.started)
    if name != "amsgrad of the past":
        moved, _ = run(ALL[name], params, there.state, GRADS[STEPS:])
        assert_close(moved, whole, 1e-5)
    back = adopt_state(plain, there.state, params)
    assert_adopts(back, plain, params, dropped=back.dropped)
    assert_close(back.state, state, 1e-6)
    assert not any(x.startswith(("mu", "nu/", "count")) for x in back.dropped)


def test_other_formats():
    eight = adam_jax.eight_bit(min_size=16)
    plain = adam_jax.adam(1e-2)
    params, state = halfway(plain)
    mu, nu = adam_jax.load_moments(state)
    for format, error in (("bfloat16", 2**-8), (eight, 2**-4)):
        tx = adam_jax.adam(1e-2, mu_dtype=format, nu_dtype=format)
        adopted = adopt_state(tx, state, params)
        assert_adopts(adopted, tx, params)
        expected = adam_jax.convert_state(state, mu_dtype=format, nu_dtype=format)
        jax.tree.map(np.testing.assert_array_equal, adopted.state, expected)
        back = adam_jax.load_moments(adopt_state(plain, adopted.state, params).state)
        for x, y in zip(back, (mu, nu), strict=True):
            largest = max(np.abs(y["w"]).max(), np.abs(y["b"]).max())
            assert_close(x, y, error * largest)


def test_moments_of_other_meanings_start_anew_with_their_counts():
    """A second moment of 0 beside an old count would make steps far too long."""
    params, state = halfway(adam_jax.lion(1e-2))
    tx = adam_jax.adam(1e-2)
    adopted = adopt_state(tx, state, params)
    everything = ("count", "mu/b", "mu/w", "nu/b", "nu/w")
    assert_adopts(adopted, tx, params, everything, ("mu/b", "mu/w"))
    assert adopted.placed == ("count",)  # that of the learning rate
    jax.tree.map(np.testing.assert_array_equal, adopted.state[0], tx.init(params)[0])
    params, state = halfway(adam_jax.rmsprop(1e-2))
    adopted = adopt_state(tx, state, params)  # short steps at first, which are harmless
    assert_adopts(adopted, tx, params, ("mu/b", "mu/w"))
    assert adopted.state[0].count == STEPS


def test_parameters_that_grew_were_renamed_or_are_to_start_anew():
    tx = adam_jax.adam(1e-2)
    params, state = halfway(tx)
    grown = {
        "layer": {"w": params["w"], "b": np.zeros(5, np.float32)},
        "new": params["b"],
    }
    old = {"layer/w": "w", "layer/b": "b", "new": None}
    adopted = adopt_state(tx, state, grown, rename=old.get)
    started = ("mu/layer/b", "mu/new", "nu/layer/b", "nu/new")
    assert_adopts(adopted, tx, grown, started, ("mu/b", "nu/b"))
    assert adopted.placed == ("count", "mu/w", "nu/w")
    kept = adam_jax.load_moments(adopted.state)[0]
    np.testing.assert_array_equal(kept["layer"]["w"], state[0].mu["w"])
    assert not kept["layer"]["b"].any() and not kept["new"].any()


def test_what_guards_and_accumulation_keep_goes_on():
    spikes = adam_jax.skip_spikes(adam_jax.adam(1e-2))
    params, state = halfway(spikes)
    outer = adam_jax.record(adam_jax.skip_spikes(adam_jax.adam(1e-2)))
    adopted = adopt_state(outer, state, params).state.inner_state
    assert adopted.taken == STEPS and adopted.mean_norm == state.mean_norm > 0
    every = optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation()
    params, state = halfway(every)  # in the middle of the third step
    ours = optax.MultiSteps(adam_jax.adam(1e-2), 3).gradient_transformation()
    adopted = adopt_state(ours, state, params)
    assert_adopts(adopted, ours, params)
    mixed, _ = run(ours, params, adopted.state, GRADS[STEPS:])
    whole, _ = run(every, params, state, GRADS[STEPS:])
    assert_close(mixed, whole, 1e-6)


def test_a_state_is_sharded_like_a_new_one():
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    shardings = {"w": NamedSharding(mesh, P("x")), "b": NamedSharding(mesh, P())}
    _, state = halfway(optax.adam(1e-2))
    params = jax.device_put(PARAMS, shardings)
    for tx in (adam_jax.adam(1e-2), adam_jax.adam(1e-2, mu_dtype="bfloat16")):
        adopted = adopt_state(tx, state, params).state
        for moment in (adopted[0].mu, adopted[0].nu):
            assert moment["w"].sharding == shardings["w"]
            assert moment["b"].sharding == shardings["b"]


def test_set_moments_is_the_inverse_of_load_moments():
    for tx in (adam_jax.adam(1e-2), optax.adam(1e-2)):
        params, state = halfway(tx)
        mu, nu = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
        made = set_moments(tx, params, mu, nu, count=STEPS)
        assert_close(made, state, 1e-6)
    hole = {"w": mu["w"], "b": optax.MaskedNode()}
    made = set_moments(adam_jax.adam(1e-2), params, hole, nu, count=STEPS)
    assert not made[0].mu["b"].any() and made[0].mu["w"].any()
    with pytest.raises(ValueError, match="no place for nu/b, nu/w"):
        set_moments(adam_jax.lion(1e-2), params, mu, nu, count=STEPS)
    with pytest.raises(ValueError, match="no place for mu/w"):
        set_moments(adam_jax.adam(1e-2), params, mu | {"w": 0.0}, nu, count=STEPS)


@pytest.mark.parametrize(
    ("argument", "name"),
    [({"b2": lambda n: 0.99}, "nu"), ({"b1": jnp.array(0.9)}, "mu")],
)
def test_a_step_refuses_a_count_without_weights(argument, name):
    tx = adam_jax.adam(1e-3, **argument)
    _, state = halfway(tx)
    moved = (state[0]._replace(weights=jnp.zeros([2, 2])), *state[1:])
    with pytest.raises(
        ValueError, match=f"taken 8 steps, but the weight of its {name}"
    ):
        tx.update(PARAMS, moved)
    jax.jit(tx.update)(PARAMS, moved)  # where nobody can see it
    constant = adam_jax.adam(1e-3)  # whose weights follow from the count
    expected = constant.update(PARAMS, halfway(constant)[1])[0]
    moved = (halfway(constant)[1][0]._replace(weights=jnp.zeros([2, 2])), *state[1:])
    assert_close(constant.update(PARAMS, moved)[0], expected, 0)


@pytest.mark.parametrize("b1", [lambda n: 0.9 - 0.1 / (n + 1), jnp.array(0.9)])
def test_a_first_moment_beside_one_that_goes_on_has_no_weight_yet(b1):
    tx = adam_jax.adam(1.0, b1=b1)
    params, state = halfway(optax.rmsprop(falling))
    state = adopt_state(tx, state, params).state
    nu = adam_jax.load_moments(state)[1]
    assert_close(state, set_moments(tx, params, nu=nu, count=STEPS), 1e-6)
    state = adopt_state(tx, state, params).state
    # A weight of zeros is right: the first step is as if nothing had come before.
    zeros = jax.tree.map(jnp.zeros_like, params)
    other = adam_jax.adam(1.0, b1=0.0)
    expected = set_moments(other, params, zeros, nu, count=STEPS)
    expected, _ = other.update(GRADS[0], expected)
    assert_close(tx.update(GRADS[0], state)[0], expected, 1e-5)


def test_what_is_in_no_named_tuple_is_listed():
    kept = optax.GradientTransformation(
        lambda params: {"last": jnp.ones(3)}, lambda updates, state, _: (updates, state)
    )
    adam = adam_jax.adam(1e-2)
    tx = optax.chain(kept, adam)
    state = tx.init(PARAMS)
    assert adopt_state(tx, state, PARAMS).started == ()
    assert adopt_state(adam, state, PARAMS).dropped == ("value/last",)
    assert adopt_state(tx, adam.init(PARAMS), PARAMS).started == ("value/last",)


def test_what_cannot_be_continued_is_refused():
    tx = adam_jax.adam(1e-2)
    params, state = halfway(tx)
    damaged = state[0]._replace(weights=jnp.zeros([2, 2]))
    with pytest.raises(ValueError, match="8 steps, but the weight of its mu is 0"):
        adopt_state(tx, damaged, params)
    with pytest.raises(ValueError, match="found no state of an optimizer"):
        adopt_state(tx, {"m": params, "v": params}, params)
    with pytest.raises(ValueError, match="pass count"):
        adopt_state(adam_jax.rmsprop(1e-2), optax.rmsprop(1e-2).init(params), params)
    with pytest.raises(ValueError, match="count must be a number of steps, got -1"):
        adopt_state(tx, state, params, count=-1)
    with pytest.raises(TypeError, match="adopt_state"):
        adopt_state(adam_jax.adam, state, params)
    batch = jax.vmap(tx.init)(jax.tree.map(lambda x: jnp.stack([x, x]), params))
    with pytest.raises(ValueError, match="a batch of states"):
        adopt_state(tx, batch, params)
    with pytest.raises(ValueError, match="has counted 8 steps: leave out count"):
        adopt_state(tx, state, params, count=9)
    for count in (True, 2**31, -1):
        with pytest.raises(ValueError, match="count must be a number of steps"):
            adopt_state(tx, state, params, count=count)
    with pytest.raises(ValueError, match="is abstract"):
        adopt_state(tx, jax.eval_shape(tx.init, params), params)
    alike = {"a/b": params["b"], "a": {"b": params["b"]}}
    with pytest.raises(ValueError, match="two parameters are named 'a/b'"):
        adopt_state(tx, tx.init(alike), alike)
    late, one = (
        set_moments(tx, {k: params[k]}, {k: params[k]}, {k: params[k]}, count=count)
        for k, count in (("w", 8), ("b", 9))
    )
    with pytest.raises(ValueError, match="counted 8 and 9 steps cannot share a count"):
        adopt_state(tx, (late, one), params)
    with pytest.raises(ValueError, match="mu needs nu beside it"):
        set_moments(tx, params, mu=params, count=3)


@pytest.mark.parametrize(
    "wrap",
    [
        optax.flatten,
        lambda tx: adam_jax.packed(tx, max_size=4096),
        lambda tx: optax.masked(
            tx, lambda params: jax.tree.map(lambda x: x.dtype == jnp.float32, params)
        ),
    ],
    ids=["flattened", "packed", "by dtype"],
)
@pytest.mark.parametrize("module", [adam_jax, optax], ids=["ours", "optax"])
def test_moments_in_trees_of_another_shape(wrap, module):
    """Of mixed dtypes; the mask looks at the parameters, never at moments."""
    params = {**PARAMS, "half": jnp.ones((2, 3), jnp.bfloat16)}
    grads = [{**g, "half": np.ones((2, 3))} for g in GRADS]
    if wrap is optax.flatten:
        params = PARAMS
        grads = GRADS
    tx = wrap(module.adam(1e-2))
    middle, state = run(tx, params, tx.init(params), grads[:STEPS])
    adopted = adopt_state(tx, state, middle)
    assert_adopts(adopted, tx, params)
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)
    whole, _ = run(tx, middle, state, grads[STEPS:])
    mixed, _ = run(tx, middle, adopted.state, grads[STEPS:])
    jax.tree.map(np.testing.assert_array_equal, mixed, whole)


def test_accumulation_inside_packed():
    every = optax.MultiSteps(adam_jax.adam(1e-2), 3).gradient_transformation()
    tx = adam_jax.packed(every, max_size=4096)
    params, state = halfway(tx)
    adopted = adopt_state(tx, state, params)
    assert_adopts(adopted, tx, params)
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


def test_only_what_counts_steps_is_given_their_number():
    """Optax's plateau counts losses, ademamix steps with moments of its own."""
    params, state = halfway(adam_jax.adam(1e-2))
    plateau = optax.contrib.reduce_on_plateau(patience=1)
    tx = optax.chain(adam_jax.adam(1e-2), plateau)
    adopted = adopt_state(tx, state, params)
    assert adopted.state[0][0].count == STEPS and adopted.state[1].count == 0
    mixed = optax.contrib.ademamix(1e-2)
    adopted = adopt_state(mixed, state, params)
    jax.tree.map(np.testing.assert_array_equal, adopted.state, mixed.init(params))
    old = optax.chain(optax.rmsprop(1e-2), plateau)
    with pytest.raises(ValueError, match="pass count"):
        adopt_state(adam_jax.rmsprop(1e-2), old.init(params), params)


def test_each_node_is_given_the_moments_of_one():
    params, _ = halfway(adam_jax.adam(1e-2))
    old = optax.chain(optax.scale_by_rms(0.9), optax.scale_by_adam())
    _, state = halfway(old)
    adopted = adopt_state(adam_jax.adam(1e-2), state, params)
    jax.tree.map(np.testing.assert_array_equal, adopted.state[0].nu, state[1].nu)
    assert adopted.dropped == ("nu/b", "nu/w")
    groups = {"one": adam_jax.lion(1e-2), "two": adam_jax.adam(1e-2)}
    tx = optax.multi_transform(groups, {"w": "one", "b": "two"})
    _, state = halfway(tx)
    adopted = adopt_state(adam_jax.adam(1e-2), state, params)
    assert adopted.dropped == ("mu/w",) and adopted.started == ("mu/w", "nu/w")


def test_guards_and_schedules_are_paired_from_the_inside_out():
    inner = adam_jax.skip_spikes(adam_jax.adam(1e-2))
    params, state = halfway(adam_jax.skip_nonfinite(inner))
    adopted = adopt_state(inner, state, params)
    assert adopted.state.mean_norm == state.inner_state.mean_norm > 0
    injected = optax.inject_hyperparams(adam_jax.adam)
    _, state = halfway(injected(falling))
    after = adopt_state(injected(5e-3), state, params).state
    assert after.hyperparams["learning_rate"] == np.float32(5e-3)


def test_moments_have_the_dtypes_of_the_new_optimizer():
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, PARAMS)
        tx = adam_jax.adam(1e-2)
        for given, params in ((wide, PARAMS), (PARAMS, wide)):
            state = set_moments(tx, params, given, given, count=3)
            fresh = jax.eval_shape(tx.init, params)
            assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, fresh)
        turning = jax.tree.map(np.complex64, PARAMS)
        adopted = adopt_state(tx, halfway(tx, turning)[1], PARAMS)
        assert "mu/w" in adopted.started and "mu/w" in adopted.dropped


def test_no_buffer_is_shared_and_devices_may_be_others():
    params = jax.device_put(PARAMS, jax.devices()[1])
    for tx in (adam_jax.skip_spikes(adam_jax.adam(1e-2)), optax.adam(1e-2)):
        for place in (jax.devices()[0], jax.devices()[1]):
            _, state = halfway(tx, jax.device_put(PARAMS, place))
            adopted = adopt_state(tx, state, params)
            assert_adopts(adopted, tx, params)
            jax.jit(tx.update, donate_argnums=1)(params, adopted.state, params)
            assert not any(x.is_deleted() for x in jax.tree.leaves(state))
    made = set_moments(adam_jax.adam(1e-2), params, params, params, count=3)
    jax.jit(adam_jax.adam(1e-2).update, donate_argnums=1)(params, made)
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    sharded = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    jax.jit(tx.update)(sharded, adopt_state(tx, state, sharded).state, sharded)


def test_states_of_flax_and_in_containers():
    class Model(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    params = nnx.state(model, nnx.Param)
    names = ("count", "mu/dense/bias", "mu/dense/kernel")
    for old in (optimizer.opt_state, optimizer):
        adopted = adopt_state(adam_jax.adam(1e-2), old, params)
        assert adopted.placed[:3] == names and not adopted.started
        pure = nnx.to_pure_dict(params)
        adopted = adopt_state(adam_jax.adam(1e-2), old, pure)
        assert adopted.placed[:3] == names and adopted.state[0].count == 1

    class Training(NamedTuple):
        params: Any
        opt: Any
        step: Any

    tx = adam_jax.adam(1e-2)
    params, state = halfway(tx)
    adopted = adopt_state(tx, Training(params, state, 3), params)
    assert_adopts(adopted, tx, params, dropped=("params/b", "params/w", "step"))


def test_shared_moments_of_parameters_that_were_removed():
    tx = adam_jax.adam(1e-2, nu_dtype=adam_jax.mean_over(-1))
    params, state = halfway(tx)
    rest = {"first": params["w"]}
    adopted = adopt_state(tx, state, rest, rename={"first": "w"}.get)
    assert_adopts(adopted, tx, rest, dropped=("mu/b",))
    kept = adopted.state[0].nu["first"]
    np.testing.assert_allclose(kept, state[0].nu["w"], rtol=1e-6)


def test_what_keeps_nothing_leaves_nothing():
    params, state = halfway(optax.sgd(1e-2))
    tx = adam_jax.adam(1e-2)
    adopted = adopt_state(tx, state, params)
    assert not adopted.placed and not adopted.dropped
    jax.tree.map(np.testing.assert_array_equal, adopted.state, tx.init(params))
