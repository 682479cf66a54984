"""What `benchmarks/family_study.py` keeps, and its page: on a problem of two steps."""

import copy
import itertools
import json
import pathlib
import sys

import jax.numpy as jnp
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import family_study
import study_page

from adam_jax import OPTIMIZERS
from adam_jax.experiments.study.outcomes import Spread

TINY = family_study.TASK | {
    "problem": "digits",
    "epochs": 2,
    "epoch_steps": 1,
    "batch_size": 16,
    "arguments": {"model": "logistic"},
}
NAMES = ["adam", "sgd"]
RATES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]
list_rates = family_study.list_rates


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Run it once; return how to run it again, and the folder."""
    patch = pytest.MonkeyPatch()
    patch.setattr(family_study, "PROBLEMS", {"mnist": TINY})
    patch.setattr(family_study, "list_rates", lambda optimizer: RATES)
    family_study.load_task.cache_clear()
    folder = tmp_path_factory.mktemp("study")

    def run(*names):
        page = folder / "study.md"
        options = [f"--runs_dir={folder}/runs", f"--page={page}", "--jobs=1"]
        assert family_study.main([*options, "--optimizers", *names]) == 0
        return page.read_text("utf-8")

    yield run, folder, run(*NAMES)
    patch.undo()
    family_study.load_task.cache_clear()


def rows(page):
    return [line for line in page.splitlines() if line.startswith("| `")]


def read(folder, name="adam"):
    return json.loads((folder / f"runs/mnist/{name}.json").read_text("utf-8"))


def test_a_part_holds_what_was_tried_and_what_is_reported(study):
    part = read(study[1])
    rates = [member["setting"]["learning_rate"] for member in part["tried"]]
    assert rates == RATES and {member["seed"] for member in part["tried"]} == {0}
    assert [member["seed"] for member in part["chosen"]] == [1, 2, 3]
    losses = [member["test_loss"][-1] for member in part["tried"]]
    best = RATES[losses.index(min(losses))]
    assert {x["setting"]["learning_rate"] for x in part["chosen"]} == {best}
    # mu and nu in float32, and some counts.
    assert part["parameters"] == 64 * 10 + 10
    assert 8 < part["bytes_per_parameter"] < 8.05
    assert part["seconds_per_step"] > 0 and part["switched"] == [None] * 3


def test_what_is_there_is_only_read_and_a_new_optimizer_adds_its_own(
    study, monkeypatch
):
    run, folder, before = study
    made, run_part = [], family_study.run_part

    def noted(name, optimizer):
        made.append(optimizer)
        return run_part(name, optimizer)

    monkeypatch.setattr(family_study, "run_part", noted)
    assert run(*NAMES) == before and made == []
    (folder / "runs/mnist/sgd.json").unlink()
    assert rows(run("adam")) and made == []
    after = run(*NAMES)
    assert made == ["sgd"] and len(rows(after)) == len(rows(before))


def test_the_page_has_a_row_for_each_and_notes_the_border(study):
    _, folder, page = study
    measured = {row.split("`")[1]: row for row in rows(page) if "to" in row}
    assert set(measured) == set(NAMES)
    for name, row in measured.items():
        rate = read(folder, name)["chosen"][0]["setting"]["learning_rate"]
        at_end = {RATES[0]: "(lowest)", RATES[-1]: "(highest)"}.get(rate)
        assert (at_end in row) if at_end else "est)" not in row
    assert ">>>" not in page and "**`sgd`**" in page


@pytest.mark.parametrize(
    ("rate", "words"),
    [(RATES[0], "1e-06 (lowest)"), (RATES[-1], "1 (highest)"), (RATES[1], "1e-05")],
)
def test_the_end_of_the_grid_is_told(study, rate, words):
    part = read(study[1])
    part["chosen"][0]["setting"]["learning_rate"] = rate
    assert study_page.tell_rate(part) == words


def test_a_part_of_other_settings_is_refused(study, monkeypatch):
    run, _, _ = study
    monkeypatch.setattr(family_study, "PROBLEMS", {"mnist": TINY | {"epochs": 3}})
    with pytest.raises(ValueError, match=r"\.json was made with other settings"):
        run("adam")


def test_a_part_that_fails_does_not_stop_the_others(study, monkeypatch, capsys):
    _, folder, _ = study

    def fail(name, optimizer):
        raise ValueError("no")

    monkeypatch.setattr(family_study, "run_part", fail)
    path = folder / "runs/mnist/lion.json"
    assert family_study.make_parts([("mnist", "lion", path)] * 2, 1) == 2
    assert "FAILED: ValueError: no" in capsys.readouterr().out and not path.exists()


def test_apart_are_ranges_that_do_not_touch():
    lost = Spread(*[float("nan")] * 3)
    low, high, over = Spread(1, 0, 2), Spread(4, 3, 5), Spread(2, 1, 3.5)
    verdict = study_page.verdict
    assert (verdict(low, high), verdict(high, low)) == ("better", "worse")
    assert verdict(low, over) == verdict(over, high) == verdict(low, low) == "alike"
    touching = Spread(3, 2, 4)
    assert verdict(low, touching) == "alike"
    assert (verdict(low, lost), verdict(lost, low)) == ("better", "worse")
    assert verdict(lost, lost) == "alike"


def test_all_diverged_is_told(study):
    part = read(study[1]) | {"chosen": [], "border": []}
    parts = {("mnist", "adam"): read(study[1]), ("mnist", "sgd"): part}
    text = "\n".join(study_page.tabulate("mnist", parts))
    (row,) = [line for line in text.splitlines() if line.startswith("| `sgd`")]
    assert "all diverged" in row and row.endswith("| worse |")


def test_early_and_late_are_told_from_the_curves(study):
    """Adam leads at first, SGD at last; swats switches in one of three runs."""
    _, folder, _ = study
    curves = {"adam": [1.0, 0.9], "sgd": [2.0, 0.5], "swats": [1.0, 0.6]}
    parts = {}
    for name, curve in curves.items():
        part = copy.deepcopy(read(folder))
        for n, member in enumerate(part["chosen"]):
            for key in ("train_loss", "test_loss"):
                member[key] = [x + n / 1000 for x in curve]
        parts["mnist", name] = part
    parts["mnist", "swats"]["switched"] = [2, None, None]
    _, _, picture, table, told = study_page.show_switch(folder / "p.md", parts)
    assert "study_switch.png" in picture and (folder / "study_switch.png").exists()
    told = " ".join(told.split())
    assert told.count("early (10% of the steps) **shows**") == 2
    assert told.count("at the end **shows**") == 2
    assert "step 2 in 1 of 3 runs" in told
    early, late = table.splitlines()[2], table.splitlines()[4]
    assert early.endswith("| `adam`, not apart from `swats` |")
    assert late.endswith("| `sgd` |")


def test_a_switch_is_found_in_a_state():
    tx = OPTIMIZERS["swats"](0.1, tolerance=1.0)
    params, state = jnp.ones(3), tx.init(jnp.ones(3))
    assert not family_study.has_switched({"of a member": state})
    for _ in range(3):
        _, state = tx.update(params, state, params)
    assert family_study.has_switched({"of a member": state})
    assert not family_study.has_switched({"count": 3})


def test_every_optimizer_has_seven_rates_half_a_decade_apart():
    for name in [*study_page.PARENTS, "adam"]:
        rates = list_rates(name)
        steps = [b / a for a, b in itertools.pairwise(rates)]
        assert len(rates) == 7 and all(2.9 < step < 3.5 for step in steps)
    named = [name for names in family_study.CENTRES.values() for name in names]
    assert len(set(named)) == len(named) and set(named) <= {*study_page.PARENTS, "sgd"}
