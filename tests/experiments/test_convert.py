"""`adam-jax convert`: files of states, from and to other programs."""

import io
import json
import pickle
import re
import sys
import types
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import adam_jax
from adam_jax.experiments.cli import main

PARAMS = {"dense": {"kernel": jnp.ones((8, 3)), "bias": jnp.ones(3)}}
GRADS = jax.tree.map(lambda x: jnp.linspace(-1, 2, x.size).reshape(x.shape), PARAMS)


def warm(tx):
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[1]


@pytest.fixture
def ours(tmp_path):
    file = tmp_path / "ours.safetensors"
    adam_jax.save_state(file, warm(adam_jax.skip_nonfinite(adam_jax.adamw(1e-3))))
    return str(file)


def convert(*argv):
    assert main(["convert", *map(str, argv)]) == 0


def test_a_table_says_what_is_in_a_file(ours, capfd):
    convert(ours)
    out, _ = capfd.readouterr()
    assert re.search(r"ours.safetensors \(save_state\)\n", out)
    assert re.search(r"^mu +2 +27 +float32 +108 +1$", out, re.M)
    assert "beside them: SkipState/in_a_row" in out


@pytest.mark.parametrize(
    ("to", "off"), [("same", "0"), ("float32", "0"), ("bfloat16", r"0.00\d+")]
)
def test_other_formats(to, off, ours, tmp_path, capfd):
    convert(ours, tmp_path / "new", "--to", to)
    out, _ = capfd.readouterr()
    assert re.search(rf"^mu: off by at most {off} of the largest", out, re.M)
    assert "lost: nothing\n" in out
    dtype = "bfloat16" if to == "bfloat16" else "float32"
    assert adam_jax.read_state(tmp_path / "new")[1].nu["dense/bias"].dtype == dtype


def test_eight_bits(tmp_path, capfd):
    params = jnp.linspace(-1, 2, 64 * 64).reshape(64, 64)
    tx = adam_jax.adam(1e-3)
    adam_jax.save_state(tmp_path / "old", tx.update(params, tx.init(params))[1])
    convert(tmp_path / "old", tmp_path / "new", "--to", "8bit")
    out, _ = capfd.readouterr()
    assert re.search(r"^nu +1 +4,096 +uint8 +4,224 +1$", out, re.M)
    assert re.search(r"^mu: off by at most 0\.0[1-4]\d* of the largest", out, re.M)


@pytest.mark.parametrize("to", ["optax", "optax.adamw"])
def test_to_optax_and_back(to, ours, tmp_path, capfd):
    convert(ours, tmp_path / "optax", "--to", to)
    out, _ = capfd.readouterr()
    assert "lost: SkipState/in_a_row, SkipState/mean_norm" in out
    tx = optax.adamw(1e-3) if "w" in to else optax.adam(1e-3)
    written = (tmp_path / "optax").read_bytes()
    state = serialization.from_bytes(tx.init(PARAMS), written)
    jax.tree.map(np.testing.assert_array_equal, state[0], warm(tx)[0])
    convert(tmp_path / "optax", tmp_path / "again")
    assert "(flax.serialization)" in capfd.readouterr()[0]
    adopted = adam_jax.adopt_state(tx, adam_jax.read_state(tmp_path / "again"), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


@pytest.mark.parametrize(
    "tx",
    [optax.amsgrad(1e-3), optax.sgd(1e-3, 0.9), optax.lion(1e-3)],
    ids=["amsgrad", "sgd", "lion"],
)
def test_the_optimizer_of_optax_is_told_by_its_moments(tx, tmp_path):
    adam_jax.save_state(tmp_path / "old", warm(tx))
    convert(tmp_path / "old", tmp_path / "new", "--to", "optax")
    written = (tmp_path / "new").read_bytes()
    state = serialization.from_bytes(tx.init(PARAMS), written)
    jax.tree.map(np.testing.assert_array_equal, state, warm(tx))


def test_what_was_lost_is_true(tmp_path, capfd):
    def table(tx, to, state=None):
        adam_jax.save_state(tmp_path / "old", state or warm(tx))
        code = main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), *to])
        return code, "".join(capfd.readouterr())

    adam = adam_jax.adam(1e-3)
    _, text = table(optax.MultiSteps(adam, 3), ())  # zeros: no step was taken
    assert "mu: off by at most 0 of" in text and "lost: nothing" in text
    nans = adam.update(jax.tree.map(lambda x: x * np.nan, PARAMS), adam.init(PARAMS))
    _, text = table(adam, ("--to", "bfloat16"), nans[1])
    assert "nu: off by at most 0 of" in text
    shared = adam_jax.mean_over(-1)
    _, text = table(adam_jax.adam(1e-3, nu_dtype=shared), ("--to", "optax"))
    assert "nu: off by at most 0 of" in text and "lost: nothing" in text
    code, text = table(adam_jax.rmsprop(1e-3, nu_dtype=shared), ("--to", "optax"))
    assert code == 2 and "elements share 'nu/dense/bias'" in text
    _, text = table(optax.rmsprop(1e-3), ("--to", "optax"))  # which has no count
    assert "nu: off by at most 0 of" in text and "lost: nothing" in text
    labels = {"dense": {"kernel": "lion", "bias": "adam"}}
    groups = {"lion": adam_jax.lion(1e-3), "adam": adam_jax.adam(1e-3)}
    groups = optax.multi_transform(groups, labels)
    code, text = table(groups, ("--to", "optax"))
    assert code == 2 and "optax.adam cannot go on with mu/dense/kernel" in text


def test_from_orbax(tmp_path, capfd):
    state = {"opt_state": warm(optax.adamw(lambda count: 1e-3)), "step": 3}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", state)
    convert(tmp_path / "orbax", tmp_path / "new", "--to", "float32")
    out, _ = capfd.readouterr()
    assert "orbax (Orbax)\n" in out and out.endswith("lost: step\n")
    nodes = adam_jax.read_state(tmp_path / "new")
    adopted = adam_jax.adopt_state(adam_jax.adamw(1e-3), nodes, PARAMS)
    mu = state["opt_state"][0].mu
    jax.tree.map(np.testing.assert_array_equal, adopted.state[0].mu, mu)


@pytest.fixture
def torch(monkeypatch):
    """Stand in for PyTorch, whose files start like zip archives."""

    def save(obj, path):
        with open(path, "wb") as file:
            file.write(b"PK" + pickle.dumps(obj))

    def load(path, map_location, weights_only):
        assert weights_only
        with open(path, "rb") as file:
            file.read(2)
            return pickle.load(file)

    module = types.SimpleNamespace(save=save, load=load, from_numpy=np.array)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_files_of_torch_with_other_things_beside_the_state(torch, tmp_path, capfd):
    moments = {"step": 1.0, "exp_avg": np.ones((3, 2)), "exp_avg_sq": np.ones((3, 2))}
    scale = {"step": 1.0, "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}
    group = {"params": [0, 1], "betas": 0, "amsgrad": False}
    group["param_names"] = ["lin.weight", "norm.weight"]
    one = {"state": {0: moments, 1: scale}, "param_groups": [group]}
    torch.save({"optimizer_states": [one], "epoch": 3}, tmp_path / "lightning")
    turned = ("--turned", "*weight")  # what has one axis stays as it is
    convert(tmp_path / "lightning", tmp_path / "new", *turned)
    [node] = adam_jax.read_state(tmp_path / "new")
    assert node.mu["lin/weight"].shape == (2, 3) and node.mu["norm/weight"].shape == (
        3,
    )
    like = ("--to", "torch", "--like", tmp_path / "lightning")
    convert(tmp_path / "new", tmp_path / "pt", *turned, *like)
    assert torch.load(tmp_path / "pt", None, True)["state"][1]["exp_avg"].shape == (3,)
    for two in ({"g": one, "d": one}, {"optimizer_states": [one, one]}):
        torch.save(two, tmp_path / "two")
        assert main(["convert", str(tmp_path / "two")]) == 2
        assert "state_dicts of several optimizers" in capfd.readouterr().err
    old = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # as torch.save once began
    (tmp_path / "old").write_bytes(old)
    assert main(["convert", str(tmp_path / "old")]) == 2
    assert "holds no state_dict" in capfd.readouterr().err


def test_to_torch_and_back(torch, ours, tmp_path, capfd):
    group = {"params": [0, 1], "betas": (0.9, 0.999), "amsgrad": False}
    group["param_names"] = ["dense.kernel", "dense.bias"]
    torch.save({"state": {}, "param_groups": [group]}, tmp_path / "fresh")
    turned = ("--turned", "*kernel")
    convert(
        ours, tmp_path / "pt", "--to", "torch", "--like", tmp_path / "fresh", *turned
    )
    out, _ = capfd.readouterr()
    assert "mu: off by at most 0 of" in out and "lost: SkipState/in_a_row" in out
    written = torch.load(tmp_path / "pt", None, True)
    mu = warm(adam_jax.adamw(1e-3))[0].mu["dense"]
    state = written["state"]
    np.testing.assert_array_equal(state[0]["exp_avg"], mu["kernel"].T)
    np.testing.assert_array_equal(state[1]["exp_avg"], mu["bias"])
    assert state[0]["step"] == 1 and written["param_groups"] == [group]

    torch.save({"model": {}, "optimizer": written}, tmp_path / "whole")
    (tmp_path / "names").write_text("a/kernel\n\nb/bias\n")
    names = ("--names", tmp_path / "names")
    convert(tmp_path / "whole", tmp_path / "again", *turned, *names)
    assert "lost: nothing" in capfd.readouterr()[0]
    [node] = adam_jax.read_state(tmp_path / "again")
    np.testing.assert_array_equal(node.mu["a/kernel"], mu["kernel"])
    assert node.count == 1


def save_keras(path, variables):
    """Write what matters here of an archive of Keras."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        for number, x in enumerate(variables):
            file[f"optimizer/vars/{number}"] = x
        file["layers/dense/vars/0"] = np.ones((8, 3))
    optimizer = {"class_name": "Adam", "config": {"epsilon": 1e-7}}
    config = {"compile_config": {"optimizer": optimizer}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights.getvalue())


def test_to_keras_and_back(ours, tmp_path, capfd):
    shapes = (), (), (8, 3), (8, 3), (3,), (3,)
    save_keras(tmp_path / "fresh.keras", [np.zeros(x, np.float32) for x in shapes])
    (tmp_path / "names").write_text("dense/kernel\ndense/bias\n")
    names = ("--names", tmp_path / "names")
    new = tmp_path / "new.keras"
    convert(ours, new, "--to", "keras", "--like", tmp_path / "fresh.keras", *names)
    out, _ = capfd.readouterr()
    assert "new.keras (Keras)" in out and "mu: off by at most 0 of" in out
    with zipfile.ZipFile(new) as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
        assert archive.namelist() == ["config.json", "model.weights.h5"]
    mu = warm(adam_jax.adamw(1e-3))[0].mu["dense"]
    with h5py.File(weights) as file:
        assert file["optimizer/vars/0"][()] == 1
        np.testing.assert_array_equal(file["optimizer/vars/4"], mu["bias"])
        assert file["layers/dense/vars/0"][()].all()
    convert(new, tmp_path / "again", *names)
    assert capfd.readouterr()[0].endswith("lost: nothing\n")
    (node,) = adam_jax.read_state(tmp_path / "again")
    np.testing.assert_array_equal(node.mu["dense/kernel"], mu["kernel"])


def test_what_cannot_be_converted_is_one_sentence(torch, ours, tmp_path, capfd):
    nothing, text = tmp_path / "nothing", tmp_path / "text"
    text.write_text("some text that is no state")
    folder, like, new = tmp_path / "folder", tmp_path / "like", tmp_path / "new"
    folder.mkdir()
    group = {"params": [0, 1], "betas": (0.9, 0.999), "amsgrad": False}
    torch.save({"state": {}, "param_groups": [group]}, like)
    torch.save({"weights": 3}, tmp_path / "weights")
    keras, broken = tmp_path / "keras", tmp_path / "broken"
    save_keras(keras, [np.zeros(())] * 3)
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("model.weights.h5", b"no HDF5")
    like_names = tmp_path / "names"
    like_names.write_text("one\n")
    named = "--names", like_names
    adam_jax.save_state(tmp_path / "two", warm(optax.rmsprop(1e-3, centered=True)))
    for argv, message in (
        ([nothing], "nothing: No such file"),
        ([text], "was written by none of save_state"),
        ([folder], "is no checkpoint of Orbax: give the folder of the item itself"),
        ([like], "was given no names: pass --names"),
        ([like, "--names", nothing], "--names .*nothing: No such file"),
        ([tmp_path / "weights"], "weights holds no state_dict of an optimizer"),
        ([keras], "which parameter is which"),
        (
            [keras, "--names", like_names],
            "Adam, as it is configured, keeps 4 variables",
        ),
        (
            [broken, "--names", like_names],
            "broken is no model that Keras saved compiled",
        ),
        ([ours, new, "--to", "keras"], "--to keras needs --like"),
        (
            [ours, new, "--to", "keras", "--like", like, *named],
            "is no model that Keras",
        ),
        ([ours, "--to", "8bit"], "--to needs the name of the file to write"),
        (
            [ours, new, "--to", "9bit"],
            "--to is '9bit', .* one of same, .*: did you mean 8bit",
        ),
        ([ours, new, "--to", "torch"], "--to torch needs --like"),
        ([ours, new, "--to", "torch", "--like", like], "no names: pass --names"),
        (
            [ours, new, "--to", "optax.nothing"],
            "optax.nothing', but must be an optimizer",
        ),
        (
            [tmp_path / "two", new, "--to", "optax.chain"],
            "optax.chain', but must be an opt",
        ),
        ([ours, folder / "no" / "file"], "there is no folder .*no"),
        ([], "are required: old"),
    ):
        assert main(["convert", *map(str, argv)]) == 2
        out, err = capfd.readouterr()
        err = "\n".join(x for x in err.splitlines() if not x.startswith("WARNING:absl"))
        assert out == "" and err.startswith("adam-jax: error: ")
        assert re.search(message, err), err
        assert "\n" not in err
    assert not new.exists()


@pytest.mark.parametrize("name", ["torch", "h5py"])
def test_without_the_package_of_a_file(name, ours, tmp_path, monkeypatch, capfd):
    like = tmp_path / "like"
    save_keras(like, [])
    monkeypatch.setitem(sys.modules, name, None)
    to = {"torch": "torch", "h5py": "keras"}[name]
    (tmp_path / "names").write_text("one")
    argv = ["--to", to, "--like", str(like), "--names", str(tmp_path / "names")]
    assert main(["convert", ours, str(tmp_path / "new"), *argv]) == 2
    assert f"this kind of file: pip install {name}\n" in capfd.readouterr()[1]
