"""What a user sees: help, exit codes, and one sentence for every mistake."""

import dataclasses
import operator
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from adam_jax import OPTIMIZERS
from adam_jax.experiments import cli
from adam_jax.experiments.cli import main
from adam_jax.experiments.commands import COMMANDS, read_options
from adam_jax.experiments.running import progress, training
from adam_jax.experiments.settings.arguments import check_call, make_config, to_toml
from adam_jax.experiments.settings.config import OptimizerConfig, TrainConfig

MISTAKES = {
    "an unknown option": ("--lr=1", r"unrecognized arguments: --lr=1 \(see"),
    "a mistyped option": (
        "--optimiser.bb1=1",
        r"unrecognized arguments: --optimiser.bb1=1: did you mean --optimizer.b1\? ",
    ),
    "a positional": ("adam", r"unrecognized arguments: adam"),
    "an option without a value": ("--seed", r"--seed: expected one argument"),
    "a wrong type": ("--seed=1.5", r"seed: .* a valid integer, got 1.5$"),
    "a wrong optional type": (
        "--optimizer.b1=x",
        r"optimizer.b1: .* a valid number, got \"x\"$",
    ),
    "a wrong list": (
        "--arguments.widths=3",
        r"arguments.widths: .* a list, got 3$",
    ),
    "a wrong choice": (
        "--arguments.model=rnn",
        r"model: .* 'mlp', 'cnn' or 'vae', got \"rnn\": did you mean cnn\?$",
    ),
    "a name for a table": (
        "--optimizer=lion",
        r"optimizer: .* a table, got \"lion\"$",
    ),
    "a missing file": ("--config=no.toml", r"no.toml: No such file or directory"),
    "a folder for a file": ("--config=.", r"\.: Is a directory"),
    "an unknown optimizer": (
        "--optimizer.name=adamm",
        r"optimizer.name is 'adamm', but must be .*family lists: did you mean adam\?$",
    ),
    "an optimizer like no other": ("--optimizer.name=zzz", r"adam-jax family lists$"),
    "a mistyped problem": ("--problem=mnits", r"is 'mnits', .*: did you mean mnist\?$"),
    "a mistyped config": ("--config=digits_mpl", r"directory: did you mean digits_mlp"),
    "the config of another command": (
        "--config=trace_saddle",
        r"^trace_saddle is for adam-jax trace, not for adam-jax train: surface is no o",
    ),
    "a mistyped schedule": (
        "--optimizer.schedule=cosin",
        r"schedule: .* or 'inverse_sqrt', got \"cosin\": did you mean cosine\?$",
    ),
    "many tables": (
        f"--arguments.x={'[' * 300 + ']' * 300}",
        r"^lists or tables are nested too deeply$",
    ),
    "an option of another optimizer": (
        "--optimizer.momentum=0.9",
        r"optimizer.momentum is set, but adam does not take it: it takes b1, b2, eps, "
        r"eps_root, mu_dtype, nesterov, nu_dtype$",
    ),
    "a value that the optimizer refuses": ("--optimizer.b1=1.5", r"b1 must be .* 1\.5"),
    "no learning rate": (
        "--optimizer.learning_rate=0",
        r"learning_rate: .* greater than 0, got 0$",
    ),
    "an endless warm-up": (
        "--optimizer.warmup_steps=9999",
        r"warmup_steps is 9999, but the whole run has 1760 steps: shorten the warm-up",
    ),
    "a negative warm-up": (
        "--optimizer.warmup_steps=-1",
        r"steps: .* greater than or equal to 0, got -1$",
    ),
    "a path for a name": (
        "--name=../x",
        r"name is '../x', but must be letters, digits",
    ),
    "a negative seed": ("--seed=-1", r"seed: .* than or equal to 0, got -1$"),
    "a large seed": ("--seed=4294967296", r"seed: .* less than 4294967296, got 429"),
    "no checkpoints": (
        "--checkpoint_every=0",
        r"checkpoint_every: .* greater than 0, got 0$",
    ),
    "no epochs": ("--epochs=0", r"epochs: .* greater than 0, got 0$"),
    "endless epochs": ("--epochs=1000000000000", r"or equal to 100000, got 1000000000"),
    "an endless batch": (
        "--batch_size=1000000000000",
        r"batch_size is 1000000000000 and .* only 1437 training examples",
    ),
    "a wide layer": (
        "--arguments.widths=[1000000000]",
        r"widths.0: .* less than or equal to 65536, got 1000000000$",
    ),
    "many layers": (
        f"--arguments.widths={[1] * 65}",
        r"widths: .* at most 64 items, not 65, got ",
    ),
    "wide layers": (
        "--arguments.widths=[65536, 65536]",
        r"\[65536, 65536\], which makes 4,299,948,042 parameters, but .* 100,000,000",
    ),
    "a wide code": (
        "--arguments.latent=1000000000",
        r"latent: .* less than or equal to 65536, got",
    ),
    "a huge number": (
        f"--optimizer.learning_rate={10**400}",
        r"learning_rate: .* a finite number, got 1000+",
    ),
    "a long name": (
        f"--name={'x' * 101}",
        r"must be letters, digits and .*: 100 at most",
    ),
    "a folder that no text names": (
        "--runs_dir=\udcff",
        r"argument --runs_dir: invalid utf8 value: '\\udcff'",
    ),
    "a long value": (
        f"--optimizer.b1={'x' * 5000}",
        r"optimizer.b1: .*, got \"x+ \.\.\. x+\"$",
    ),
    "a code": ("--seed=\x1b[2J", r'seed: .* a valid integer, got "\\u001b\[2J"$'),
    "no batch": ("--batch_size=0", r"batch_size: .* greater than 0, got 0$"),
    "a large batch": (
        "--batch_size=1438",
        r"1438 and epoch_steps 1, but there are only 1437 training examples",
    ),
    "no test": ("--arguments.test_share=0", r"test_share: .* greater than 0, got 0$"),
    "a small test": (
        "--arguments.test_share=0.001",
        "training and test 10 or more of 1797",
    ),
    "all smoothed": ("--arguments.label_smoothing=1", r"smoothing: .* less than 1, go"),
    "a long epoch": (
        "--epoch_steps=1000",
        r"epoch_steps 1000, but there are only 1437 training examples",
    ),
    "an unknown format": (
        "--optimizer.mu_dtype=4bit",
        r"mu_dtype must be a dtype, a format or one of float32, bfloat16, 8bit, got",
    ),
    "another problem's argument": (
        "--arguments.context=3",
        r"unexpected .* 'context'; what it takes is model, widths, latent,",
    ),
    "a mistyped argument": ("--arguments.width=[3]", r"did you mean widths\?$"),
    "all dropped": ("--arguments.dropout=1", r"arguments.dropout: .* less than 1, got"),
    "no code": ("--arguments.latent=0", r"arguments.latent: .* greater than 0, got 0$"),
    "an unknown guard": (
        "--optimizer.guard=spike",
        r"guard: .* 'nonfinite' or 'spikes', got \"spike\": did you mean spikes\?$",
    ),
    "no units": (
        "--arguments.widths=[8, 0]",
        r"arguments.widths.1: .* greater than 0, got 0$",
    ),
}
BAD_FILES = {
    "no table": ("optimizer = 3", r"optimizer: .* a table, got 3$"),
    "a wrong key": ("nme = 'x'", r"^nme is no option: did you mean name\?$"),
    "a number without end": (
        f"optimizer.learning_rate = 1{'0' * 400}",
        r"learning_rate: .* a finite number, got 1000+",
    ),
    "what is nested too deeply": (
        f"seed = {'[' * 9999}",
        r"nested too deeply|bad.toml: ",
    ),
    "a config in a config": ("config.x = 'y'", r"^config is no option"),
    "a class": ("optimizer.class_path = 'os.system'", r"optimizer.class_path is no op"),
    "a wrong key in a table": (
        "optimizer.lr = 1.0",
        r"^optimizer.lr is no option: choose from name, learning_rate, .*, arguments$",
    ),
    "a wrong table": (
        "[optimiser]\nname = 'adam'",
        r"^optimiser is no option: did you mean optimizer\?$",
    ),
    "a wrong type": ("seed = 'x'", r"seed: .* a valid integer, got \"x\"$"),
    "a wrong optional type": (
        "optimizer.eps = 'x'",
        r"optimizer.eps: .* a valid number.*, got \"x\"$",
    ),
    "no TOML": ("seed = = 1", r"bad.toml: .*Invalid value \(at line 1, column 8\)"),
    "what cannot drop": (
        "arguments.model = 'vae'\narguments.dropout = 0.5",
        r"arguments.dropout is 0.5, but must be 0 for a vae",
    ),
    "an endless bias": (
        "arguments.hidden_bias = inf",
        r"arguments.hidden_bias: .* a finite number, got inf$",
    ),
    "a value out of range": (
        "epochs = -1",
        r"epochs: .* greater than 0, got -1$",
    ),
}


def only_error(capfd: pytest.CaptureFixture[str]) -> str:
    """Give the single line on stderr, without its prefix."""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("adam-jax: error: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("adam-jax: error: ").rstrip()


@pytest.mark.parametrize(("option", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(option, message, runs_dir, capfd):
    assert main(["train", f"--runs_dir={runs_dir}", option]) == 2
    assert re.search(message, only_error(capfd))
    assert not runs_dir.exists()


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_in_a_file_is_one_sentence(text, message, tmp_path, runs_dir, capfd):
    (tmp_path / "bad.toml").write_text(text)
    command = ["train", f"--runs_dir={runs_dir}", f"--config={tmp_path / 'bad.toml'}"]
    assert main(command) == 2
    assert re.search(message, only_error(capfd))
    assert not runs_dir.exists()


def test_a_file_that_is_no_text(tmp_path, capfd):
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert main(["train", f"--config={tmp_path / 'bad.toml'}"]) == 2
    assert re.search(r"bad.toml: 'utf-8' codec can't decode", only_error(capfd))


def test_an_unwritable_folder(train, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert train(f"--runs_dir={tmp_path / 'file'}") == 2
    assert re.search(r"cannot write the results: .*exists: '.*file'", only_error(capfd))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_extra(monkeypatch, capfd):
    for module in ("commands", "settings.arguments"):
        name = f"adam_jax.experiments.{module}"
        monkeypatch.delattr(name, raising=False)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert main(["train"]) == 2
    assert "pip install 'adam_jax[experiments]' brings it" in only_error(capfd)


def test_no_traceback_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "adam_jax.experiments", "train", "--config=none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("adam-jax: error: none: No such file")
    assert not list(tmp_path.iterdir())


def test_no_command_prints_the_help(capfd):
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert "Train a model on data that come along" in out
    assert err == ""


NO_COMMANDS = {
    "--lr": r"unrecognized arguments: --lr",
    "trian": r"^the command is 'trian', .*, convert: did you mean train\?$",
    "": r"^the command is '', but must be one of train, .*, convert$",
}


@pytest.mark.parametrize(("name", "message"), NO_COMMANDS.items())
def test_what_is_no_command_is_one_sentence(name, message, capfd):
    for others in ([], ["train"]):
        assert main([name, *others]) == 2
        assert re.search(message, only_error(capfd))


def test_version(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capfd.readouterr().out == f"adam-jax {version('adam_jax')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_of_it(command, capfd):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capfd.readouterr().out
    assert out.startswith(f"usage: adam-jax {command} ")
    assert f"  adam-jax {command} " in out[out.index("examples:\n") :]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_what_it_does_not_know(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--no_such_option=1"]) == 2
    assert only_error(capfd)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "compare", "sweep", "trace"])
def test_every_config_must_be_there(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--config=none.toml"]) == 2
    assert only_error(capfd).startswith("none.toml: No such file or directory")
    assert not list(tmp_path.iterdir())


def test_a_stored_config_holds_any_text(tmp_path):
    for text in ("C:\\x00\\run", "é😀", "'", '"', "a\\"):
        stored = tmp_path / "stored.toml"
        config = TrainConfig(runs_dir=text)
        stored.write_text(to_toml(config), "utf-8")
        assert read_options(["train", f"--config={stored}"]).runs_dir == text


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["--version"], ["trian"]),
        *([name, "--lr"] for name in COMMANDS),
        *([name, "--help"] for name in COMMANDS if name not in ("bench", "trace")),
    ],
    ids=" ".join,
)
def test_no_help_and_no_mistake_waits_for_a_library(argv):
    code = """
import sys
from adam_jax.experiments.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"jax", "numpy", "altair", "torch", "rich", "vl_convert", "orbax"}
print("loaded:", sorted(heavy & {*sys.modules}))
"""
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: []\n")
    assert "usage: " in done.stdout or "error: " in done.stderr or "--version" in argv


def test_nobody_need_read_to_the_end():
    command = f"{sys.executable} -m adam_jax.experiments configs | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "" and done.stdout in ("141\n", "0\n")


def test_help_documents_every_option(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = " ".join(capfd.readouterr().out.split())
    assert "adam-jax train --config digits_mlp" in text
    assert all(name in text for name in OPTIMIZERS)
    tables = {"": TrainConfig, "optimizer.": OptimizerConfig}
    for table, config in tables.items():
        for field in dataclasses.fields(config):
            assert re.search(rf"--{table}{field.name} \S+ [A-Z]\w* ", text), field.name


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_what_is_done(number, code, train, runs_dir, capfd, monkeypatch):
    number = signal.Signals[number]
    handler = signal.getsignal(number)
    show = progress.Report.show

    def interrupt(self, epoch):
        show(self, epoch)
        if epoch.epoch == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(progress.Report, "show", interrupt)
    assert train("--epochs=50") == code
    out, err = capfd.readouterr()
    folder = runs_dir / "digits"
    assert err == (
        "adam-jax: error: interrupted after step 4 of 100, which is saved; go on with: "
        f"adam-jax train --resume {folder}\n"
    )
    assert "2 of 50" in out
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "run.png").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["4"]
    assert main(["inspect", str(folder)]) == 0
    assert "after epoch " in capfd.readouterr().out
    assert signal.getsignal(number) is handler


def test_ctrl_c_before_training_writes_nothing(train, runs_dir, capfd, monkeypatch):
    def interrupt(self, config):
        os.kill(os.getpid(), signal.SIGINT)

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(training.Trainer, "__init__", interrupt)
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(SystemExit, match="130"):
        train()
    assert only_error(capfd) == "interrupted"
    assert not runs_dir.exists()


def test_config_files_may_be_relative(train, tmp_path: Path, monkeypatch):
    (tmp_path / "mine.toml").write_text('name = "mine"')
    monkeypatch.chdir(tmp_path)
    assert train("--config=mine.toml") == 0
    assert (tmp_path / "runs" / "mine").is_dir()


@pytest.mark.parametrize("file_first", [True, False])
def test_the_command_line_overrides_a_file(file_first, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 7\nseed = 7\n[optimizer]\nb1 = 0.7\nb2 = 0.7")
    options = ["--epochs", "3", "--optimizer.b1=0.3", "--optimizer.eps=0.1"]
    options[0 if file_first else 4 : 0] = ["--config", str(file)]
    read = read_options(["train", *options])
    assert (read.epochs, read.seed) == (3, 7)
    optimizer = read.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.3, 0.7, 0.1)


def test_several_files_are_merged_key_by_key(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("epochs = 7\nseed = 7\n[optimizer]\nb1 = 0.7\nb2 = 0.7")
    second.write_text("epochs = 8\n[optimizer]\nb1 = 0.8")
    files = [f"--config={first}", "--optimizer.eps=0.1", f"--config={second}"]
    read = read_options(["train", *files])
    assert (read.epochs, read.seed) == (8, 7)
    optimizer = read.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.8, 0.7, 0.1)


VALUES = {
    "null": (["--optimizer.b1=null"], "optimizer.b1", None),
    "a number for text": (["--name=2026"], "name", "2026"),
    "null for text": (["--runs_dir=null"], "runs_dir", "null"),
    "JSON": (
        ["--optimizer.arguments.x", "[8, 16]"],
        "optimizer.arguments",
        {"x": [8, 16]},
    ),
    "TOML": (["--seed=1_000"], "seed", 1000),
    "a table": (['--optimizer={"b1": 0.5}'], "optimizer.b1", 0.5),
    "a table of TOML": (["--optimizer", "{b1 = 0.5}"], "optimizer.b1", 0.5),
    "a negative number": (["--penalty", "-0.0"], "penalty", -0.0),
    "what stands last": (["--seed=1", "--seed=2"], "seed", 2),
}


@pytest.mark.parametrize(("given", "key", "value"), VALUES.values(), ids=VALUES)
def test_values_are_read_as_their_option_wants(given, key, value):
    found = operator.attrgetter(key)(read_options(["train", *given]))
    assert found == value and type(found) is type(value)


def test_tables_in_a_list_may_come_from_the_command_line():
    tables = '[{"name": "adam"}, {"name": "sgd", "label": "plain"}]'
    read = read_options(["compare", f"--optimizers={tables}"])
    assert [optimizer.title for optimizer in read.optimizers] == ["adam", "plain"]


@pytest.mark.parametrize("command", ["train", "compare", "sweep", "trace"])
def test_a_printed_config_says_the_same(command, tmp_path, capfd):
    options = [command, "--name=mine"]
    if command in ("compare", "sweep"):
        options.append(f"--config={command}_digits")
    assert main([*options, "--print_config"]) == 0
    file = tmp_path / "printed.toml"
    file.write_text(capfd.readouterr().out)
    assert read_options([command, f"--config={file}"]) == read_options(options)


@dataclasses.dataclass
class Free:
    """Stand in for a config with a table of any keys."""

    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_a_table_of_any_keys_is_stored_without_nulls():
    table = {"width": 3, "folder": None, "layers": [{"size": 1, "bias": None}]}
    config = make_config(Free, {"arguments": table})
    assert config.arguments == table
    stored = tomllib.loads(to_toml(config))["arguments"]
    assert stored == {"width": 3, "layers": [{"size": 1}]}
    with pytest.raises(ValueError, match="a list holds null"):
        to_toml(Free({"layers": [None]}))


def make(width: int, shape: tuple[int, ...] = (1,), rate=0.1, *, name: str = "x"):
    """Stand in for a function of a user."""


def make_more(width: int, **others: float):
    """Stand in for one that takes anything."""


def make_unknown(width: "Unknown", rate: "float" = 0.1):  # noqa: F821
    """Stand in for one that imports types only where they are checked."""


def test_arguments_of_a_function_become_what_it_wants():
    table = {"width": 3, "shape": [1, 2], "rate": [None]}
    checked = check_call(make, table, "arguments")
    assert checked == {"width": 3, "shape": (1, 2), "rate": [None]}
    for function in (make_more, make_unknown):
        table = {"width": 3, "rate": "x"}
        assert check_call(function, table, "arguments") == table


BAD_CALLS = {
    "a wrong type": ({"width": 1.5}, r"^a\.width: .* a valid integer, got 1.5$"),
    "a wrong item": (
        {"width": 1, "shape": [1, "x"]},
        r'^a\.shape\.1: .* a valid integer, got "x"$',
    ),
    "a missing one": ({}, r"^a: missing .* argument: 'width'; what it takes is width"),
    "an unknown one": (
        {"width": 1, "widht": 1},
        r"^a: .* unexpected .* 'widht': did you mean width\?$",
    ),
}


@pytest.mark.parametrize(("table", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_wrong_argument_of_a_function_is_one_sentence(table, message):
    with pytest.raises(ValueError, match=message):
        check_call(make, table, "a")
