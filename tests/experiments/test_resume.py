"""Runs survive: kills, signals, broken checkpoints and full disks."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OFTEN

from adam_jax import FIGURES, OPTIMIZERS
from adam_jax.experiments.cli import main
from adam_jax.experiments.metrics import read_epochs
from adam_jax.experiments.running import (
    checkpoints,
    folder,
    optimization,
    progress,
    run,
    training,
)
from adam_jax.experiments.running.checkpoints import Checkpoints
from adam_jax.experiments.running.folder import RunFolder

# Two steps an epoch, of two.
TINY = ("--batch_size=718", "--epochs=2", "--arguments.widths=[]")
RESULTS = ("metrics.jsonl", "params.npz")
# Every option that puts something else into the state.
RICH = (
    "--arguments.param_dtype=bfloat16",
    "--optimizer.rounding=stochastic",
    "--optimizer.mu_dtype=8bit",
    "--optimizer.nu_dtype=bfloat16",
    "--optimizer.guard=spikes",
    "--arguments.widths=[64]",  # a kernel of 4,096: with 8-bit codes
)
OTHERS = {
    "an option": (["--seed=3"], "seed is set, but --resume goes on with the config of"),
    "a table's": (["--optimizer.b1=0.5"], "optimizer.b1 is set, .* leave out --optim"),
    "a config": (
        ["--config=configs/digits_mlp.toml"],
        "(name|config) is set, but --re",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def start_fast():
    """Record one figure only, and draw none: a run then starts and ends sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimization, "FIGURES", {"update_norm": FIGURES["update_norm"]})
        for name in ("draw_run", "to_picture"):
            patch.setattr(run, name, lambda *_: b"a picture")
        yield


@pytest.fixture
def stop_at(monkeypatch):
    """Give a function that lets a signal come after some step of the next run."""
    advance = progress.Report.advance

    def arm(step, number=signal.SIGTERM):
        monkeypatch.setattr(
            progress.Report, "advance", stop_after(step, advance, number)
        )

    return arm


def stop_after(step, advance, number=signal.SIGTERM):
    """Wrap Report.advance so that a signal comes after a step."""

    def stop(self):
        advance(self)
        if self.trainer.step == step:
            os.kill(os.getpid(), number)

    return stop


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """Give a tiny run that was stopped after its third step of four."""
    runs_dir = tmp_path_factory.mktemp("stopped")
    advance = progress.Report.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.Report, "advance", stop_after(3, advance))
        command = ["train", f"--runs_dir={runs_dir}", *TINY, "--checkpoint_every=1"]
        assert main(command) == 143
    return runs_dir / "digits"


@pytest.fixture
def stopped(stopped_once, tmp_path, capfd):
    """Give a copy of that run, with a checkpoint after each of the three steps."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


@pytest.fixture
def train(runs_dir):
    """Give a function that runs `adam-jax train`, smaller than that of conftest."""

    def run(*options):
        return main(["train", f"--runs_dir={runs_dir}", *TINY, *options])

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the results of the tiny run when nothing stops it."""
    runs_dir = tmp_path_factory.mktemp("whole")
    assert main(["train", f"--runs_dir={runs_dir}", *TINY]) == 0
    return read_results(runs_dir / "digits")


def read_results(path):
    """Give the bytes that must not depend on what happened on the way."""
    return [(path / name).read_bytes() for name in RESULTS]


def resume(path):
    """Go on with a run."""
    return main(["train", f"--resume={path}"])


def saved_steps(path):
    """Give the names of what is in the folder of checkpoints."""
    return sorted(file.name for file in (path / "checkpoints").iterdir())


@pytest.mark.crossing
def test_20_kills_change_nothing(tmp_path):
    quiet = {
        "OPENBLAS_NUM_THREADS": "1",  # a process with threads must not be forked
        "OMP_NUM_THREADS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jit"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment = {key: x for key, x in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killing.py"), tmp_path, "20", "0"],
        env=environment | quiet,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["kills"] == 20
    assert seen["in_a_write"] > 0
    assert set(seen["codes"]) == {0}
    assert seen["wrong"] == 0
    assert "broken" not in done.stderr  # a kill breaks no checkpoint that counts


@pytest.mark.parametrize("options", [(), RICH], ids=["adam", "all options"])
def test_a_stopped_run_goes_on_bit_for_bit(
    options, train, runs_dir, stop_at, capfd, monkeypatch
):
    if options is not RICH:
        monkeypatch.setattr(optimization, "FIGURES", FIGURES)  # all of them
    monkeypatch.setattr(training, "SEGMENT_SECONDS", 0)  # steps one by one
    options = (*options, "--batch_size=300")  # 4 steps an epoch
    assert train(*options, "--name=whole") == 0
    stop_at(2)
    assert train(*options) == 143
    err = capfd.readouterr().err
    path = runs_dir / "digits"
    assert err.endswith(f"go on with: adam-jax train --resume {path}\n")
    stop_at(7, signal.SIGINT)
    assert resume(path) == 130
    out, err = capfd.readouterr()
    assert out.startswith("resumed at step 2 of epoch 1\nepoch 1/2: loss ")
    assert "after step 7 of 8, which is saved; go on with" in err
    assert saved_steps(path) == ["2", "7"]
    stop_at(None)
    assert resume(path) == 0
    out, err = capfd.readouterr()
    assert out.startswith("resumed at step 3 of epoch 2\nepoch 2/2: loss ")
    assert "2 of 2" in out
    assert err == ""
    whole = runs_dir / "whole"
    assert read_results(path) == read_results(whole)
    assert (path / "run.png").stat().st_size > 0
    sizes = {len(list(run.glob("events.out.tfevents.*"))) for run in (path, whole)}
    assert sizes == {1}


def test_a_finished_run_is_left_alone(train, runs_dir, capfd, monkeypatch):
    assert train() == 0
    path = runs_dir / "digits"
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    monkeypatch.delattr(training.Trainer, "__init__")  # nor is anything compiled
    capfd.readouterr()
    assert resume(path) == 0
    assert capfd.readouterr() == (f"{path} is finished: nothing is left to do\n", "")
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_the_last_checkpoint_comes_after_all_else(train, runs_dir, whole, monkeypatch):
    def fail(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_params", fail)
        with pytest.raises(RuntimeError, match="killed"):
            train("--checkpoint_every=1")
    path = runs_dir / "digits"
    assert saved_steps(path) == ["1", "2", "3"]
    assert resume(path) == 0
    assert read_results(path) == whole
    assert saved_steps(path) == ["2", "3", "4"]


def test_a_run_without_a_checkpoint_starts_again(stopped, whole, capfd):
    shutil.rmtree(stopped / "checkpoints")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')  # half a line, as after a kill
    assert resume(stopped) == 0
    assert capfd.readouterr().out.startswith("resumed at step 0 of epoch 1\n")
    assert read_results(stopped) == whole


def test_epochs_after_the_checkpoint_are_forgotten(stopped, whole):
    (line,) = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text(
        line + line.replace('"step": 2', '"step": 4')
    )
    assert len(read_epochs(stopped)) == 2
    assert resume(stopped) == 0
    assert read_results(stopped) == whole


def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(stopped, whole, capfd):
    newest, *_ = sorted((stopped / "checkpoints" / "3").rglob("d/*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert resume(stopped) == 0
    out, err = capfd.readouterr()
    assert out.startswith("resumed at step 0 of epoch 2\n")
    warning = (
        f"adam-jax: warning: the checkpoint {stopped / 'checkpoints' / '3'} is bro"
    )
    assert err.startswith(warning)
    assert err.count("\n") == 1
    assert read_results(stopped) == whole
    assert saved_steps(stopped) == ["2", "3", "4"]  # written anew


def test_no_checkpoint_can_be_read(stopped, capfd):
    for file in (stopped / "checkpoints").rglob("_METADATA"):
        file.write_text("{")
    before = read_results(stopped), saved_steps(stopped)
    assert resume(stopped) == 2
    out, err = capfd.readouterr()
    assert out == ""
    *warnings, error = err.splitlines()
    assert len(warnings) == 3
    assert error.startswith(f"adam-jax: error: no checkpoint in {stopped / 'checkp'}")
    assert error.endswith("can be read; train again")
    assert (read_results(stopped), saved_steps(stopped)) == before


class State(NamedTuple):
    """Hold one of everything that a state may be made of."""

    arrays: Any
    others: Any


def make_state(value):
    """Make leaves of every kind from a number."""
    dtypes = ("float32", "bfloat16", "float16", "uint8", "int32", "bool")
    leaves = {name: jnp.full((2, 3), value).astype(name) for name in dtypes}
    key = jax.random.key(int(value))
    nothing = (None, (), {}, optax.EmptyState(), optax.MaskedNode())
    return State(leaves, [jnp.float32(value), key, *nothing])


def assert_same(found, expected):
    """Compare structure, types and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = map(jax.random.key_data, (one, other))
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture
def kept(tmp_path):
    """Give checkpoints of three states."""
    kept = Checkpoints(tmp_path / "checkpoints")
    for step in (5, 6, 7):
        kept.save(step, make_state(step + 0.25))
    return kept


def test_every_kind_of_leaf_comes_back(kept):
    step, state = kept.restore(make_state(0), pytest.fail)
    assert step == 7
    assert_same(state, make_state(7.25))


def test_states_of_all_kinds_come_back(tmp_path):
    params = {"w": jnp.linspace(0, 1, 3), "b": jnp.float32(2)}
    state = {}
    for name in OFTEN:
        tx = OPTIMIZERS[name](0.1)
        state[name] = tx.update(params, tx.init(params), params)[1]
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, state)
    assert_same(kept.restore(state, pytest.fail)[1], state)


def test_three_checkpoints_are_kept(kept):
    kept.save(8, make_state(8))
    assert kept.steps() == [6, 7, 8]


def damage(data, kind):
    """Cut a file in half, empty it, or flip a bit of it."""
    middle = len(data) // 2
    if kind == "flipped":
        return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    return data[:middle] if kind == "cut" else b""


@pytest.mark.parametrize("kind", ["cut", "emptied", "flipped", "removed"])
def test_whatever_is_broken_no_wrong_state_comes_back(kind, kept):
    newest = kept.folder / "7"
    good = kept.folder.parent / "good"
    shutil.copytree(newest, good)
    names = [file.relative_to(good) for file in good.rglob("*") if file.is_file()]
    sizes = {name: (good / name).stat().st_size for name in names}
    for name in filter(sizes.get, names):
        if kind == "removed":
            (newest / name).unlink()
        else:
            (newest / name).write_bytes(damage((good / name).read_bytes(), kind))
        warnings = []
        step, state = kept.restore(make_state(0), warnings.append)
        assert step == 6
        assert_same(state, make_state(6.25))
        (warning,) = warnings
        assert warning.startswith(f"the checkpoint {newest} is broken: ")
        assert "\n" not in warning
        assert not newest.exists()
        shutil.copytree(good, newest)
    assert len([size for size in sizes.values() if size]) > 5
    assert kept.restore(make_state(0), pytest.fail)[0] == 7


def test_a_file_more_or_another_name_is_seen(kept):
    (kept.folder / "7" / "state" / "more").touch()
    (kept.folder / "6").rename(kept.folder / "8")
    warnings = []
    assert kept.restore(make_state(0), warnings.append)[0] == 5
    cause = "is broken: its files are not as they were written"
    assert [w.split(f"{kept.folder}/")[1] for w in warnings] == [
        f"8 {cause}",
        f"7 {cause}",
    ]
    assert kept.steps() == [5]


def test_a_state_of_a_problem_that_has_changed_is_not_called_broken(kept):
    steps = kept.steps()
    like = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, 2)), make_state(0))
    with pytest.raises(ValueError) as error:
        kept.restore(like, pytest.fail)
    assert f"{kept.folder / '7'} is whole, but holds another state" in str(error.value)
    assert "has the shape" in str(error.value)
    assert str(error.value).endswith("put it back as it was, or train again")
    assert kept.steps() == steps


def test_what_a_kill_left_is_removed(kept):
    shutil.copytree(kept.folder / "7", kept.folder / "8.unfinished")
    again = Checkpoints(kept.folder)
    assert again.steps() == [5, 6, 7]
    assert not list(kept.folder.glob("8*"))


def test_the_digest_sees_names_sizes_and_steps(tmp_path):
    files = [{"a": "xy", "b": "z"}, {"a": "x", "b": "yz"}, {"a": "xy", "c": "z"}]
    digests = set()
    for number, contents in enumerate(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in contents.items():
            (folder / name).write_text(text)
        digests |= {checkpoints.compute_digest(step, folder) for step in (1, 2)}
    assert len(digests) == 6
    expected = hashlib.sha256(b"2\na 2\nxy\nc 1\nz").hexdigest()
    assert checkpoints.compute_digest(2, folder) == expected


def test_two_processes_cannot_train_the_same_run(stopped, capfd):
    other = RunFolder(stopped)
    try:
        assert resume(stopped) == 2
        sentence = f"{stopped} is in use: another process trains it; wait for that to e"
        assert sentence in capfd.readouterr().err
    finally:
        other.close()
    assert resume(stopped) == 0


@pytest.fixture
def disk(monkeypatch):
    """Give a function that lets no file grow beyond a size, from a call on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = "jax_persistent_cache_min_compile_time_secs"
    shortest = getattr(jax.config, kept)

    def fill(owner, name, calls=1, size=64):
        function, left = getattr(owner, name), [calls]

        def limited(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                # JAX is to keep nothing of what it compiles from here on.
                jax.config.update(kept, float("inf"))
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            return function(*args, **options)

        monkeypatch.setattr(owner, name, limited)

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update(kept, shortest)

    fill.free = free
    yield fill
    free()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (folder, "replace_file"),
        (run, "RunFolder"),
        (RunFolder, "add"),
        (RunFolder, "save"),
    ],
    ids=["config", "events", "metrics", "checkpoint"],
)
def test_a_full_disk_leaves_no_run(owner, name, train, runs_dir, disk, capsys):
    disk(owner, name)
    assert train("--checkpoint_every=2") == 2
    disk.free()
    err = capsys.readouterr().err
    assert err.startswith("adam-jax: error: cannot write the results: ")
    assert "File too large; nothing is kept of this run\n" in err
    assert err.count("\n") == 1
    assert not list(runs_dir.iterdir())


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [(RunFolder, "save", 2), (RunFolder, "add", 2), (run, "save_params", 1)],
    ids=["checkpoint", "metrics", "params"],
)
def test_a_full_disk_later_can_be_freed(
    owner, name, calls, train, runs_dir, whole, disk, capsys
):
    disk(owner, name, calls)
    assert train("--checkpoint_every=1") == 2
    disk.free()
    path = runs_dir / "digits"
    assert capsys.readouterr().err == (
        f"adam-jax: error: cannot write the results: {path}: File too large; free some "
        f"space, and go on with: adam-jax train --resume {path}\n"
    )
    assert saved_steps(path)[-1] == ("1" if name == "save" else "3")
    assert not [file for file in path.rglob("*") if "unfinished" in str(file)]
    assert not list(path.glob(".*"))
    lines = (path / "metrics.jsonl").read_bytes()
    assert lines in (b"", *[whole[0][:n] for n in (lines.rfind(b"\n") + 1,)])
    assert resume(path) == 0
    assert read_results(path) == whole


@pytest.mark.parametrize(
    ("said", "code", "text"),
    [
        ('RESOURCE_EXHAUSTED: "x": No space left on device [1]', errno.ENOSPC, ""),
        ("INTERNAL:\n  what is this", None, "INTERNAL: what is this"),
    ],
)
def test_what_is_no_os_error_in_orbax_is_one_for_us(
    said, code, text, kept, monkeypatch
):
    def fail(*_, **__):
        raise ValueError(said)

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "save", fail)
    with pytest.raises(OSError, match=text or "No space left on device$") as caught:
        kept.save(8, make_state(8))
    assert caught.value.errno == code
    assert kept.steps() == [5, 6, 7]
    assert not list(kept.folder.glob("8*"))


def test_room_for_a_checkpoint_is_made_sure_of_first(kept, monkeypatch):
    asked = []
    monkeypatch.setattr(
        checkpoints.os,
        "posix_fallocate",
        lambda _file, _start, size: asked.append(size),
    )
    kept.save(8, make_state(8))
    files = [file for file in (kept.folder / "8").rglob("*") if file.is_file()]
    assert asked[0] > sum(file.stat().st_size for file in files)
    assert "reserve" not in {file.name for file in files}


def test_a_disk_with_another_fault(stopped, monkeypatch, capfd):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder, "write_events", fail)
    assert resume(stopped) == 2
    assert (
        f"{stopped}: Input/output error; mend that, and go on" in capfd.readouterr().err
    )


@pytest.mark.parametrize(("options", "message"), OTHERS.values(), ids=OTHERS)
def test_resume_takes_no_other_option(options, message, capfd):
    assert main(["train", "--resume=runs/x", *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("adam-jax: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"is no run: .*config.toml: No such file .*; adam-jax train makes one$"),
        ("epochs = 0", r"epochs: .* greater than 0, got 0$"),
        ("epochs = = 0", r"config.toml: .*Invalid value"),
        ("epoch = 1", r"epoch is no option: did you mean epochs\?$"),
        ("optimizers = [{}]", r"is for adam-jax compare, not for adam-jax train$"),
        (
            "optimizers = [{}]\ngrid.b1 = [0]",
            r"adam-jax sweep, not for adam-jax train$",
        ),
        ("surface = 'saddle'", r"is for adam-jax trace, not for adam-jax train$"),
    ],
)
def test_what_is_no_run_is_one_sentence(config, message, tmp_path, capfd):
    if config:
        (tmp_path / "config.toml").write_text(config)
    assert resume(tmp_path) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err.rstrip())
    assert len(list(tmp_path.iterdir())) == bool(config)


def test_metrics_that_are_cut_short_are_missed(stopped, capfd):
    (stopped / "metrics.jsonl").write_text("")
    assert resume(stopped) == 2
    sentence = "is broken: its metrics have 0 epochs, but its checkpoint 1; train again"
    assert sentence in capfd.readouterr().err
