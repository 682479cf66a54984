"""`adam-jax family`: the tree, and chains side by side."""

import pytest

from adam_jax import OPTIMIZERS
from adam_jax.experiments.cli import main


def test_the_tree_names_every_optimizer(capsys):
    assert main(["family"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(maxsplit=3) for line in lines[1 : len(OPTIMIZERS) + 1]]
    assert {row[0] for row in rows} == OPTIMIZERS.keys()
    by_name = {row[0]: row for row in rows}
    assert by_name["adamw"][1:3] == ["1", "8.00"]
    assert by_name["lion"][2] == "4.00"
    assert all(row[3] for row in rows)
    assert f"{len(OPTIMIZERS)} optimizers" in lines[len(OPTIMIZERS) + 1]


@pytest.mark.parametrize("names", [["adamw"], ["adamw", "adam"]])
def test_two_chains_side_by_side(names, capsys):
    """Beside its parent's, if there is one name."""
    assert main(["family", *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["adamw", "adam"]
    marked = [line for line in lines[1:] if "|" in line]
    assert [line.split("(")[0] for line in marked] == ["add_decayed_weights"]


def test_the_root_stands_beside_itself(capsys):
    assert main(["family", "sgd"]) == 0
    assert "|" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adm"], "there is no optimizer 'adm': did you mean adam?\n"),
        (["adam", "xyz"], "there is no optimizer 'xyz': adam-jax family lists them\n"),
        (
            ["xyz", "adm", "lionn"],
            "no optimizer 'xyz' or 'adm' or 'lionn': did you mean adam and lion?\n",
        ),
        (["adam", "adamw", "lion"], "two chains go side by side, got 3 names"),
    ],
)
def test_wrong_names(names, message, capsys):
    assert main(["family", *names]) == 2
    assert message in capsys.readouterr().err
