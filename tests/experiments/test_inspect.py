"""`adam-jax inspect`: the figures of a run as text, and what is no run."""

import json
import re

import pytest

from adam_jax.experiments.cli import main
from adam_jax.experiments.metrics import read_epochs
from adam_jax.experiments.running.inspection import choose_epochs

GOOD = (
    '{"epoch": 1, "step": 2, "skipped": 0, "learning_rate": 0.001, "train_loss": 1.5, '
    '"test_loss": null, "metrics": {"accuracy": 0.5}, "figures": {"update_norm": 0.25, '
    '"update_norm/b": 0.125, "swallowed": 0, "swallowed/b": 0}, '
    '"moved": {"b": 0.0625, "w": 0.03125}}\n'
)
BROKEN = {
    "no epoch": ("", r"has no finished epoch yet: its metrics.jsonl is empty"),
    "half an epoch": (GOOD[:50], r"has no finished epoch yet"),
    "no JSON": (
        GOOD + "oops\n",
        r"metrics.jsonl is broken: line 2 is no epoch of this",
    ),
    "no table": ("3\n", r"broken: line 1"),
    "a table missing": ('{"epoch": 1}\n', r"broken: line 1"),
    "a list for a table": (GOOD.replace('{"b": 0.0625, "w": 0.03125}', "[]"), "line 1"),
    "a text for a number": (GOOD.replace("0.25", '"x"'), r"broken: line 1"),
    "an unknown key": (GOOD.replace('"step"', '"stride"'), r"broken: line 1"),
    "an older version": (
        '{"epoch": 1, "step": 44, "learning_rate": 0.003, "effective_step": {}}\n',
        r"line 1 is no epoch of this version of adam-jax; train again",
    ),
}


@pytest.fixture
def make_run(tmp_path):
    """Give a function that makes the folder of a run from its metrics."""

    def make(text):
        (tmp_path / "metrics.jsonl").write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_run_is_one_sentence(text, message, make_run, capfd):
    assert main(["inspect", str(make_run(text))]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(message, err)
    assert err.startswith("adam-jax: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], r"nowhere is no run: nowhere.metrics.jsonl: No such file"),
        ([__file__], r"is no run: .*: Not a directory; adam-jax train makes one"),
        ([], r"arguments are required: run \(see adam-jax inspect --help\)"),
        (["a", "b"], r"unrecognized arguments: b"),
        (["--config=x", "a"], r"unrecognized arguments: --config=x"),
    ],
)
def test_what_is_no_run_is_one_sentence(argv, message, capfd):
    assert main(["inspect", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(message, err)
    assert err.count("\n") == 1


def test_other_results_are_named(tmp_path, capfd):
    for name, held in (
        ("trace.json", "paths of adam-jax trace"),
        ("members.jsonl", "a study: see adam-jax report"),
    ):
        (tmp_path / name).touch()
        assert main(["inspect", str(tmp_path)]) == 2
        assert capfd.readouterr().err.endswith(f"is no run, but holds {held}\n")


def test_metrics_that_are_no_text(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "metrics.jsonl is broken: line 1 is no epoch" in capfd.readouterr().err


def test_two_tables_and_the_ranks(make_run, capfd):
    # The last line is half written, as that of a run that is still at work.
    assert main(["inspect", str(make_run(GOOD + GOOD[:50]))]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["after", "epoch", "1"]
    assert ["loss/train", "1.5"] in rows
    assert ["loss/test", "nan"] in rows
    assert ["update_norm", "0.25"] in rows
    assert ["parameter", "group", "swallowed", "moved"] in rows  # no other is there
    assert ["b", "0", "0.0625"] in rows
    assert ["w", "nan", "0.0312"] in rows
    assert rows[-2] == ["moved", "most:", "b", "0.0625"]
    assert rows[-1] == ["moved", "least:", "w", "0.0312"]


def test_json(make_run, capfd):
    assert main(["inspect", str(make_run(GOOD)), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["epochs"] == [json.loads(GOOD)]
    assert (shown["moved_most"], shown["moved_least"]) == (["b"], ["w"])


def test_first_some_and_last_epoch(make_run):
    epochs = read_epochs(
        make_run(
            "".join(GOOD.replace('"epoch": 1', f'"epoch": {n}') for n in range(1, 61))
        )
    )
    assert [epoch.epoch for epoch in choose_epochs(epochs)] == [1, 15, 30, 45, 60]
    assert [epoch.epoch for epoch in choose_epochs(epochs[:3])] == [1, 2, 3]
    assert [epoch.epoch for epoch in choose_epochs(epochs[:1])] == [1]


def test_help_has_an_example(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", "--help"])
    assert "adam-jax inspect runs/digits_mlp" in capfd.readouterr().out
