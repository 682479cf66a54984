"""Every config that we ship runs, and says how, and what came out."""

import json
import re
from pathlib import Path

import jax
import pytest

from adam_jax.experiments import commands
from adam_jax.experiments.cli import main
from adam_jax.experiments.running import training

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
# What makes a run of a command last two steps.
SHORT = {
    "train": ("--epochs=1", "--epoch_steps=2"),
    "trace": ("--steps=2", "--animation=none"),
    "compare": ("--epochs=1", "--epoch_steps=2", "--seeds=1"),
    "sweep": ("--epochs=1", "--epoch_steps=2", "--seeds=1"),
}
# Really run: each command, and each kind of model that no other test runs.
RUN = ("digits_cnn", "topics_float32", "trace_saddle", "sweep_digits")


def get_head(config):
    return config.read_text().split("\n\n")[0]


def get_command(config):
    """Give the command that the first lines of a config name."""
    shown = rf"^#   adam-jax (\w+) --config {re.escape(config.stem)}$"
    (command,) = re.findall(shown, get_head(config), re.MULTILINE)
    return command


by_name = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def get_options(config, runs_dir):
    """Give a command line that is short."""
    command = get_command(config)
    options = [command, f"--config={config}", f"--runs_dir={runs_dir}", *SHORT[command]]
    if config.stem.startswith("topics"):
        # One block, not five: of each the figures would be traced.
        options += ["--arguments.widths=[32]", "--arguments.test_share=0.01"]
        options += ["--optimizer.warmup_steps=1"]
    if re.search(r'^problem = "(mnist|words)"', config.read_text(), re.MULTILINE):
        options += ["--arguments.widths=[8]", "--arguments.test_share=0.02"]
    if command == "sweep":
        options += ["--grid.learning_rate=[0.01]"]
    if config.stem == "figure_kb4":
        options += ["--epochs_shown=[1]"]
    if config.stem == "figure_wilson":
        options += ["--batch_size=160"]
    return options


@by_name
def test_its_step_can_be_traced(config, runs_dir, monkeypatch):
    # The data are loaded, the parameters drawn, and the program is traced; without the
    # figures, which take longer than all else.
    compiled = []
    monkeypatch.setattr(training, "watch", lambda tx, *_, **__: tx)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda x: compiled.append(x))
    run = commands.prepare(get_options(config, runs_dir))
    assert callable(run)
    # A study compiles later.
    assert bool(compiled) == (get_command(config) in ("train", "trace"))


@pytest.mark.parametrize("name", RUN)
def test_it_runs_for_two_steps(name, runs_dir):
    (config,) = (config for config in CONFIGS if config.stem == name)
    command = get_command(config)
    small = ["--arguments.widths=[8]"] if command != "trace" else []
    assert main([*get_options(config, runs_dir), *small]) == 0
    folder = runs_dir / name
    if command == "train":
        (line,) = (folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line)["step"] == 2
    elif command == "trace":
        paths = json.loads((folder / "trace.json").read_text())["paths"]
        assert {len(path["points"]) for path in paths.values()} == {1 + 2}
    else:
        lines = (folder / "members.jsonl").read_text().splitlines()
        assert {len(json.loads(line)["train_loss"]) for line in lines} == {1}


@by_name
def test_it_opens_with_its_command_and_its_result(config):
    head = get_head(config)
    assert all(line.startswith("#") for line in head.splitlines())
    if get_command(config) == "trace":
        assert re.search(r"\d steps", head)
    else:
        assert "Test accuracy" in head or "Test loss" in head
        assert re.search(r"seeds 0(, 1, 2| and 1)|one seed|seed 0\b", head)


def test_they_are_listed_and_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [config.stem, get_command(config)] for config in CONFIGS
    ]
    assert all(len(line.split()) > 4 for line in lines)
    assert main(["configs", "digits_mlp"]) == 0
    (printed,) = (config for config in CONFIGS if config.stem == "digits_mlp")
    assert capfd.readouterr().out == printed.read_text()
    assert main(["configs", "digit_mlp"]) == 2
    assert (
        "config is 'digit_mlp', but must be one of those that" in capfd.readouterr().err
    )


def test_a_config_is_taken_by_name(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def read(*options):
        return commands.read_options(["train", *options])

    assert read("--config", "digits_cnn").arguments["model"] == "cnn"
    Path("digits_cnn").mkdir()  # a folder is none
    assert read("--config=digits_cnn").arguments["model"] == "cnn"
    Path("digits_mlp").write_text("seed = 7")  # a file is taken as it is
    assert read("--config", "digits_mlp").seed == 7
    assert main(["train", "--config", "digit_mlp"]) == 2
    error = capfd.readouterr().err
    assert "digit_mlp: No such file or directory: did you mean digits_mlp?" in error
    assert main(["train", "--config", "mine"]) == 2
    error = capfd.readouterr().err
    assert "mine: No such file or directory (adam-jax configs lists" in error


@pytest.mark.parametrize("command", SHORT)
def test_one_command_takes_it_and_others_name_that_one(command):
    for config in CONFIGS:
        argv, own = [command, f"--config={config.stem}"], get_command(config)
        if own == command:
            commands.read_options(argv)
            continue
        words = f"{config.stem} is for adam-jax {own}, not for adam-jax {command}"
        with pytest.raises(ValueError, match=f"^{words}: "):
            commands.read_options(argv)


@pytest.fixture
def optimised():
    """Let XLA optimise what runs for long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_the_mlp_recognises_97_percent(runs_dir, optimised):
    (config,) = (config for config in CONFIGS if config.stem == "digits_mlp")
    assert main(["train", f"--config={config}", f"--runs_dir={runs_dir}"]) == 0
    last = (runs_dir / "digits_mlp" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["metrics"]["accuracy"] >= 0.97
