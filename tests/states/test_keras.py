"""Runs that Keras began: its gradients 11 to 20, taken here from its variables."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from going_on import assert_close, take_steps

import adam_jax
from adam_jax import (
    ForeignState,
    add_decayed_weights,
    adopt_state,
    bias_correct,
    correct_step_size,
    infinity_norm,
    precondition,
    read_keras,
    running_max,
    scale_by_lr,
    scale_by_moments,
    scale_by_trace,
    write_keras,
)
from adam_jax.states.foreign import hold_moments

FILE = pathlib.Path(__file__).parents[1] / "reference" / "keras_states.npz"
with np.load(FILE) as file:
    STORED = dict(file)
PATHS = json.loads(str(STORED["names"]))
LR, HALFWAY, STEPS = 0.01, 10, 20


def as_params(prefix, number=None):
    """Return parameters or gradients."""
    tree = {}
    for path in PATHS:
        layer, name = path.split("/")
        value = STORED[f"{prefix}/{path}"]
        value = value if number is None else value[number]
        tree.setdefault(layer, {})[name] = jnp.asarray(value)
    return tree


def load(case, key="state10"):
    """Return the variables of an optimizer by number, in the order of a file."""
    prefix = f"{case}/{key}/"
    return {
        name.removeprefix(prefix): x
        for name, x in sorted(STORED.items())
        if name.startswith(prefix)
    }


def load_list(case, key="state10"):
    found = load(case, key)
    return [found[str(number)] for number in range(len(found))]


def load_optimizer(case):
    return json.loads(str(STORED[f"{case}/optimizer"]))


def schedule(n):
    return LR * 0.5 ** (jnp.asarray(n, float) / 5)


def adam(*decay, rate=LR, b1=0.9, b2=0.999, eps=1e-7, largest=()):
    return optax.chain(
        scale_by_moments(b1, b2),
        *largest,
        correct_step_size(),
        precondition(eps),
        *decay,
        scale_by_lr(rate),
    )


def clip_each(grads, params=None):
    del params
    return jax.tree.map(lambda g: optax.projections.projection_l2_ball(g, 0.5), grads)


DECAY = add_decayed_weights(0.1)
AMSGRAD = adam(b1=0.8, b2=0.9, largest=[running_max()])
CENTERED = adam_jax.rmsprop(LR, 0.9, 1e-7, centered=True, momentum=0.9)
CASES = {
    "adam": adam(),
    "adam_eps": adam_jax.adam(
        LR, eps=lambda n: 1e-3 / jnp.sqrt(1 - 0.999 ** (n + 1.0))
    ),
    "adam_amsgrad": AMSGRAD,
    "adam_ema": adam(),
    "adam_accumulated": adam(),
    "adam_scheduled": adam(rate=schedule),
    "adam_both": adam(rate=lambda n: schedule(5 * n + 4)),
    "adam_scaled": adam(),
    "adam_clipnorm": optax.chain(optax.stateless(clip_each), adam()),
    "adam_global_clipnorm": optax.chain(optax.clip_by_global_norm(0.5), adam()),
    "adam_clipvalue": optax.chain(optax.clip(0.1), adam()),
    "adamw": adam(
        add_decayed_weights(0.1, lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    ),
    "adamax": optax.chain(
        scale_by_moments(0.9, infinity_norm(0.999)),
        bias_correct(),
        precondition(1e-3),
        scale_by_lr(LR),
    ),
    "nadam_late": adam_jax.nadam(LR, eps=1e-7),
    "rmsprop": adam_jax.rmsprop(LR, 0.9, 1e-7),
    "rmsprop_momentum": optax.chain(
        adam_jax.rmsprop(LR, 0.9, 1e-7, momentum=0.9),
        optax.add_decayed_weights(-LR * 0.1),
    ),
    "rmsprop_centered": CENTERED,
    "adagrad": adam_jax.adagrad(LR, 0.1, 1e-7),
    "sgd": adam_jax.sgd(LR),
    "sgd_momentum": optax.chain(scale_by_trace(0.9), DECAY, scale_by_lr(LR)),
    "sgd_nesterov": adam_jax.sgd(LR, 0.9, nesterov=True),
    "sgd_scheduled": optax.chain(scale_by_lr(schedule), scale_by_trace(0.9)),
    "sgd_scheduled_nesterov": optax.chain(
        scale_by_lr(schedule),
        scale_by_trace(0.9, nesterov=True),
        optax.add_decayed_weights(lambda n: -0.1 * schedule(n)),
    ),
    "lion": adam_jax.lion(LR, weight_decay=0.1),
    "archive": adam(),
    "adam_float32": adam(),
    "adam_amsgrad_float32": AMSGRAD,
    "rmsprop_centered_float32": CENTERED,
    "sgd_nesterov_float32": adam_jax.sgd(LR, 0.9, nesterov=True),
}


def filled(states):
    """Give what no optimizer is given."""
    return [
        x._replace(nu_max=x.raw_nu_max, trace=x.trace or x.scaled_trace) for x in states
    ]


def go_on(tx, state, params):
    """Take Keras' other gradients."""
    others = (as_params("grads", number) for number in range(HALFWAY, STEPS))
    return take_steps(tx, state, params, others)


def assert_written(state, params, case, key, limit):
    """Assert that a state becomes what Keras has, but for the averages of weights."""
    stored = load_list(case, key)
    fresh = [np.zeros_like(x) if x.ndim else x for x in stored]
    own = hold_moments(state, None)
    if "amsgrad" in case or "sgd_scheduled" in case:  # which say what they mean
        names = {"nu_max": "raw_nu_max", "trace": "scaled_trace"}
        trees = {names.get(name, name): tree for name, tree in own.moments.items()}
        state = ForeignState(max(own.counts.values()), **trees)
    found = write_keras(state, fresh, params, PATHS, load_optimizer(case))
    assert [x.dtype for x in found] == [x.dtype for x in stored]
    names = json.loads(str(STORED.get(f"{case}/paths", "[]")))
    averages = {n for n, name in enumerate(names) if name.endswith("_average")}
    for n in {*range(len(stored))} - averages:
        np.testing.assert_allclose(found[n], stored[n], rtol=limit, atol=limit)


@pytest.mark.parametrize("case", CASES)
def test_the_second_half_is_keras(case):
    narrow = case.endswith("float32")
    with jax.enable_x64(not narrow):
        tx, params = CASES[case], as_params(f"{case}/params10")
        optimizer = load_optimizer(case)
        every = optimizer["config"].get("gradient_accumulation_steps")
        if every:
            tx = optax.MultiSteps(tx, every, accumulator_dtype=float)
        states = read_keras(load(case), params, PATHS, optimizer)
        adopted = adopt_state(tx, filled(states), params)
        assert {name.split("/")[0] for name in adopted.started} <= {
            "mini_step",
            "acc_grads",
        }
        others = {name.split("/")[0] for name in adopted.dropped}
        assert others <= {"raw_nu_max", "scaled_trace", "average", "count"}
        found, state = go_on(tx, adopted.state, params)
        limit = 2e-6 if narrow else 1e-12
        assert_close(found, as_params(f"{case}/params20"), limit)
        if case == "sgd":  # its state does not count
            return
        assert_written(adopted.state, params, case, "state10", limit)
        again = write_keras(states, load(case), params, PATHS, optimizer)
        for x, y in zip(again, load_list(case), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-7 if narrow else 1e-14)
        if case != "archive":  # which has no other state
            assert_written(state, params, case, "state20", limit)


def test_averages_go_on():
    with jax.enable_x64(True):
        [half], [end] = (
            read_keras(
                load("adam_ema", key),
                as_params("params0"),
                PATHS,
                load_optimizer("adam_ema"),
            )
            for key in ("state10", "state20")
        )
        params = as_params("adam_ema/params10")
        state, average = adopt_state(adam(), half, params).state, half.average
        for number in range(HALFWAY, STEPS):
            grads = as_params("grads", number)
            updates, state = adam().update(grads, state, params)
            params = optax.apply_updates(params, updates)
            flat = {f"{x}/{y}": z for x, own in params.items() for y, z in own.items()}
            average = optax.incremental_update(flat, average, 1 - 0.9)
        assert_close(average, end.average, 1e-12)


def test_variables_are_read_in_any_of_their_forms():
    case, params = "adam_amsgrad", as_params("params0")
    names = json.loads(str(STORED[f"{case}/paths"]))
    values = load_list(case)

    class Variable:
        def __init__(self, path, value):
            self.path, self.shape, self._value = path, value.shape, value

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self._value, dtype)

    pairs = list(zip(names, values, strict=True))
    assert list(load(case)).index("10") < list(load(case)).index("2")
    found = [
        read_keras(variables, params, PATHS, load_optimizer(case))
        for variables in (
            load(case),
            values,
            dict(pairs),
            [Variable(*pair) for pair in pairs],
        )
    ]
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])
    brief = {"class_name": "Adam", "config": {"amsgrad": True}}
    other = read_keras(values, params, PATHS, brief)
    jax.tree.map(np.testing.assert_array_equal, other, found[0])


def test_archives_of_mixed_precision_are_read():
    params = as_params("params0")
    # Keras saves the optimizer within, and the variables of what wraps it.
    optimizer = load_optimizer("archive_float16")
    assert optimizer["class_name"] == "Adam"
    [state] = read_keras(load("archive_float16"), params, PATHS, optimizer)
    assert len(load("archive_float16")) == 4 + 2 + 2 * 5
    assert state.count == 7  # the first three of ten gradients overflowed
    inner = dict(enumerate(load_list("archive_float16")[4:]))
    inner = {str(number): value for number, value in inner.items()}
    again = read_keras(inner, params, PATHS, optimizer)
    jax.tree.map(np.testing.assert_array_equal, again, [state])
    stored = load("archive_bfloat16")
    assert stored["2"].dtype == "V2"
    optimizer = load_optimizer("archive_bfloat16")
    [state] = read_keras(stored, params, PATHS, optimizer)
    expected = stored["2"].view(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(state.mu[PATHS[0]], expected)
    assert 0.1 < np.abs(expected).max() < 10


def test_what_stands_elsewhere_is_not_given_to_another():
    """Buffers that mean something else are no maxima and traces of ours."""
    params = as_params("params0")
    for case, tx, field in (
        ("adam_amsgrad", adam_jax.amsgrad(LR), "raw_nu_max"),
        ("sgd_scheduled", adam_jax.sgd(schedule, 0.9), "scaled_trace"),
    ):
        state = read_keras(load(case), params, PATHS, load_optimizer(case))
        adopted = adopt_state(tx, state, params)
        assert set(adopted.dropped) == {f"{field}/{path}" for path in PATHS}
        assert len({*adopted.started} - {"count"}) == len(PATHS)


def test_nadam_is_refused_while_its_schedule_matters():
    params, optimizer = as_params("params0"), load_optimizer("nadam")
    with pytest.raises(ValueError, match=r"until step 677, .* this state has taken 10"):
        read_keras(load("nadam"), params, PATHS, optimizer)
    late = load_list("nadam_late")
    [state] = read_keras(late, params, PATHS, optimizer)
    older = [*late[:2], late[-1], *late[2:-1]]  # as older versions order them
    again = read_keras(older, params, PATHS, optimizer)
    jax.tree.map(np.testing.assert_array_equal, again, [state])
    slow = {"class_name": "Nadam", "config": {"beta_1": 0.99}}
    with pytest.raises(ValueError, match="until step 2750"):
        read_keras(late, params, PATHS, slow)


def test_what_does_not_fit_is_refused():
    params, optimizer = as_params("params0"), load_optimizer("adam")
    values = load_list("adam")
    paths = json.loads(str(STORED["adam/paths"]))

    def read(variables=values, paths=PATHS, optimizer=optimizer):
        return read_keras(variables, params, paths, optimizer)

    with pytest.raises(ValueError, match="Keras' Adadelta has no counterpart here"):
        read(load("adadelta"), optimizer=load_optimizer("adadelta"))
    for wrong in ("Adam", {"config": {}}):
        with pytest.raises(ValueError, match=r"optimizer must be what keras.optimi"):
            read(optimizer=wrong)
    with pytest.raises(ValueError, match=r"keeps 12 variables of 5 .* there are 11"):
        read(values[:-1])
    with pytest.raises(ValueError, match=r"keeps 10 variables of 4 .* there are 12"):
        read(paths=PATHS[1:])
    with pytest.raises(ValueError, match=r"keeps 17 variables of 5 .* there are 12"):
        read(optimizer={"class_name": "Adam", "config": {"amsgrad": True}})
    with pytest.raises(ValueError, match="a path is there twice"):
        read(paths=[PATHS[1], *PATHS[1:]])
    with pytest.raises(ValueError, match="params have no 'dense/gamma'"):
        read(paths=["dense/gamma", *PATHS[1:]])
    with pytest.raises(
        ValueError,
        match=r"variable 2 is one of shape \(5, 4\), .* the momentum of dense/kernel, "
        r"of shape \(8, 3\)",
    ):
        read(paths=[PATHS[1], PATHS[0], *PATHS[2:]])
    swapped = dict(sorted(zip(paths, values, strict=True), reverse=True))
    with pytest.raises(ValueError, match="variable 0 is adam/model_norm_gamma_vel"):
        read(swapped)
    layers = ["model_dense_2_kernel", "model_dense_10_kernel"]
    ends = ["momentum", "velocity"]
    named = ["iteration", "learning_rate", *(f"{x}_{y}" for x in layers for y in ends)]
    named = {name: np.ones((2,) if "_" in name[9:] else ()) for name in named}
    two = {"a": jnp.ones(2), "b": jnp.ones(2)}
    assert read_keras(named, two, ["a", "b"], {"class_name": "Adam"})
    with pytest.raises(ValueError, match="variables are sorted by their names"):
        read_keras(dict(sorted(named.items())), two, ["a", "b"], {"class_name": "Adam"})
    # RMSprop keeps as many variables, but the second moment is the first of them.
    rmsprop = {"class_name": "RMSprop", "config": {"momentum": 0.9}}
    with pytest.raises(ValueError, match=r"where RMSprop, as it is .* the velocity of"):
        read(dict(zip(paths, values, strict=True)), optimizer=rmsprop)


def test_gradients_that_wait_for_their_step_are_refused():
    params, case = as_params("params0"), "adam_accumulated"
    optimizer, values = load_optimizer(case), load_list(case)
    values[0] = np.int32(11)
    with pytest.raises(ValueError, match=r"at iteration 11, .* to 10 and these sums"):
        read_keras(values, params, PATHS, optimizer)
    values[0] = np.int32(10)
    values[2] = values[2] + 1  # a sum
    with pytest.raises(ValueError, match="added up for a step of 2"):
        read_keras(values, params, PATHS, optimizer)


def test_momentum_of_no_learning_rate_is_refused():
    params, values = as_params("params0"), load_list("sgd_momentum")
    values[1] = np.float32(0)
    optimizer = load_optimizer("sgd_momentum")
    with pytest.raises(ValueError, match="momentum is of its learning rate, which is"):
        read_keras(values, params, PATHS, optimizer)


def test_what_cannot_be_written_is_refused():
    params, values = as_params("params0"), load_list("adam")
    sgd = load_list("sgd_scheduled")

    def write(tx, values=values, state=None, count=None, **optimizer):
        state = tx.init(params) if state is None else state
        optimizer = {"class_name": "Adam"} | optimizer
        return write_keras(state, values, params, PATHS, optimizer, count=count)

    with pytest.raises(
        ValueError, match=r"Keras' Adam, .* has nu of .*, but the state"
    ):
        write(adam_jax.lion(LR))
    with pytest.raises(
        ValueError, match=r"the state has nu of .*, but Keras' Lion, as"
    ):
        write(adam_jax.adam(LR), load_list("lion"), class_name="Lion")
    with pytest.raises(ValueError, match="found no moments in the state"):
        write(adam_jax.sgd(LR))
    # These have the right shapes, but mean something else.
    config = {"amsgrad": True}
    with pytest.raises(ValueError, match="raw_nu_max means something else"):
        write(adam_jax.amsgrad(LR), load_list("adam_amsgrad"), config=config)
    config = load_optimizer("sgd_scheduled")["config"]
    with pytest.raises(ValueError, match="trace means something else"):
        write(adam_jax.sgd(schedule, 0.9), sgd, class_name="SGD", config=config)

    tx = optax.MultiSteps(adam(), 2)
    _, state = tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="take that step first"):
        write(tx, state=state)
    labels = {"embedding": "late", "dense": "early", "norm": "early"}
    tx = optax.multi_transform({"early": adam(), "late": adam()}, labels)
    state = tx.init(params)
    moved = jax.tree.map(
        lambda x: x + 1 if x.dtype == jnp.int32 else x, state.inner_states["early"]
    )
    state = state._replace(inner_states={**state.inner_states, "early": moved})
    with pytest.raises(ValueError, match=r"one count of steps, but .* \[0, 1\]"):
        write(tx, state=state)


def test_states_of_wrappers_and_of_optax_are_written():
    params, values = as_params("params0"), load_list("adam")
    expected = 0.1 * params["embedding"]["embeddings"]
    for tx in (
        adam_jax.packed(adam_jax.adam(LR)),
        adam_jax.skip_nonfinite(adam_jax.adam(LR, mu_dtype="bfloat16")),
        optax.adam(LR),
    ):
        _, state = tx.update(params, tx.init(params), params)
        found = write_keras(state, values, params, PATHS, {"class_name": "Adam"})
        assert found[0] == 1 and found[1] == LR
        np.testing.assert_allclose(found[2], expected, rtol=1e-2)
    tx = optax.rmsprop(LR)  # which does not count
    _, state = tx.update(params, tx.init(params), params)
    values, optimizer = load_list("rmsprop"), {"class_name": "RMSprop"}
    with pytest.raises(ValueError, match=r"but the state has \[\]: pass count"):
        write_keras(state, values, params, PATHS, optimizer)
    found = write_keras(state, values, params, PATHS, optimizer, count=1)
    assert found[0] == 1
