"""Files of states: all that a state holds, and those of every release."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import adam_jax
from adam_jax import adopt_state, read_state, save_state

REFERENCE = Path(__file__).parents[1] / "reference"
_spec = importlib.util.spec_from_file_location("make", REFERENCE / "make_states.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

PARAMS = jax.tree.map(jnp.ones, make.SHAPES, is_leaf=lambda x: isinstance(x, tuple))
GRADS = jax.tree.map(lambda x: jnp.linspace(-1, 2, x.size).reshape(x.shape), PARAMS)


def rate(count):
    return 1e-3 / (1 + count)


def of_optax(tx):
    return optax.chain(optax.clip_by_global_norm(1.0), tx)


class EmaParams(NamedTuple):
    ema: jax.Array
    bias: jax.Array


class Kept(NamedTuple):
    drawn_state: jax.Array
    average: Any
    adam: Any


def keep(tx):
    def update(updates, state, params=None):
        updates, adam = tx.update(updates, state.adam, params)
        drawn = state.drawn_state + 1
        return updates, Kept(drawn, jax.tree.map(jnp.add, state.average, updates), adam)

    return optax.GradientTransformation(
        lambda params: Kept(
            jnp.arange(3), jax.tree.map(jnp.ones_like, params), tx.init(params)
        ),
        update,
    )


def remember(wrap):
    """Return an optimizer whose state is no NamedTuple."""
    return optax.GradientTransformation(
        wrap, lambda updates, state, params=None: (updates, wrap(updates))
    )


OWN = optax.chain(
    remember(lambda tree: {"last": tree, "sum": jnp.float32(3)}),
    keep(adam_jax.adam(rate)),
    remember(lambda tree: tree["scale"]),
)
CASES = make.CASES | {
    "own": OWN,
    "optax": of_optax(optax.amsgrad(rate)),
    "keys": of_optax(optax.add_noise(0.1, 0.1, jax.random.key(3))),
    "injected": optax.inject_hyperparams(optax.adamw)(rate, b1=0.8),
    "finite": optax.apply_if_finite(adam_jax.nadam(rate), 3),
    "quantiles": adam_jax.record(adam_jax.adam(1e-3), ["signal_to_noise_quantiles"]),
    "alone": adam_jax.sgd(1e-3, momentum=0.9),
}


def warm(tx, params=PARAMS):
    state = tx.init(params)
    for number in range(2):
        grads = jax.tree.map(
            lambda g, p, n=number: (g + n).astype(p.dtype), GRADS, params
        )
        _, state = tx.update(grads, state, params)
    return state


def as_data(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost(case, tmp_path):
    tx, params = CASES[case], make.to_start(case, PARAMS)
    state = warm(tx, params)
    save_state(tmp_path / "file", state)
    adopted = adopt_state(tx, read_state(tmp_path / "file"), params)
    assert adopted.dropped == adopted.started == ()
    assert jax.tree.structure(adopted.state) == jax.tree.structure(state)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(adopted.state),
        strict=True,
    ):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(as_data(x), as_data(y), str(path))


CONTAINERS = {
    "tuple": (jnp.ones(3), [jnp.ones(2)]),
    "nnx": nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
    "named": EmaParams(jnp.ones(3), jnp.ones(2)),
    "array": jnp.ones(3),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_trees_beside_the_moments_come_back_in_their_containers(container, tmp_path):
    params = CONTAINERS[container]
    tx = optax.chain(
        remember(lambda tree: [jnp.ones(3), jax.tree.leaves(tree)]),
        optax.ema(0.9),
        optax.MultiSteps(adam_jax.adam(1e-3), 3).gradient_transformation(),
    )
    _, state = tx.update(params, tx.init(params), params)
    save_state(tmp_path / "file", state)
    adopted = adopt_state(tx, read_state(tmp_path / "file"), params)
    assert adopted.dropped == adopted.started == ()
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


def test_a_file_written_again_is_the_same(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for case, tx in CASES.items():
        save_state(one, warm(tx, make.to_start(case, PARAMS)))
        save_state(other, read_state(one))
        assert one.read_bytes() == other.read_bytes(), case


RELEASES = sorted(x.name for x in (REFERENCE / "states").iterdir())


@pytest.mark.parametrize("case", make.CASES)
@pytest.mark.parametrize("release", RELEASES)
def test_states_of_every_release_go_on(release, case):
    folder = REFERENCE / "states" / release
    with np.load(folder / "runs.npz") as runs:
        names = dict(make.named(PARAMS))
        structure = jax.tree.structure(PARAMS)

        def load(start):
            return structure.unflatten([runs[f"{start}/{name}"] for name in names])

        grads, half, end = (
            load(x) for x in ("grads", f"{case}/params5", f"{case}/params10")
        )
    tx, params = make.CASES[case], make.to_start(case, half)
    state = adopt_state(tx, read_state(folder / f"{case}.safetensors"), params).state
    params, _ = make.run(
        tx, params, state, jax.tree.map(lambda g: g[make.HALFWAY :], grads)
    )
    # Machines contract sums differently; then a stored moment may round to the other
    # side, by 1/8 of it in 8 bits: of steps of 0.01 this is less than 0.005.
    atol = {"adam_8bit": 5e-3, "rounded": 1e-2, "adam_bfloat16": 1e-4}.get(case, 1e-5)
    for name, x in make.named(params):
        expected = dict(make.named(end))[name]
        np.testing.assert_allclose(np.asarray(x, np.float32), expected, atol=atol)


@pytest.mark.parametrize(
    ("mu_dtype", "nu_dtype", "names", "rtol"),
    [
        ("bfloat16", None, {"0/mu/dense/kernel": "bfloat16"}, 2**-8),
        (None, "bfloat16", {"0/nu/dense/kernel": "bfloat16"}, 2**-8),
        ("8bit", adam_jax.eight_bit(min_size=0), {"0/nu/scale": "float32"}, 0.1),
        ("float32", "float32", {"0/mu/scale": "float32"}, 0),
    ],
)
def test_formats_of_the_file(mu_dtype, nu_dtype, names, rtol, tmp_path):
    for tx in (adam_jax.adam(1e-3), optax.adam(1e-3)):
        state = warm(tx)
        save_state(tmp_path / "file", state, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
        dtypes = {
            name: str(x.dtype) for name, x in load_file(tmp_path / "file").items()
        }
        assert names.items() <= dtypes.items()
        adopted = adopt_state(
            adam_jax.adam(1e-3), read_state(tmp_path / "file"), PARAMS
        )
        for x, y in zip(
            jax.tree.leaves((state[0].mu, state[0].nu)),
            jax.tree.leaves((adopted.state[0].mu, adopted.state[0].nu)),
            strict=True,
        ):
            largest = jnp.abs(x).max()
            np.testing.assert_allclose(y, x, rtol=rtol, atol=rtol * largest)


def test_shared_moments_are_spread_where_the_shape_is_known(tmp_path):
    mean = adam_jax.mean_over(-1)
    state = warm(adam_jax.adam(1e-3, nu_dtype=mean))
    save_state(tmp_path / "file", state, nu_dtype="float32")
    tensors = load_file(tmp_path / "file")
    expected = adam_jax.load_moments(state, PARAMS)[1]["dense"]["kernel"]
    np.testing.assert_array_equal(tensors["0/nu/dense/kernel"], expected)
    save_state(tmp_path / "file", warm(adam_jax.rmsprop(1e-3)), nu_dtype=mean)
    state = read_state(tmp_path / "file")
    save_state(tmp_path / "file", state, nu_dtype="float32")  # of unknown shape
    assert load_file(tmp_path / "file")["0/nu/dense/kernel"].shape == (12, 1)


def test_what_a_read_state_is_for(tmp_path):
    state = warm(adam_jax.adam(1e-3, mu_dtype=make.CODES))
    save_state(tmp_path / "file", state)
    nodes = read_state(tmp_path / "file")
    mu, _ = adam_jax.load_moments(nodes)
    np.testing.assert_array_equal(
        mu["dense/kernel"], adam_jax.load_moments(state)[0]["dense"]["kernel"]
    )
    narrow = adam_jax.convert_state(nodes, nu_dtype="bfloat16")
    assert narrow[0].nu["scale"].dtype == jnp.bfloat16


def test_a_format_of_ones_own_is_written_as_arrays(tmp_path):
    class Halved(tuple):
        _fields = ()
        _asdict = dict

        def decode(self, values, leaf):
            return values * 2

    state = adam_jax.adam(1e-3).init(PARAMS)
    nu = jax.tree.map(jnp.ones_like, state[0].nu)
    state = (state[0]._replace(nu=nu, nu_format=Halved()), *state[1:])
    save_state(tmp_path / "file", state)
    assert (load_file(tmp_path / "file")["0/nu/dense/kernel"] == 2).all()


def test_two_arrays_of_one_name_are_refused(tmp_path):
    state = Kept(jnp.ones(2), {"a": {"b": jnp.ones(3)}, "a/b": jnp.ones(3)}, ())
    with pytest.raises(ValueError, match="two arrays are named '0/average/a/b'"):
        save_state(tmp_path / "file", state)


def test_what_lies_beside_a_state_is_not_written(tmp_path):
    state = warm(adam_jax.adam(1e-3))
    save_state(tmp_path / "file", {"params": PARAMS, "step": 2, "opt_state": state})
    save_state(tmp_path / "alone", state)
    assert (tmp_path / "file").read_bytes() == (tmp_path / "alone").read_bytes()


def test_names_with_slashes_and_flax_boxes(tmp_path):
    params = {"mlp/~/linear": {"w": jnp.ones(3)}, "b/": jnp.ones(2)}
    tx = optax.MultiSteps(adam_jax.adam(1e-3), 4)
    _, state = tx.update(params, tx.init(params), params)
    save_state(tmp_path / "file", state)
    adopted = adopt_state(tx, read_state(tmp_path / "file"), params)
    assert adopted.dropped == adopted.started == ()
    np.testing.assert_array_equal(adopted.state.acc_grads["b/"], 1)


def test_moments_of_other_frameworks(tmp_path):
    old = [
        adam_jax.ForeignState(7, {"w": np.ones((2, 3))}, {"w": np.ones((2, 3))}),
        adam_jax.ForeignState(9, raw_nu_max={"b": np.ones(3)}),
    ]
    save_state(tmp_path / "file", old)
    nodes = read_state(tmp_path / "file")
    adopted = adopt_state(adam_jax.adam(1e-3), nodes[:1], {"w": jnp.zeros((2, 3))})
    assert adopted.state[0].count == 7
    assert (adopted.state[0].mu["w"] == 1).all()
    assert nodes[1].count == 9


def test_arrays_that_are_not_contiguous_or_on_many_devices(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
    x = jnp.arange(24.0 * len(jax.devices())).reshape(-1, 24)
    x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("d")))
    params = {"cut": x, "turned": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}
    save_state(tmp_path / "file", adam_jax.ForeignState(1, params))
    tensors = load_file(tmp_path / "file")
    np.testing.assert_array_equal(tensors["0/mu/cut"], x)
    np.testing.assert_array_equal(tensors["0/mu/turned"], params["turned"])


def rewrite(file, change):
    with safe_open(file, "numpy") as opened:
        header = json.loads(opened.metadata()["adam_jax_state"])
    tensors = load_file(file)
    change(header, tensors)
    save_file(tensors, file, {"adam_jax_state": json.dumps(header)})


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "file"
    save_state(file, warm(adam_jax.adam(1e-3)))
    whole = file.read_bytes()
    rewrite(file, lambda header, _: header.update(version=99, adam_jax="9.9"))
    with pytest.raises(ValueError, match=r"of version 99, written by adam_jax 9\.9"):
        read_state(file)
    rewrite(file, lambda header, tensors: (header.update(version=1), tensors.popitem()))
    with pytest.raises(ValueError, match="is damaged"):
        read_state(file)
    for length in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            read_state(file)
    save_file({"w": np.ones(3)}, file)
    with pytest.raises(ValueError, match="was not written by save_state"):
        read_state(file)
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "no file")


def test_states_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    save_state(file, warm(adam_jax.adam(1e-3)))
    whole = file.read_bytes()
    for state in ((), {"w": jnp.ones(3)}, optax.EmptyState()):
        with pytest.raises(ValueError, match="found no state"):
            save_state(file, state)
    wide = adam_jax.ForeignState(1, {"w": np.ones(3, complex)})
    with pytest.raises(ValueError, match="complex128"):
        save_state(file, wide)
    with pytest.raises(ValueError, match="nu_dtype must be"):
        save_state(file, wide, nu_dtype="float12")
    abstract = jax.eval_shape(adam_jax.adam(1e-3).init, PARAMS)
    with pytest.raises(ValueError, match="abstract"):
        save_state(file, abstract)
    with pytest.raises(OSError, match="cannot write"):
        save_state(tmp_path / "no" / "folder", warm(adam_jax.adam(1e-3)))
    os.mkfifo(tmp_path / "device")  # such as /dev/null
    with pytest.raises(OSError, match="it is there, and no file"):
        save_state(tmp_path / "device", warm(adam_jax.adam(1e-3)))
    (tmp_path / "device").unlink()
    assert file.read_bytes() == whole  # what was there before stays
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_without_safetensors(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: save_state("x", ()), lambda: read_state(tmp_path / "x")):
        with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
            call()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_can_be_read_by_whom_the_umask_lets(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        save_state(tmp_path / "file", adam_jax.adam(1e-3).init(PARAMS))
    finally:
        assert os.umask(before) == mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
