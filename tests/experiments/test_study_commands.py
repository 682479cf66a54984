"""`adam-jax compare` and `adam-jax sweep`: what they leave, and what they say."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from specs import read_panels, read_picture

from adam_jax.experiments.cli import main
from adam_jax.experiments.pictures.drawing import to_picture
from adam_jax.experiments.running.folder import Journal
from adam_jax.experiments.running.progress import Display
from adam_jax.experiments.study import study
from adam_jax.experiments.study.grids import find_border
from adam_jax.experiments.study.members import Member, from_json, open_members
from adam_jax.experiments.study.outcomes import (
    count_epochs,
    find_best,
    group_members,
    tabulate,
    to_text,
)
from adam_jax.experiments.study.population import Population
from adam_jax.experiments.study.study_charts import draw_curves, draw_sweep
from adam_jax.experiments.study.study_config import (
    CompareConfig,
    GridConfig,
    Range,
    SweepConfig,
    SweptCandidate,
)

TINY = """\
batch_size = 718
epochs = 2
[arguments]
widths = [8]
[[optimizers]]
name = "adam"
label = "mine"
[[optimizers]]
name = "sgd"
learning_rate = 1e37
"""
SWEEP = """\
batch_size = 718
epochs = 2
[arguments]
widths = [8]
[[optimizers]]
name = "adam"
[grid]
learning_rate = {min = 1e-4, max = 1e-2, count = 3}
b1 = [0, 0.9]
"""


@pytest.fixture
def run(tmp_path, runs_dir):
    """Give a function that runs a command with a tiny config."""

    def run(command, *options, text=TINY):
        (tmp_path / "tiny.toml").write_text(text)
        config = f"--config={tmp_path / 'tiny.toml'}"
        return main([command, config, f"--runs_dir={runs_dir}", *options])

    return run


def read(folder):
    return [from_json(x) for x in (folder / "members.jsonl").read_text().splitlines()]


def test_compare_leaves_its_folder_and_a_table(run, runs_dir, capfd):
    assert run("compare", "--seeds=2", "--target_loss=100") == 0
    folder = runs_dir / "compare"
    names = {path.name for path in folder.iterdir()}
    others = {"config.toml", "environment.json", "members.jsonl"}
    assert names == others | {"compare.png"}
    with Image.open(folder / "compare.png") as picture:
        assert np.asarray(picture).std() > 0
    members = read(folder)
    labels = [(member.optimizer, member.seed) for member in members]
    assert labels == [("mine", 0), ("mine", 1), ("sgd", 0), ("sgd", 1)]
    assert members[0].setting == {"learning_rate": 1e-3}
    assert [len(member.test_loss) for member in members] == [2] * 4
    first = json.loads((folder / "members.jsonl").read_text().splitlines()[2])
    assert first["test_loss"] == [None, None]

    out, err = capfd.readouterr()
    assert err == ""
    mine, sgd = (
        next(line for line in out.splitlines() if f"│ {label} " in line)
        for label in ("mine", "sgd")
    )
    losses = [member.test_loss[-1] for member in members[:2]]
    mean, low, high = np.mean(losses), min(losses), max(losses)
    assert f"│ {mean:.4g} ({low:.4g} to {high:.4g}) │" in mine
    assert sgd.split("│")[-2].strip() == "2 of 2"  # both diverged
    assert mine.split("│")[-3].strip() == "1"  # an epoch to a loss of 100
    assert out.index(mine) < out.index(sgd)
    assert "mine: 2 of 2 runs, 2 epochs, " in out
    assert f"study: {folder}\n" in out


def test_a_stored_config_repeats_the_study(run, runs_dir):
    assert run("sweep", "--draws=2", text=SWEEP) == 0
    stored = f"--config={runs_dir / 'sweep' / 'config.toml'}"
    assert main(["sweep", stored]) == 0
    first, second = (
        (runs_dir / name / "members.jsonl").read_bytes()
        for name in ("sweep", "sweep-2")
    )
    assert first == second


def test_sweep_names_the_best_setting_and_the_border(run, runs_dir, capfd):
    assert run("sweep", text=SWEEP) == 0
    folder = runs_dir / "sweep"
    with Image.open(folder / "sweep.png") as picture:
        assert np.asarray(picture).std() > 0
    members = read(folder)
    assert len(members) == 6
    best = min(members, key=lambda member: member.test_loss[-1])
    out, err = capfd.readouterr()
    assert err == ""
    rate, b1 = best.setting["learning_rate"], best.setting["b1"]
    losses = f"{best.train_loss[-1]:.4g} │ {best.test_loss[-1]:.4g}"
    assert f"{rate:g} │ {b1:g} │ {losses} │" in " ".join(out.split())
    assert "0 of 6" in out
    assert f"adam: learning_rate {rate:g} is the largest that was tried" in out


# Six runs of each optimizer, in chunks of four and two (of five and one on jax 0.8).
CHUNKS = """\
name = "mine"
batch_size = 718
epochs = 2
seeds = 2
memory = 2_100_000
[arguments]
widths = [8]
[[optimizers]]
name = "adam"
[[optimizers]]
name = "sgd"
[grid]
learning_rate = [1e-3, 1e-2, 1e-1]
"""


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory):
    """Give the folder of a study that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "chunks.toml").write_text(CHUNKS)
    command = ["sweep", f"--config={folder / 'chunks.toml'}", f"--runs_dir={folder}"]
    assert main(command) == 0
    return folder / "mine"


@pytest.fixture
def whole(whole_once, tmp_path, capfd):
    """Give a copy of that folder."""
    return shutil.copytree(whole_once, tmp_path / "runs" / "mine")


def resume(folder, command="sweep"):
    return main([command, f"--resume={folder}"])


def stop_after_chunk(monkeypatch, number, name=signal.SIGINT):
    """Let a signal come after some chunk of the next study."""
    note, notes = Display.note, []

    def stop(self, line):
        note(self, line)
        notes.append(line)
        if len(notes) == number:
            os.kill(os.getpid(), name)

    monkeypatch.setattr(Display, "note", stop)


@pytest.mark.parametrize(
    ("name", "code", "chunk"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 3)]
)
def test_an_interrupted_study_goes_on_bit_for_bit(
    name, code, chunk, whole_once, run, runs_dir, capfd, monkeypatch
):
    folder = runs_dir / "mine"
    with monkeypatch.context() as patch:
        stop_after_chunk(patch, chunk, name)
        assert run("sweep", text=CHUNKS) == code
    out, err = capfd.readouterr()
    done = len(read(folder))
    first = chunk == 1
    assert 0 < done < 6 if first else 6 < done < 12
    assert err == (
        f"adam-jax: error: interrupted: {done} of 12 runs are done and saved; go on "
        f"with: adam-jax sweep --resume {folder}\n"
    )
    assert (folder / "sweep.png").stat().st_size > 0
    assert ("sgd" in out) != first

    assert resume(folder) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"resumed: {done} of 12 runs were done\n")
    assert ("adam: 6 of 6 runs" in out) == first
    assert "sgd: 6 of 6 runs" in out
    assert " of 6 │" in out
    assert err == ""
    expected = (whole_once / "members.jsonl").read_bytes()
    assert (folder / "members.jsonl").read_bytes() == expected
    first, second = (
        np.asarray(Image.open(x / "sweep.png")) for x in (folder, whole_once)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kept", [0, 0.5, 3, 4, 4.5, 5, 6, 9.5, 11, 12])
def test_a_study_goes_on_from_whatever_a_kill_has_left(kept, whole, capfd):
    """`kept` lines were written, and a part of the next."""
    expected = (whole / "members.jsonl").read_bytes()
    lines = expected.splitlines(keepends=True)
    half = lines[int(kept)][:50] if kept % 1 else b""
    (whole / "members.jsonl").write_bytes(b"".join(lines[: int(kept)]) + half)
    (whole / "sweep.png").unlink()
    assert resume(whole) == 0
    assert capfd.readouterr().err == ""
    assert (whole / "members.jsonl").read_bytes() == expected
    assert np.asarray(Image.open(whole / "sweep.png")).std() > 0


def test_a_study_that_is_killed_loses_the_chunk_at_work_only(tmp_path, capfd):
    text = SWEEP.replace("epochs = 2", "epochs = 300\nmemory = 1")
    (tmp_path / "tiny.toml").write_text(text)
    options = (f"--config={tmp_path / 'tiny.toml'}", f"--runs_dir={tmp_path}")
    program = [sys.executable, "-m", "adam_jax.experiments", "sweep", *options]
    members = tmp_path / "sweep" / "members.jsonl"
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        while not (members.exists() and members.read_bytes().count(b"\n") > 1):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = members.read_bytes()
    done = before.count(b"\n")
    assert 1 < done < 6
    assert resume(tmp_path / "sweep") == 0
    assert members.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    out = capfd.readouterr().out
    assert f"resumed: {done} of 6 runs were done" in out
    assert f"adam: {done} of 6 runs" not in out
    assert len(read(members.parent)) == 6


def test_a_comparison_goes_on_too(run, runs_dir, capfd, monkeypatch):
    assert run("compare", "--name=whole") == 0
    with monkeypatch.context() as patch:
        stop_after_chunk(patch, 1)
        assert run("compare") == 130
    folder = runs_dir / "compare"
    assert f"adam-jax compare --resume {folder}\n" in capfd.readouterr().err
    assert {member.optimizer for member in read(folder)} == {"mine"}
    assert resume(folder, "compare") == 0
    first, second = (
        (runs_dir / name / "members.jsonl").read_bytes()
        for name in ("compare", "whole")
    )
    assert first == second
    assert np.asarray(Image.open(folder / "compare.png")).std() > 0


def test_a_signal_after_all_is_done_stops_nothing(run, runs_dir, capfd, monkeypatch):
    stop_after_chunk(monkeypatch, 4)
    assert run("sweep", text=CHUNKS) == 0
    assert capfd.readouterr().err == ""
    assert len(read(runs_dir / "mine")) == 12


def test_a_finished_study_is_left_alone(whole, capfd, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    monkeypatch.delattr(Population, "__init__")  # nor is anything compiled
    assert resume(whole) == 0
    assert capfd.readouterr() == (f"{whole} is finished: nothing is left to do\n", "")
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


def test_two_processes_cannot_train_the_same_study(whole, capfd):
    with contextlib.closing(open_members(whole)):
        assert resume(whole) == 2
    sentence = f"{whole} is in use: another process trains it; wait for that to end"
    assert sentence in capfd.readouterr().err
    assert resume(whole) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seeds = 3"), "is broken: its members are not those of its con"),
        (("seeds = 2", "seeds = [5, 6]"), "is broken: its members are not those of i"),
        (("epochs = 2", "epochs = 3"), "is broken: its members are not those of its c"),
        (("seeds = 2", "seeds = 0"), "seeds is 0, but must be from 1"),
        (("[grid]", "[arguments]"), "config.toml: .*Cannot declare"),
        (("seeds = 2", "target_loss = 2"), "target_loss is no option"),
    ],
)
def test_a_folder_that_cannot_be_resumed_stays_as_it_is(change, message, whole, capfd):
    config = (whole / "config.toml").read_text()
    (whole / "config.toml").write_text(config.replace(*change))
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    assert resume(whole) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_resume_takes_a_study_and_no_other_option(command, tmp_path, capfd):
    assert resume(tmp_path, command) == 2
    message = f"is no run: .*No such file.*; adam-jax {command} makes one\n"
    assert re.search(message, capfd.readouterr().err)
    assert main([command, f"--resume={tmp_path}", "--epochs=3"]) == 2
    assert "epochs is set, but --resume goes on with" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    grid, other = (
        ("grid.b1 = [0]", "sweep") if command == "compare" else ("", "compare")
    )
    (tmp_path / "config.toml").write_text(f"optimizers = [{{}}]\n{grid}")
    assert resume(tmp_path, command) == 2
    message = f"{tmp_path} is for adam-jax {other}, not for adam-jax {command}\n"
    assert capfd.readouterr().err.endswith(message)


def test_a_study_on_a_full_disk_can_go_on(
    run, runs_dir, whole_once, capfd, monkeypatch
):
    folder = runs_dir / "mine"
    with monkeypatch.context() as patch:
        add, calls = Journal.add, []

        def fill(self, *entries):
            calls.append(entries)
            if len([x for x in calls if x]) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            add(self, *entries)

        patch.setattr(Journal, "add", fill)
        assert run("sweep", text=CHUNKS) == 2
    assert capfd.readouterr().err == (
        f"adam-jax: error: cannot write the results: {folder}: No space left on "
        f"device; free some space, and go on with: adam-jax sweep --resume {folder}\n"
    )
    assert resume(folder) == 0
    expected = (whole_once / "members.jsonl").read_bytes()
    assert (folder / "members.jsonl").read_bytes() == expected


def test_a_disk_full_at_first_leaves_no_study(run, runs_dir, capfd, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(study, "open_members", fail)
    assert run("sweep", text=CHUNKS) == 2
    assert "No space left on device; nothing is kept of" in capfd.readouterr().err
    assert not list(runs_dir.iterdir())


def test_a_terminal_gets_a_bar_and_little_memory_a_warning(run, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("sweep", "--memory=1", text=SWEEP) == 0
    out = capfd.readouterr().out
    assert "━" in out
    assert "12/12" in out
    assert "6 of 6 runs" not in out
    assert "more than memory = 1: one at a time" in out


ADAM = "[[optimizers]]\nname = 'adam'\n"
MISTAKES = {
    "no list of tables": (
        "compare",
        "optimizers = [3]",
        r"optimizers\.0: .* a table, got 3$",
    ),
    "no optimizer": ("compare", "seeds = 2", "there is no optimizer: add tables"),
    "no table": ("compare", "optimizers = 3", "optimizers: .* a list, got 3$"),
    "twice": (
        "compare",
        ADAM + ADAM,
        "label is 'adam', but must be used once: give each",
    ),
    "an unknown key": (
        "compare",
        "[[optimizers]]\nlr = 1",
        r"optimizers\.0\.lr is no option: choose from name, .*, arguments, label$",
    ),
    "a mistyped key": (
        "sweep",
        ADAM + "[optimizers.grid]\nweigth_decay = [0]",
        r"optimizers\.0\.grid.weigth_decay is no option: did you mean weight_decay\?$",
    ),
    "a mistyped name": (
        "compare",
        ADAM + ADAM.replace("adam", "adamm"),
        r"optimizers\.1\.name is 'adamm', but must be .*: did you mean adam\?$",
    ),
    "a wrong type": (
        "compare",
        "[[optimizers]]\nb1 = 'x'",
        r"optimizers\.0\.b1: .* a valid number, got \"x\"$",
    ),
    "no seed": ("compare", "seeds = 0\n" + ADAM, "seeds is 0, but must be from 1"),
    "a negative seed": (
        "compare",
        "seeds = [-1]\n" + ADAM,
        r"seeds\.0: .* greater than or equal to 0, got -1$",
    ),
    "no memory": ("compare", "memory = 'x'\n" + ADAM, "memory is 'x', but must"),
    "a foreign option": (
        "compare",
        "[[optimizers]]\nmomentum = 0.5",
        "optimizer.momentum is set, but adam does not take it",
    ),
    "no grid": (
        "sweep",
        ADAM,
        r"is for adam-jax compare, not for adam-jax sweep: the grid is empty: add a",
    ),
    "a number": (
        "sweep",
        ADAM + "[grid]\nb2 = 3",
        r"grid.b2: .* a table or a list, got 3$",
    ),
    "half a range": (
        "sweep",
        ADAM + "[grid]\nb2 = {min = 2}",
        r"grid.b2: max is missing$",
    ),
    "an endless range": (
        "sweep",
        ADAM + "[grid]\nb2 = {min = 0.5, max = 0.9, count = 1000000000}",
        "grid.b2.count is 1000000000, but must be from 2 to 10000",
    ),
    "an endless grid": (
        "sweep",
        ADAM + "[grid]\n"
        "b1 = {min = 0.5, max = 0.9, count = 1000}\n"
        "b2 = {min = 0.5, max = 0.9, count = 1000}",
        "these are 1,000,000 runs of each optimizer, but 10,000 are the most",
    ),
    "endless draws": (
        "sweep",
        "draws = 1000000000\n" + ADAM + "[grid]\nb1 = [0]",
        "these are 1,000,000,000 runs of each optimizer",
    ),
    "endless seeds": (
        "compare",
        "seeds = 1000000000\n" + ADAM,
        "seeds is 1000000000, but must be from 1 to 10000",
    ),
    "endless memory": (
        "compare",
        f"memory = '{'9' * 400}GB'\n" + ADAM,
        r"memory is '9+ \.\.\. 9+GB', but must be as in 500MB",
    ),
    "what is no class": (
        "compare",
        "optimizers = [{class_path = 'os.system'}]",
        r"optimizers\.0\.class_path is no option",
    ),
    "a label that cannot be drawn": (
        "compare",
        ADAM + "label = '$x'",
        r"optimizers.0.label is '\$x', but must be up to 60 printable characters",
    ),
    "a falling range": (
        "sweep",
        ADAM + "[grid]\nb2 = {min = 2, max = 1}",
        "grid.b2.max is 1.0, but must be finite, and more than min, 2.0",
    ),
    "0 on a log scale": (
        "sweep",
        ADAM + "[grid]\neps = {min = 0, max = 1}",
        "grid.eps.min is 0.0, but must be positive on a log scale",
    ),
    "a repeated value": (
        "sweep",
        ADAM + "[grid]\neps = [1, 1]",
        "different numbers",
    ),
    "a value out of range": (
        "sweep",
        ADAM + "[grid]\nb2 = [0.9, 1]",
        r"b2 must be a decay rate in \[0, 1\), got 1.0",
    ),
    "epochs to come": (
        "sweep",
        "epochs = 2\nlines = true\nepochs_shown = [3]\n" + ADAM + "[grid]\nb1 = [0]",
        r"epochs_shown is \[3\], but must be from 1 to epochs, 2",
    ),
    "a map of epochs": (
        "sweep",
        "epochs_shown = [1]\n" + ADAM + "[grid]\nb1 = [0]",
        r"epochs_shown is \[1\], but must be left out without lines",
    ),
    "lines of draws": (
        "sweep",
        "lines = true\ndraws = 2\n" + ADAM + "[grid]\nb1 = [0]",
        "lines is True, but must be false for random draws",
    ),
    "lines over nothing shared": (
        "sweep",
        "lines = true\n" + ADAM + "[optimizers.grid]\nb1 = [0]",
        "lines is True, but must be false without a table",
    ),
    "an error of a vae": (
        "sweep",
        "measure = 'test_error'\narguments.model = 'vae'\n" + ADAM + "[grid]\nb1 = [0]",
        "measure is 'test_error', but must be a loss",
    ),
    "a negative penalty": (
        "compare",
        "penalty = -1\n" + ADAM,
        "penalty: .* greater than or equal to 0, got -1",
    ),
    "no draws": (
        "sweep",
        "draws = 0\n" + ADAM + "[grid]\nb1 = [0]",
        r"draws: .* greater than 0, got 0$",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(run, runs_dir, capfd, mistake):
    command, text, message = MISTAKES[mistake]
    assert run(command, text=text) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("adam-jax: error: ")
    assert len(err.splitlines()) == 1
    assert not runs_dir.exists()
    assert re.search(message, err), err


@pytest.mark.parametrize(("command", "text"), [("compare", TINY), ("sweep", SWEEP)])
def test_an_unwritable_folder(command, text, run, runs_dir, capfd):
    runs_dir.touch()
    assert run(command, text=text) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch("adam-jax: error: cannot write the results: .*exists.*\n", err)
    assert runs_dir.read_text() == ""


def make_members(settings, optimizers=("adam", "sgd"), accuracy=0.5):
    """Make members whose final loss is the distance of log10(learning_rate) from -2."""
    return [
        Member(
            optimizer,
            setting,
            seed,
            [3.0, loss],
            [3.0, loss + seed],
            {} if accuracy is None else {"accuracy": [accuracy, accuracy]},
        )
        for optimizer in optimizers
        for setting in settings
        for seed in (0, 1)
        for rate in [setting["learning_rate"]]
        for loss in [math.nan if rate == 1 else 1 + abs(math.log10(rate) + 2)]
    ]


RATES = [1e-3, 1e-2, 1e-1, 1.0]


def test_outcomes_are_over_seeds():
    outcomes = group_members(make_members([{"learning_rate": x} for x in RATES]))
    assert [len(outcome.members) for outcome in outcomes] == [2] * 8
    adam = outcomes[:4]
    assert adam[0].final("test_loss") == pytest.approx((2.5, 2, 3))
    assert to_text(adam[0].final("test_loss")) == "2.5 (2 to 3)"
    assert [outcome.diverged for outcome in adam] == [0, 0, 0, 2]
    assert [outcome.score for outcome in adam] == pytest.approx(
        [2.5, 1.5, 2.5, math.inf]
    )
    assert to_text(adam[3].final("train_loss")) == "-"
    best = find_best(outcomes)
    assert [(o.optimizer, o.setting["learning_rate"]) for o in best] == [
        ("adam", 1e-2),
        ("sgd", 1e-2),
    ]
    assert count_epochs(adam[0], 2.5) == "2"
    assert count_epochs(adam[0], 3) == "1"
    assert count_epochs(adam[0], 1) == "-"


def test_a_border_is_named_but_not_a_natural_zero():
    axes = {"learning_rate": RATES, "b1": [0.0, 0.9], "b2": [0.5]}
    setting = {"learning_rate": 1e-3, "b1": 0.0, "b2": 0.5}
    assert find_border(setting, axes) == [
        "learning_rate 0.001 is the smallest that was tried"
    ]
    setting = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.5}
    assert find_border(setting, axes) == ["b1 0.9 is the largest that was tried"]


OPTIMIZERS = (SweptCandidate(), SweptCandidate(name="sgd"))


@pytest.mark.parametrize("draws", [None, 2])
@pytest.mark.parametrize("keys", [1, 2, 3])
def test_sweeps_can_be_drawn(keys, draws):
    axes = {"learning_rate": Range(1e-3, 1.0, 4), "b1": [0.0, 0.9], "b2": [0.5, 0.9]}
    axes = dict(list(axes.items())[:keys])
    grid = GridConfig(**axes)
    config = SweepConfig(grid=grid, draws=draws, seeds=2, optimizers=OPTIMIZERS)
    others = {"b1": 0.9, "b2": 0.5}
    settings = [{key: others.get(key, rate) for key in axes} for rate in RATES]
    picture = draw_sweep(config, make_members(settings))
    assert to_picture(picture)
    assert len(read_panels(picture)) == {1: 1, 2: 2, 3: 6}[keys]


def test_a_heat_map_shows_the_best_and_the_lost():
    grid = GridConfig(learning_rate=RATES, b1=[0.0, 0.9])
    settings = [{"learning_rate": x, "b1": y} for x in RATES for y in (0.0, 0.9)]
    config = SweepConfig(grid=grid, seeds=2, optimizers=OPTIMIZERS)
    panel = read_panels(draw_sweep(config, make_members(settings)))[0]
    cells, scored, frame = panel.all("rect")
    assert cells["encoding"]["y"]["scale"]["domain"] == ["1", "0.1", "0.01", "0.001"]
    scores = {(row["y"], row["x"]): row["score"] for row in cells["rows"]}
    assert len(scores) == 8
    rows = {"0.001": 2.5, "0.01": 1.5, "0.1": 2.5, "1": None}
    for (rate, _), score in scores.items():
        assert score == (rows[rate] and pytest.approx(rows[rate]))
    assert scored["encoding"]["color"]["scale"]["type"] == "log"
    assert [(row["x"], row["y"]) for row in frame["rows"]] == [("0", "0.01")]
    lost = [
        row["y"] for row in cells["rows"] if row["text"] == "\N{MULTIPLICATION SIGN}"
    ]
    assert lost == ["1", "1"]
    [dots] = panel.all("point")
    assert {row["y"] for row in dots["rows"]} == {"0.001", "0.01", "0.1"}


DECAYS = [0.9, 0.99, 0.999, 0.9999]


def make_decays():
    """Make a sweep over decays, of which the largest is the best, and its members."""
    grid = GridConfig(learning_rate=[1e-3, 1e-2], b2=DECAYS)
    settings = [{"learning_rate": x, "b2": y} for x in (1e-3, 1e-2) for y in DECAYS]
    members = [
        member._replace(test_loss=[3.0, 2 - member.setting["b2"]])
        for member in make_members(settings)
    ]
    return SweepConfig(grid=grid, seeds=2, optimizers=OPTIMIZERS), members


def test_a_heat_map_tells_decays_apart():
    panel = read_panels(draw_sweep(*make_decays()))[0]
    domain = panel.all("rect")[0]["encoding"]["x"]["scale"]["domain"]
    assert domain == ["0.9", "0.99", "0.999", "0.9999"]


def test_the_table_and_the_note_name_the_decay():
    _, members = make_decays()
    outcomes = group_members(members)
    table = tabulate("", find_best(outcomes), outcomes)
    assert table.heads[:3] == ["optimizer", "learning_rate", "b2"]
    assert [row[2] for row in table.rows] == ["0.9999"] * 2
    assert find_border({"b2": 0.9999999}, {"b2": [0.9, 0.9999999]}) == [
        "b2 0.9999999 is the largest that was tried"
    ]


def test_the_curves_of_a_sweep_name_the_decay():
    config, members = make_decays()
    panels = read_panels(draw_sweep(dataclasses.replace(config, lines=True), members))
    titles = [panel.title for panel in panels]
    assert titles == ["b2 = 0.9", "b2 = 0.99", "b2 = 0.999", "b2 = 0.9999"]
    over = dataclasses.replace(config, grid=GridConfig(b2=DECAYS))
    [panel] = read_panels(draw_sweep(over, members))
    assert list(panel.lines()) == [
        "adam (best at 0.9999)",
        "sgd (best at 0.9999)",
    ]


def test_decays_have_places_of_their_own():
    config, members = make_decays()
    over = dataclasses.replace(config, grid=GridConfig(b2=DECAYS))
    drawn = dataclasses.replace(config, draws=8)
    names = ["0.9", "0.99", "0.999", "0.9999"]
    [panel] = read_panels(draw_sweep(over, members))
    assert panel.axis("x")["scale"]["domain"] == names
    assert all(x == names for x in panel.lines("x").values())
    panel = read_panels(draw_sweep(drawn, members))[0]
    assert panel.axis("x")["scale"]["domain"] == names
    points = panel.all("point")[0]["rows"]
    assert len(points) == 8
    assert {row["x"] for row in points} == set(names)


def test_draws_from_a_grid_of_an_optimizer_s_own():
    grid = GridConfig(learning_rate=Range(1e-3, 1.0), b1=[0.5, 0.9])
    own = SweptCandidate(grid=grid)
    config = SweepConfig(draws=2, seeds=2, optimizers=(own,))
    settings = [{"learning_rate": 1e-3, "b1": 0.5}, {"learning_rate": 0.1, "b1": 0.9}]
    picture = draw_sweep(config, make_members(settings, ("adam",)))
    assert to_picture(picture)
    assert read_panels(picture)[0].axis("y")["scale"]["type"] == "log"


def test_optimizers_that_share_no_hyperparameter_have_a_panel_each():
    grids = {"adam": GridConfig(b1=[0.5, 0.9]), "sgd": GridConfig(l2=[0.1, 1.0])}
    own = [SweptCandidate(name=name, grid=grid) for name, grid in grids.items()]
    settings = {"adam": [{"b1": x} for x in (0.5, 0.9)]}
    settings["sgd"] = [{"l2": x} for x in (0.1, 1.0)]
    members = [
        Member(name, setting, 0, [1.0], [sum(setting.values())], [0.5])
        for name in settings
        for setting in settings[name]
    ]
    config = SweepConfig(epochs=1, optimizers=tuple(own))
    adam, sgd = read_panels(draw_sweep(config, members))
    assert (adam.title, sgd.title) == ("adam", "sgd")
    assert adam.lines() == {"adam (best at 0.5)": [0.5, 0.9]}
    assert sgd.lines() == {"sgd (best at 0.1)": [0.1, 1.0]}
    assert sgd.axis("x")["title"] == "l2"


def test_optimizers_with_rates_of_their_own_are_lines_of_one_panel():
    grids = {"adam": [1e-3, 1e-2], "sgd": [1e-2, 1e-1]}
    optimizers = tuple(
        SweptCandidate(name=name, grid=GridConfig(learning_rate=rates))
        for name, rates in grids.items()
    )
    members = [
        member
        for name, rates in grids.items()
        for member in make_members([{"learning_rate": x} for x in rates], (name,))
    ]
    config = SweepConfig(seeds=2, optimizers=optimizers)
    [panel] = read_panels(draw_sweep(config, members))
    names = [f"{name} (best at 0.01)" for name in grids]
    assert panel.lines("x") == dict(zip(names, grids.values(), strict=True))


def test_of_many_curves_all_are_in_the_picture():
    names = [f"adam{n}" for n in range(14)]
    members = make_members([{"learning_rate": 1e-2}], names)
    config = CompareConfig(seeds=2, epochs=2, optimizers=OPTIMIZERS)
    for panel in read_panels(draw_curves(config, members)):
        assert list(panel.lines()) == names


def test_curves_that_coincide_can_be_told_apart():
    names = ("adam", "adamw", "sgd", "lion", "nadam", "radam", "amsgrad", "adamax")
    members = make_members([{"learning_rate": 1e-2}], names)
    optimizers = tuple(SweptCandidate(name=name) for name in names)
    config = CompareConfig(seeds=2, epochs=2, optimizers=optimizers)
    for panel in read_panels(draw_curves(config, members)):
        looks = list(panel.looks().values())
        assert len({(colour, dash) for colour, dash, *_ in looks}) == len(names)
        widths = [width for *_, width, _ in looks]
        assert widths == sorted(set(widths), reverse=True)
        assert len({shape for *_, shape in looks}) == 5


def test_lines_have_a_panel_for_each_setting_and_epoch():
    grid = GridConfig(learning_rate=RATES, b1=[0.0, 0.9])
    own = SweptCandidate(name="sgd", grid=GridConfig(l2=[0.0, 1.0]))
    config = SweepConfig(
        grid=grid,
        seeds=2,
        epochs=2,
        optimizers=(SweptCandidate(), own),
        lines=True,
        epochs_shown=(1, 2),
        measure="train_loss",
    )
    settings = [{"learning_rate": x, "b1": y} for x in RATES for y in (0.0, 0.9)]
    members = make_members(settings, ("adam",))
    members += make_members([x | {"l2": 0.0} for x in settings], ("sgd",))
    worse = make_members([x | {"l2": 1.0} for x in settings], ("sgd",))
    members += [x._replace(train_loss=[9.0, 9.0]) for x in worse]
    _, panels, legend = read_picture(draw_sweep(config, members))
    assert legend == ["adam", "sgd"]
    assert [panel.title for panel in panels] == [
        f"b1 = {b1:g}, after {epoch} epochs" for epoch in (1, 2) for b1 in (0, 0.9)
    ]
    for panel in panels:
        expected = [3] * 4 if "after 1" in panel.title else [2, 1, 2, None]
        # Each at the best of its own settings: with l2 = 1 sgd is at 9.
        assert panel.lines() == {"adam": expected, "sgd": expected}
        crosses = [mark["rows"] for mark in panel.all("text")]
        assert crosses == ([] if "after 1" in panel.title else [[{"x": 1.0}]] * 2)


def test_the_best_setting_is_that_of_the_measure():
    settings = [{"learning_rate": x} for x in (1e-2, 1e-1)]
    first, second = make_members(settings, ("adam",))[::2]
    members = [first, second._replace(metrics={"accuracy": [0.5, 0.75]})]
    by_loss, by_error = (
        find_best(group_members(members, measure))[0]
        for measure in ("test_loss", "test_error")
    )
    assert (by_loss.setting, by_error.setting) == tuple(settings)
    assert by_error.score == 0.25


@pytest.mark.parametrize("commonest", [0.3, 0.5])
def test_curves_show_the_share_of_the_commonest_label_if_it_is_near(commonest):
    members = make_members([{"learning_rate": 1e-2}])
    config = CompareConfig(seeds=2, epochs=2, optimizers=OPTIMIZERS)
    panel = read_panels(draw_curves(config, members, {"accuracy": commonest}))[2]
    share = panel.lines().get("baseline")
    assert share == ([0.5, 0.5] if commonest == 0.5 else None)
    assert ("without a model" in panel.title) == (commonest == 0.5)


@pytest.mark.parametrize("accuracy", [0.5, None])
def test_curves_can_be_drawn_without_accuracy_and_of_diverged_runs(accuracy):
    settings = [{"learning_rate": 1.0}]
    members = make_members(settings, ("sgd",), accuracy)
    members += make_members([{"learning_rate": 1e-2}], ("adam",), accuracy)
    config = CompareConfig(seeds=2, epochs=2, optimizers=OPTIMIZERS)
    picture = draw_curves(config, members)
    assert to_picture(picture)
    panels = read_panels(picture)
    assert len(panels) == (2 if accuracy is None else 3)
    assert list(panels[0].lines()) == ["sgd, 2 diverged", "adam"]
    assert panels[1].lines()["adam"] == [3, 1.5]  # of two seeds, 1 apart
    assert [x for x in panels[1].band() if x[0] == 2] == [(2, 1, 2)]


def test_a_study_of_nothing_but_diverged_runs_can_be_drawn():
    settings = [{"learning_rate": 1.0, "b1": 0.9}]
    for keys in (["learning_rate"], ["learning_rate", "b1"]):
        grid = GridConfig(**{key: [settings[0][key]] for key in keys})
        for draws in (None, 1):
            config = SweepConfig(grid=grid, draws=draws, optimizers=OPTIMIZERS)
            members = make_members([{key: settings[0][key] for key in keys}])
            assert to_picture(draw_sweep(config, members))
    config = CompareConfig(epochs=2, optimizers=OPTIMIZERS)
    assert to_picture(draw_curves(config, make_members(settings)))


def test_one_hyperparameter_of_an_optimizer_s_own_is_a_curve():
    own = SweptCandidate(grid=GridConfig(b1=[0.5, 0.9]))
    members = [Member("adam", {"b1": x}, 0, [1.0], [x], {}) for x in (0.5, 0.9)]
    [panel] = read_panels(draw_sweep(SweepConfig(epochs=1, optimizers=(own,)), members))
    assert panel.lines() == {"adam (best at 0.5)": [0.5, 0.9]}
    assert panel.axis("x")["title"] == "b1"
