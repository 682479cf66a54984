"""Runs that PyTorch began: its steps 11 to 20, taken here from its state after 10."""

import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from going_on import take_steps

import adam_jax
from adam_jax import (
    add_decayed_weights,
    adopt_state,
    bias_correct,
    precondition,
    read_state,
    read_torch,
    running_max,
    save_state,
    scale_by_lr,
    scale_by_moments,
    total,
    write_torch,
)

FILE = pathlib.Path(__file__).parents[1] / "reference" / "torch_states.npz"
with np.load(FILE) as file:
    STORED = dict(file)
LR, HALFWAY, STEPS = 0.01, 10, 20
# Where PyTorch's parameters lie here.
PATHS = {
    "0.weight": "dense/kernel",
    "0.bias": "dense/bias",
    "1.weight": "embedding",
    "2.weight": "norm/scale",
    "2.bias": "norm/bias",
}


def turned(path):
    return path.endswith("kernel")


def as_params(arrays):
    """Return parameters from arrays by PyTorch's names, or gradients."""
    tree = {}
    for name, path in PATHS.items():
        *folders, last = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = jnp.asarray(arrays[name].T if turned(path) else arrays[name])
    return tree


def load(prefix):
    return {name: STORED[f"{prefix}/{name}"] for name in PATHS}


def load_case(case):
    """Return a state_dict, and the paths of its parameters."""
    groups = json.loads(str(STORED[f"{case}/param_groups"]))
    state = {}
    for key in STORED:
        if key.startswith(f"{case}/state/"):
            _, _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = STORED[key]
    names = json.loads(str(STORED[f"{case}/names"]))
    return {"state": state, "param_groups": groups}, [PATHS[name] for name in names]


def amsgrad(*decay):
    return optax.chain(
        scale_by_moments(0.8, 0.9),
        running_max(),
        bias_correct(),
        precondition(),
        *decay,
        scale_by_lr(LR),
    )


def decays(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


ADAMW = adam_jax.adamw(LR, weight_decay=0.01)
RMSPROP = {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}
CASES = {
    "adam": adam_jax.adam(LR),
    "adam_l2": optax.chain(add_decayed_weights(0.1), adam_jax.adam(LR)),
    "adamw": ADAMW,
    "adamw_foreach": ADAMW,
    "adamw_fused": ADAMW,
    "adamw_groups": adam_jax.adamw(LR, weight_decay=0.01, mask=decays),
    "adamw_groups_named": adam_jax.adamw(LR, weight_decay=0.01, mask=decays),
    "adam_amsgrad": amsgrad(),
    "adamw_amsgrad": amsgrad(add_decayed_weights(0.01)),
    "adamw_amsgrad_fused": amsgrad(add_decayed_weights(0.01)),
    "radam": adam_jax.radam(LR, eps=lambda n: 1e-8 / jnp.sqrt(1 - 0.999 ** (n + 1.0))),
    "adamax": adam_jax.adamax(LR),
    "adagrad": optax.chain(
        scale_by_moments(None, total(0.1)), precondition(1e-10), scale_by_lr(LR)
    ),
    "rmsprop": adam_jax.rmsprop(LR, **RMSPROP),
    "rmsprop_centered": adam_jax.rmsprop(LR, centered=True, momentum=0.9, **RMSPROP),
    "sgd_momentum": adam_jax.sgd(LR, 0.9),
    "sgd_nesterov": adam_jax.sgd(LR, 0.9, nesterov=True),
    "sgd_dampening": optax.chain(optax.scale(0.5), adam_jax.sgd(LR, 0.9)),
    "adamw_float32": ADAMW,
    "adam_amsgrad_float32": amsgrad(),
}


def with_maxima(states):
    return [state._replace(nu_max=state.raw_nu_max) for state in states]


def grads_of(first, last):
    """Yield PyTorch's gradients of some steps."""
    for number in range(first, last):
        yield as_params({k: x[number] for k, x in load("grads").items()})


def go_on(tx, state, params, first=HALFWAY, last=STEPS):
    """Take PyTorch's other steps."""
    return take_steps(tx, state, params, grads_of(first, last))[0]


@pytest.mark.parametrize("case", CASES)
def test_the_second_half_is_pytorchs(case):
    narrow = case.endswith("float32")
    with jax.enable_x64(not narrow):
        tx, params = CASES[case], as_params(load(f"{case}/params10"))
        state_dict, paths = load_case(case)
        old = with_maxima(read_torch(state_dict, params, paths, turned=turned))
        adopted = adopt_state(tx, old, params, count=HALFWAY)
        assert not adopted.started
        raw = {x for x in adopted.dropped if x.startswith("raw_nu_max")}
        assert {*adopted.dropped} == raw and bool(raw) == ("amsgrad" in case)
        found, expected = go_on(tx, adopted.state, params), load(f"{case}/params20")
        limit = 2e-6 if narrow else 1e-13
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=limit, atol=limit),
            found,
            as_params(expected),
        )


def test_a_maximum_is_not_given_to_amsgrad_whose_own_is_another():
    params = as_params(load("adam_amsgrad/params10"))
    old = read_torch(*_given("adam_amsgrad", params), turned=turned)
    adopted = adopt_state(adam_jax.amsgrad(LR), old, params)
    assert all(name.startswith("nu_max/") for name in adopted.started)
    assert len(adopted.started) == len(adopted.dropped) == len(PATHS)


def _given(case, params):
    state_dict, paths = load_case(case)
    return state_dict, params, paths


def test_parameters_with_counts_of_their_own_or_none():
    params = as_params(load("adamw_partial/params10"))
    old = read_torch(*_given("adamw_partial", params), turned=turned)
    assert sorted(state.count for state in old) == [6, 10]
    with pytest.raises(ValueError, match="counted 6 and 10 steps cannot share a count"):
        adopt_state(ADAMW, old, params)
    labels = jax.tree.map(lambda _: "seen", params)
    labels["embedding"], labels["norm"]["bias"] = "late", "never"
    optimizers = {"seen": ADAMW, "late": ADAMW, "never": optax.set_to_zero()}
    tx = optax.multi_transform(optimizers, labels)
    with jax.enable_x64(True):
        params = as_params(load("adamw_partial/params10"))
        adopted = adopt_state(tx, old, params)
        assert not adopted.started and not adopted.dropped
        found = go_on(tx, adopted.state, params)
        expected = as_params(load("adamw_partial/params20"))
        del found["norm"], expected["norm"]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-13), found, expected
        )


def test_shapes_tell_how_axes_lie_where_they_can():
    state_dict, paths = load_case("adam")
    params = as_params(load("adam/params10"))
    told = read_torch(state_dict, params, paths, turned=turned)
    found = read_torch(state_dict, params, paths)
    jax.tree.map(np.testing.assert_array_equal, found, told)

    def read(shape, there, turned=None):
        moments = {"step": 1, "exp_avg": np.arange(np.prod(there)).reshape(there)}
        old = {"state": {0: moments}, "param_groups": [{"params": [0]}]}
        params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        [state] = read_torch(old, params, ["kernel"], turned=turned)
        return state.mu["kernel"]

    x = read((3, 5, 2, 4), (4, 2, 3, 5))  # a convolution, (out, in, height, width)
    assert x.shape == (3, 5, 2, 4) and x[1, 2, 0, 3] == 3 * 30 + 5 + 2
    for shape in ((3, 3), (2, 2, 2), (3, 3, 3, 3)):
        with pytest.raises(ValueError, match="does not tell whether its axes lie"):
            read(shape, shape)
        assert read(shape, shape, lambda path: False)[0, 1].any()
    np.testing.assert_array_equal(
        read((3, 3), (3, 3), lambda path: True), np.arange(9).reshape(3, 3).T
    )
    x = read((3, 3, 4, 4), (4, 4, 3, 3), lambda path: (2, 3, 0, 1))  # (in, out, ...)
    assert x[1, 2, 3, 0] == 3 * 36 + 5
    for turn in (None, lambda path: True):
        with pytest.raises(ValueError, match=r"shape \(3, 4\), but its moment .*4, 4"):
            read((3, 4), (4, 4), turn)


def test_what_does_not_fit_is_refused():
    state_dict, paths = load_case("nadam")
    params = as_params(load("nadam/params10"))
    with pytest.raises(ValueError, match="PyTorch's 'mu_product', of dense/kernel"):
        read_torch(state_dict, params, paths, turned=turned)
    with pytest.raises(ValueError, match="a path is there twice"):
        read_torch(state_dict, params, [paths[1], *paths[1:]])
    for checkpoint in ({"model": {}, "optimizer": state_dict}, state_dict["state"], []):
        with pytest.raises(ValueError, match="must have state and param_groups, got"):
            read_torch(checkpoint, params, paths)
        with pytest.raises(ValueError, match="must have state and param_groups, got"):
            write_torch(adam_jax.adam(LR).init(params), checkpoint, paths, ())
    keyed = {**state_dict, "state": {"0": state_dict["state"][0]}}
    with pytest.raises(ValueError, match="a parameter '0', which is in no group"):
        read_torch(keyed, params, paths)
    with pytest.raises(ValueError, match="has 5 parameters, but there are 4 paths"):
        read_torch(state_dict, params, paths[1:])
    with pytest.raises(ValueError, match="params have no 'dense/weight'"):
        read_torch(state_dict, params, ["dense/weight", *paths[1:]])


def test_tensors_are_read_wherever_they_are():
    """Without PyTorch: what is called of a tensor, one of bfloat16 among them."""

    class Tensor(SimpleNamespace):
        def detach(self):
            return self

        cpu = detach

        def float(self):
            return Tensor(dtype="torch.float32", x=self.x)

        def numpy(self):
            assert self.dtype != "torch.bfloat16"
            return self.x

    moments = {
        "step": Tensor(dtype="torch.float32", x=np.float32(3)),
        "exp_avg": Tensor(dtype="torch.bfloat16", x=np.float32([1, 2])),
    }
    old = {"state": {0: moments}, "param_groups": [{"params": [0]}]}
    [state] = read_torch(old, {"b": np.zeros(2)}, ["b"])
    assert state.count == 3
    np.testing.assert_array_equal(state.mu["b"], [1, 2])
    moments["exp_avg"].full_tensor = lambda: moments["exp_avg"]
    with pytest.raises(
        ValueError, match=r"in pieces .a DTensor.: gather it in PyTorch"
    ):
        read_torch(old, {"b": np.zeros(2)}, ["b"])


def shapes_of(paths):
    names = {path: name for name, path in PATHS.items()}
    return [STORED[f"params0/{names[path]}"].shape for path in paths]


def assert_states_equal(found, expected, rtol=0):
    assert found.keys() == expected.keys()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, own in expected["state"].items():
        kept = {key: x for key, x in own.items() if x is not None}
        assert found["state"][index].keys() == kept.keys()
        for key, x in kept.items():
            np.testing.assert_allclose(
                found["state"][index][key], x, rtol=rtol, err_msg=key
            )


@pytest.mark.parametrize("case", [*CASES, "adamw_partial", "adamw_amsgrad_foreach"])
def test_what_was_read_is_written_as_it_was(case):
    params = as_params(load(f"{case}/params10"))
    state_dict, paths = load_case(case)
    old = read_torch(state_dict, params, paths, turned=turned)
    new, shapes = {**state_dict, "state": {}}, shapes_of(paths)
    written = write_torch(old, new, paths, shapes, turned=turned)
    assert_states_equal(written, state_dict, rtol=1e-15 if "centered" in case else 0)
    assert not new["state"]  # the given one is left alone


# PyTorch does not dampen its first gradient, and its raw maximum is not written.
FROM_THE_START = [
    case
    for case in CASES
    if not any(word in case for word in ("dampening", "amsgrad", "float32"))
]


@pytest.mark.parametrize("case", FROM_THE_START)
def test_the_state_of_a_first_half_taken_here_is_pytorchs(case, tmp_path):
    with jax.enable_x64(True):
        tx, params = CASES[case], as_params(load("params0"))
        state_dict, paths = load_case(case)
        _, state = take_steps(tx, tx.init(params), params, grads_of(0, HALFWAY))
        save_state(tmp_path / "file", state)
        for given in (state, read_state(tmp_path / "file")):
            new = {**state_dict, "state": {}}
            written = write_torch(given, new, paths, shapes_of(paths), turned=turned)
            assert_states_equal(written, state_dict, rtol=1e-12)


def test_what_pytorch_cannot_continue_is_refused():
    params = as_params(load("params0"))
    paths = [*PATHS.values()]
    shapes = shapes_of(paths)

    def write(tx, paths=paths, shapes=shapes, count=None, **group):
        new = {"state": {}, "param_groups": [{"params": [0, 1, 2, 3, 4], **group}]}
        state = tx.init(params)
        return write_torch(state, new, paths, shapes, count=count, turned=turned)

    shared = adam_jax.mean_over(0)
    with pytest.raises(ValueError, match="elements share 'nu/"):
        write(adam_jax.rmsprop(LR, nu_dtype=shared), alpha=0.9)
    adam, betas = adam_jax.adam(LR), (0.9, 0.999)
    write(adam_jax.adam(LR, nu_dtype=shared), betas=betas, amsgrad=False)
    with pytest.raises(ValueError, match="NAdam's momentum follows a schedule"):
        write(adam_jax.nadam(LR), betas=betas, momentum_decay=0.004)
    with pytest.raises(
        ValueError, match=r"has the moments mu, nu, but .* nu, raw_nu_max"
    ):
        write(adam, betas=betas, amsgrad=True)
    with pytest.raises(ValueError, match=r"nu_max, but .* a maximum of moments before"):
        write(adam_jax.amsgrad(LR), betas=betas, amsgrad=True)
    with pytest.raises(ValueError, match=r"has the moments mu, nu, but .* keeps trace"):
        write(adam, momentum=0.9, dampening=0)
    with pytest.raises(ValueError, match=r"has the moments nu, but .* keeps mu, nu"):
        write(adam_jax.rmsprop(LR), betas=betas, amsgrad=False)
    with pytest.raises(ValueError, match="groups have params, lambd"):
        write(adam, lambd=1)  # ASGD
    with pytest.raises(ValueError, match="does not say how many steps"):
        write(optax.rmsprop(LR), alpha=0.99)
    assert write(optax.rmsprop(LR), alpha=0.99, count=3)["state"][0]["step"] == 3
    with pytest.raises(ValueError, match="has 5 parameters, but there are 4 paths"):
        write(adam, paths=paths[1:], betas=betas, amsgrad=False)
    with pytest.raises(ValueError, match="has 5 parameters, but there are 1 shapes"):
        write(adam, shapes=shapes[:1], betas=betas, amsgrad=False)
    with pytest.raises(ValueError, match="moments of 'dense/kernel', which is not amo"):
        write(adam, paths=["other", *paths[1:]], betas=betas, amsgrad=False)
    with pytest.raises(ValueError, match=f"a path is there twice, '{paths[1]}'"):
        write(adam, paths=[paths[1], *paths[1:]], betas=betas, amsgrad=False)
    with pytest.raises(ValueError, match=r"dense/kernel has shape \(4, 3\), but"):
        flipped = [shape[::-1] for shape in shapes]
        write(adam, shapes=flipped, betas=betas, amsgrad=False)


def test_the_axes_of_convolutions_are_turned_back():
    kernel = jnp.arange(120.0).reshape(3, 5, 2, 4)  # (height, width, in, out)
    state = adam_jax.ForeignState(1, {"k": kernel}, {"k": kernel})
    new = {"state": {}, "param_groups": [{"params": [0], "betas": 0, "amsgrad": False}]}
    written = write_torch(state, new, ["k"], [(4, 2, 3, 5)])["state"][0]["exp_avg"]
    assert written.shape == (4, 2, 3, 5) and written[3, 0, 1, 2] == kernel[1, 2, 0, 3]
    turn = {"turned": lambda path: (2, 3, 0, 1)}  # (in, out, ...) there
    written = write_torch(state, new, ["k"], [(2, 4, 3, 5)], **turn)
    assert written["state"][0]["exp_avg"][1, 3, 2, 0] == kernel[2, 0, 1, 3]
    with pytest.raises(ValueError, match="does not tell whether its axes lie"):
        square = adam_jax.ForeignState(
            1, {"k": np.ones((2, 2))}, {"k": np.ones((2, 2))}
        )
        write_torch(square, new, ["k"], [(2, 2)])
