"""What a run leaves behind, and that it can be repeated."""

import json
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from adam_jax import FIGURES, QUANTILES
from adam_jax.experiments.cli import main
from adam_jax.experiments.metrics import from_json, rank_moved, to_scalars
from adam_jax.experiments.running import training
from adam_jax.experiments.running.folder import make_run_folder


def records(folder):
    """Read metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def results(folder):
    """Give the bytes that must be the same when a run is repeated."""
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "params.npz")]


def test_a_run_leaves_its_folder_and_a_summary(train, runs_dir, capfd):
    assert train() == 0
    folder = runs_dir / "digits"
    names = {path.name for path in folder.iterdir()}
    (events,) = {name for name in names if name.startswith("events.out.tfevents.")}
    others = {"config.toml", "environment.json", "metrics.jsonl", "params.npz"}
    assert names == others | {"run.png", "checkpoints", events}
    with Image.open(folder / "run.png") as picture:
        width, height = picture.size
    assert 1200 < width < 1500 and 1200 < height < 1500
    first, second = records(folder)
    assert (first["epoch"], first["step"]) == (1, 2)
    assert (second["epoch"], second["step"]) == (2, 4)
    assert second["train_loss"] < first["train_loss"]
    assert 0 < second["metrics"]["accuracy"] < 1
    figures = second["figures"]
    quantiles = [figures[f"effective_step_quantiles/{key}"] for key in QUANTILES]
    assert quantiles == sorted(quantiles)
    with np.load(folder / "params.npz") as file:
        params = dict(file)
    assert params["layers.1.kernel"].shape == (64, 8)
    assert sum(array.size for array in params.values()) == 64 * 8 + 8 + 8 * 10 + 10

    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(f"epoch 1/2: loss {first['train_loss']:.4f}, test accuracy ")
    assert f"{second['metrics']['accuracy']:.2%}" in out
    # Two moments of 610 float32, and a few scalars.
    state_bytes = int(out.split("optimizer state")[1].split()[1].replace(",", ""))
    assert 0 <= state_bytes - 2 * 610 * 4 < 64
    assert "compilation left out" in out
    assert "skipped" not in out  # there is no guard
    most, least = rank_moved(second["moved"])
    assert f"moved most       │ {second['moved'][most[0]]:.3g} {most[0]} " in out
    assert f"moved least      │ {second['moved'][least[0]]:.3g} {least[0]} " in out
    assert f"│ {folder} │" in out  # whole, however long, to be copied


@pytest.mark.crossing
def test_a_run_can_be_repeated_bit_for_bit(train, runs_dir):
    options = ("--seed=3", "--optimizer.schedule=cosine", "--optimizer.name=adamw")
    assert train(*options) == 0
    assert train(*options) == 0
    assert train(f"--config={runs_dir / 'digits' / 'config.toml'}") == 0
    assert train(*options, "--seed=4") == 0
    names = ("digits", "digits-2", "digits-3", "digits-4")
    first, again, from_file, other_seed = (results(runs_dir / name) for name in names)
    assert first == again
    assert first == from_file
    assert first != other_seed
    configs = [(runs_dir / name / "config.toml").read_text() for name in names]
    assert configs[0] == configs[1] == configs[2]
    assert tomllib.loads(configs[0])["optimizer"]["schedule"] == "cosine"


def test_the_command_line_overrides_the_file(train, runs_dir, tmp_path):
    (tmp_path / "base.toml").write_text(
        'name = "base"\nseed = 1\n[optimizer]\nlearning_rate = 0.5\nb1 = 0.8\n'
    )
    config = f"--config={tmp_path / 'base.toml'}"
    assert train(config, "--optimizer.learning_rate=3e-4") == 0
    resolved = tomllib.loads((runs_dir / "base" / "config.toml").read_text())
    assert resolved["seed"] == 1
    assert resolved["optimizer"]["learning_rate"] == 3e-4
    assert resolved["optimizer"]["b1"] == 0.8
    assert records(runs_dir / "base")[0]["learning_rate"] == pytest.approx(3e-4)


def test_a_diverging_run_says_so(train, runs_dir, capfd):
    assert train("--optimizer.name=sgd", "--optimizer.learning_rate=1e30") == 1
    out, err = capfd.readouterr()
    assert err.startswith("adam-jax: error: training diverged: the loss of epoch 1 ")
    assert "1 of 2" in out
    (record,) = records(runs_dir / "digits")
    assert record["train_loss"] is None
    assert (runs_dir / "digits" / "run.png").exists()


def test_a_terminal_gets_a_bar(train, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert train() == 0
    out = capfd.readouterr().out
    assert "━" in out
    assert "2/2" in out
    assert "epoch 1/2: loss" not in out


def test_no_run_is_overwritten(tmp_path):
    runs_dir = tmp_path / "deep" / "runs"
    names = [make_run_folder(runs_dir, "mine").name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]


def read_events(folder):
    """Give {(name, step): value} of the event file, record by record."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, scalars = path.read_bytes(), {}
    while data:
        end = 12 + int.from_bytes(data[:8], "little")  # after a checksum of the length
        event = Event.FromString(data[12:end])
        data = data[end + 4 :]
        for value in event.summary.value:
            scalars[value.tag, event.step] = value.simple_value
    return scalars


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(train, runs_dir):
    assert train() == 0
    events = read_events(runs_dir / "digits")
    lines = (runs_dir / "digits" / "metrics.jsonl").read_text().splitlines()
    expected = {
        (name, epoch.step): value
        for epoch in map(from_json, lines)
        for name, value in to_scalars(epoch).items()
    }
    assert events == pytest.approx(expected, rel=1e-6)
    names = {name for name, _ in events}
    assert {"loss/train", "loss/test", "accuracy", "learning_rate"} <= names
    assert {
        "update_norm",
        "update_norm/layers/1/kernel",
        "moved/layers/1/bias",
    } <= names
    assert all(any(name.startswith(figure) for name in names) for figure in FIGURES)


def test_a_guard_skips_and_is_counted(train, runs_dir, capfd):
    # The first step lands far away, where no gradient is finite.
    options = ("--optimizer.name=sgd", "--optimizer.learning_rate=1e30")
    assert train(*options, "--optimizer.guard=nonfinite") == 1
    out, err = capfd.readouterr()
    assert err.startswith("adam-jax: error: training diverged")
    assert "│ skipped          │ 1 of 2 steps" in out
    (record,) = records(runs_dir / "digits")
    assert record["skipped"] == 1
    assert record["figures"]["nonfinite"] > 0  # a skipped step is seen
    assert record["figures"]["update_norm"] == 0
    assert all(distance is not None for distance in record["moved"].values())


def test_a_run_that_only_skips_is_given_up(train, runs_dir, capfd, monkeypatch):
    monkeypatch.setattr(training, "STUCK", 1)
    build = training.build_task
    monkeypatch.setattr(
        training, "build_task", lambda config: build(config)._replace(loss=no_slope)
    )
    assert train("--optimizer.guard=spikes") == 1
    assert "error: training is stuck: 2 steps in a row" in capfd.readouterr().err
    (record,) = records(runs_dir / "digits")
    assert record["skipped"] == record["step"] == 2
    assert set(record["moved"].values()) == {0}


def no_slope(params, examples, key):
    """Give a finite loss whose gradient is NaN: of a root at zero, times zero."""
    zero = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * 0
    return jnp.sqrt(zero)


def test_bfloat16_rounded_to_the_nearest_swallows_updates(train, runs_dir):
    small = ("--arguments.param_dtype=bfloat16", "--optimizer.learning_rate=1e-5")
    assert train(*small) == 0
    last = records(runs_dir / "digits")[-1]
    assert last["figures"]["swallowed/layers/1/kernel"] > 0.9
    assert last["figures"]["swallowed/layers/1/bias"] < 0.1  # near 0 it is not coarse
    # Four steps of 1e-5, of which next to nothing arrived.
    assert last["moved"]["layers/1/kernel"] < 1e-5 < last["moved"]["layers/1/bias"]


def test_a_run_without_moments_is_inspected(train, runs_dir, capfd):
    assert train("--optimizer.name=sgd") == 0
    capfd.readouterr()
    assert main(["inspect", str(runs_dir / "digits")]) == 0
    out = capfd.readouterr().out
    assert "effective_step_quantiles/q50" in out
    assert "signal_to_noise" not in out and "SNR" not in out


def test_without_labels_no_accuracy_is_shown(train, runs_dir, capfd):
    assert train("--arguments.model=vae", "--arguments.latent=2") == 0
    assert main(["inspect", str(runs_dir / "digits")]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "accuracy" not in out and "nan" not in out
    _, last = (runs_dir / "digits" / "metrics.jsonl").read_text().splitlines()
    loss = json.loads(last)["test_loss"]
    assert f", test loss {loss:.4f}\n" in out
    assert f"{loss:.4g} (negative ELBO in nats)" in out
    assert json.loads(last)["metrics"] == {}
