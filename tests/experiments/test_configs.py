"""Every config that we ship runs, and says how, and what came out."""

import json
from pathlib import Path

import pytest

from adam_jax.experiments.cli import main

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
by_name = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def test_all_are_here():
    assert {config.stem for config in CONFIGS} >= {
        "diagnose_dead_layer",
        "diagnose_healthy",
        "diagnose_large_lr",
        "diagnose_noisy_batch",
        "digits_cnn",
        "digits_mlp",
        "digits_mlp_adamw",
        "digits_mlp_rmsprop",
        "digits_mlp_sgd",
        "digits_mlp_simplified_adam",
        "mnist_cnn",
        "mnist_logistic",
        "mnist_mlp",
        "mnist_vae",
        "topics_8bit",
        "topics_bfloat16",
        "topics_float32",
        "topics_pure_bfloat16",
        "words_logistic",
    }


@by_name
def test_it_runs_for_two_steps(config, runs_dir):
    options = [f"--runs_dir={runs_dir}", "--epochs=1", "--epoch_steps=2"]
    if config.stem.startswith("topics"):
        options += ["--model.widths=[32]", "--test_share=0.01", "--context=128"]
        options += ["--optimizer.warmup_steps=1"]
    if config.stem.startswith(("mnist", "words")):
        options += ["--model.widths=[8]", "--model.latent=2", "--test_share=0.02"]
    assert main(["train", f"--config={config}", *options]) == 0
    (line,) = (runs_dir / config.stem / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2


@by_name
def test_it_opens_with_its_command_and_its_result(config):
    head = config.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"adam-jax train --config configs/{config.name}" in head
    assert "Test accuracy" in head or "Test loss" in head
    assert "seeds 0, 1, 2" in head


def test_the_mlp_recognises_97_percent(runs_dir):
    (config,) = (config for config in CONFIGS if config.stem == "digits_mlp")
    assert main(["train", f"--config={config}", f"--runs_dir={runs_dir}"]) == 0
    last = (runs_dir / "digits_mlp" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["test_accuracy"] >= 0.97
