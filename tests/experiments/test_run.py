"""What a run leaves behind, and that it can be repeated."""

import json
import tomllib

import numpy as np
import pytest
from matplotlib.image import imread

from adam_jax.experiments.run import make_run_folder


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
    assert names == {"config.toml", "metrics.jsonl", "params.npz", "run.png"}
    assert imread(folder / "run.png").shape == (880, 1210, 4)
    first, second = records(folder)
    assert (first["epoch"], first["step"]) == (1, 2)
    assert (second["epoch"], second["step"]) == (2, 4)
    assert second["train_loss"] < first["train_loss"]
    assert 0 < second["test_accuracy"] < 1
    quantiles = list(second["effective_step"].values())
    assert quantiles == sorted(quantiles)
    params = np.load(folder / "params.npz")
    assert params["layers.1.kernel"].shape == (64, 8)
    assert sum(array.size for array in params.values()) == 64 * 8 + 8 + 8 * 10 + 10

    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(f"epoch 1/2: loss {first['train_loss']:.4f}, test accuracy ")
    assert f"{second['test_accuracy']:.2%}" in out
    # Two moments of 610 float32, and a few scalars.
    state_bytes = int(out.split("optimizer state")[1].split()[1].replace(",", ""))
    assert 0 <= state_bytes - 2 * 610 * 4 < 64
    assert "compilation left out" in out
    assert f"│ {folder} │" in out  # whole, however long, to be copied


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
